// Echo on ws: node server.js PORT echo

import { WebSocketServer } from "ws";

const MESSAGE_BYTES_MAX = 16 * 1024 * 1024;
const BACKLOG = 4096;

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  backlog: BACKLOG,
  maxPayload: MESSAGE_BYTES_MAX,
  perMessageDeflate: false,
});

server.on("connection", (socket, { socket: stream }) => {
  let isCorked = false;
  const uncork = () => {
    isCorked = false;
    stream.uncork();
  };
  socket.on("error", () => {});
  socket.on("message", (message, isBinary) => {
    // What a read brought is given out in one go: the replies leave together after it.
    if (!isCorked) {
      isCorked = true;
      stream.cork();
      process.nextTick(uncork);
    }
    socket.send(message, { binary: isBinary });
  });
});
