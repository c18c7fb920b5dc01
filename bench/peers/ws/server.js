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

server.on("connection", (socket) => {
  socket.on("error", () => {});
  socket.on("message", (message, isBinary) => socket.send(message, { binary: isBinary }));
});
