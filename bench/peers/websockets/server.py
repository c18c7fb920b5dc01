"""Echo and fan-out on websockets (asyncio, uvloop): server.py PORT echo|fanout"""

import asyncio
import sys

import uvloop
from websockets.asyncio.server import broadcast, serve

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
BACKLOG = 4096


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def fan_out(connection):
    server = connection.server
    async for message in connection:
        broadcast(server.connections, message)


async def main(port, mode):
    handler = fan_out if mode == "fanout" else echo
    options = {"compression": None, "max_size": MESSAGE_BYTES_MAX, "backlog": BACKLOG}
    async with serve(handler, "127.0.0.1", port, **options) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
