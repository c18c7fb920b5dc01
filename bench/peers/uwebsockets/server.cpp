/* Echo and fan-out on uWebSockets, in the best configuration it has for them.
 *
 * Usage: server PORT echo|fanout|limited
 *
 * echo:    every message goes back to its sender.
 * fanout:  every connection subscribes to one topic on open; every message received is published to all
 *          subscribers, its sender included.
 * limited: the same with a megabyte for each subscriber; what does not fit is dropped. */

#include "App.h"

#include <cstdlib>
#include <cstring>
#include <iostream>

namespace {

struct PerSocketData {};

/* "all" is the one topic of the fan-out mode. */
constexpr std::string_view TOPIC = "all";

uWS::App::WebSocketBehavior<PerSocketData> limits(bool limited) {
    uWS::App::WebSocketBehavior<PerSocketData> behavior;
    behavior.compression = uWS::DISABLED;
    behavior.maxPayloadLength = 16 * 1024 * 1024;
    behavior.maxBackpressure = limited ? 1024 * 1024 : 64 * 1024 * 1024;
    behavior.idleTimeout = 0;
    return behavior;
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 3) {
        std::cerr << "usage: " << argv[0] << " PORT echo|fanout|limited" << std::endl;
        return 2;
    }
    int port = std::atoi(argv[1]);
    bool limited = std::strcmp(argv[2], "limited") == 0;
    bool fanout = limited || std::strcmp(argv[2], "fanout") == 0;
    bool listening = false;

    uWS::App app;
    auto behavior = limits(limited);
    if (fanout) {
        behavior.open = [](auto *ws) { ws->subscribe(TOPIC); };
        behavior.message = [&app](auto *, std::string_view message, uWS::OpCode opCode) {
            app.publish(TOPIC, message, opCode, false);
        };
    } else {
        behavior.message = [](auto *ws, std::string_view message, uWS::OpCode opCode) {
            ws->send(message, opCode, false);
        };
    }
    app.ws<PerSocketData>("/*", std::move(behavior));
    app.listen("127.0.0.1", port, LIBUS_LISTEN_EXCLUSIVE_PORT, [&listening](auto *socket) {
        listening = socket != nullptr;
    });
    if (!listening) {
        std::cerr << "cannot listen on port " << port << std::endl;
        return 1;
    }
    app.run();
}
