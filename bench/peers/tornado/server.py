"""Echo on Tornado (uvloop): server.py PORT echo"""

import asyncio
import sys

import uvloop
from tornado.web import Application
from tornado.websocket import WebSocketHandler

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
BACKLOG = 4096


class Echo(WebSocketHandler):
    def open(self):
        self.set_nodelay(True)

    def on_message(self, message):
        self.write_message(message, binary=isinstance(message, bytes))


async def main(port):
    application = Application([("/", Echo)], websocket_max_message_size=MESSAGE_BYTES_MAX)
    application.listen(port, "127.0.0.1", backlog=BACKLOG)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
