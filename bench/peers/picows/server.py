"""Echo on picows (uvloop, aiofastnet): server.py PORT echo"""

import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
BACKLOG = 4096


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame):
        if frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY):
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()


async def main(port):
    server = await ws_create_server(
        lambda request: Echo(), "127.0.0.1", port, max_frame_size=MESSAGE_BYTES_MAX, backlog=BACKLOG
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
