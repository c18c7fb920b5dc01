"""Echo on AutobahnPython (asyncio, uvloop): server.py PORT echo"""

import asyncio
import sys

import uvloop
from autobahn.asyncio.websocket import WebSocketServerFactory, WebSocketServerProtocol

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
BACKLOG = 4096


class Echo(WebSocketServerProtocol):
    def onMessage(self, payload, isBinary):
        self.sendMessage(payload, isBinary)


async def main(port):
    factory = WebSocketServerFactory()
    factory.protocol = Echo
    factory.setProtocolOptions(
        tcpNoDelay=True,
        utf8validateIncoming=True,
        maxMessagePayloadSize=MESSAGE_BYTES_MAX,
        maxFramePayloadSize=MESSAGE_BYTES_MAX,
    )
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
