#!/usr/bin/env python3
"""check.py URL SERVER_PID: what Python's websockets sees of the echo server. Ends by stopping the server."""

import asyncio
import os
import signal
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
URL = sys.argv[1]
SERVER_PID = int(sys.argv[2])


def equal(got, expected):
    if got != expected:
        raise AssertionError(f"expected {expected!r:.200}, got {got!r:.200}")


def client(path="/", **options):
    # Compression off: the offer is a matter of its own.
    options.setdefault("compression", None)
    return connect(URL + path, max_size=MESSAGE_BYTES_MAX, proxy=None, **options)


async def echoed(websocket, message, expected=None):
    await websocket.send(message)
    equal(await websocket.recv(), message if expected is None else expected)


async def text():
    async with client() as websocket:
        for message in ["hello", "Grüße, Привет, 你好, 🦀🌊", "\0", "x" * 125, "x" * 126, "ß" * 32768]:
            await echoed(websocket, message)


async def binary():
    async with client() as websocket:
        for length in [1, 125, 126, 127, 4096, 65535, 65536, 300_000]:
            await echoed(websocket, os.urandom(length))


async def empty_message():
    async with client() as websocket:
        await echoed(websocket, "")
        await echoed(websocket, b"")
        await echoed(websocket, "after")


async def fragmented_message():
    async with client() as websocket:
        await echoed(websocket, ["Grü", "", "ße, ", "🦀"], "Grüße, 🦀")
        pieces = [os.urandom(length) for length in (0, 1, 70_000, 125, 4096)]
        await echoed(websocket, pieces, b"".join(pieces))


async def ping_between_fragments():
    async with client() as websocket:

        async def pieces():
            yield b"first "
            await (await websocket.ping(b"between"))
            yield b"second"

        await echoed(websocket, pieces(), b"first second")


async def ping_and_pong():
    async with client() as websocket:
        for payload in [b"", b"payload", bytes(range(125))]:
            # Resolves only when a pong with this very payload arrives.
            await (await websocket.ping(payload))
        await websocket.pong(b"unsolicited")
        await echoed(websocket, "after")


async def many_in_flight():
    async with client() as websocket:
        messages = [f"message {number} ".encode() * (number % 50) for number in range(1000)]

        async def send():
            for message in messages:
                await websocket.send(message)

        sending = asyncio.create_task(send())
        for message in messages:
            equal(await websocket.recv(), message)
        await sending


async def largest_message():
    async with client() as websocket:
        await echoed(websocket, os.urandom(MESSAGE_BYTES_MAX))
        await echoed(websocket, "🦀" * (MESSAGE_BYTES_MAX // 4))


async def message_too_big():
    async with client() as websocket:
        try:
            # In fragments, so that the one that is refused is not still being sent when the answer comes.
            await echoed(websocket, [bytes(MESSAGE_BYTES_MAX), b"x"], b"")
        except ConnectionClosed as closed:
            equal(closed.rcvd and closed.rcvd.code, 1009)
        else:
            raise AssertionError("a message over the limit was echoed")


async def close_code():
    for code, reason in [(1000, ""), (1000, "done"), (3000, "registered"), (4999, "grün" * 24)]:
        async with client() as websocket:
            await websocket.close(code, reason)
            received = websocket.protocol.close_rcvd
            equal((received.code, websocket.protocol.close_rcvd_then_sent), (code, False))
            # RFC 6455 section 5.5.1: the code is echoed; the reason need not be.
            assert received.reason in ("", reason), received.reason


async def subprotocol():
    for offered, selected in [(None, None), (["chat"], None), (["echo"], "echo"), (["chat", "echo"], "echo")]:
        async with client(subprotocols=offered) as websocket:
            equal(websocket.subprotocol, selected)
            await echoed(websocket, "hello")


async def rejection():
    try:
        async with client("/reject"):
            raise AssertionError("the upgrade was accepted")
    except InvalidStatus as refused:
        equal(refused.response.status_code, 403)
        assert refused.response.body, "the response has no body"


async def deferred_accept():
    async with client("/later") as websocket:
        await echoed(websocket, "late")
    # Twenty decisions pending at a time.
    await asyncio.gather(*(deferred_echo(number) for number in range(20)))


async def deferred_echo(number):
    async with client("/later") as websocket:
        await echoed(websocket, f"late {number}")


async def compression_offer():
    async with client(compression="deflate") as websocket:
        await echoed(websocket, "compressible " * 1000)
        await echoed(websocket, os.urandom(1000))


async def going_away():
    async with client() as first, client() as second:
        await echoed(first, "before")
        os.kill(SERVER_PID, signal.SIGTERM)
        for websocket in (first, second):
            try:
                await websocket.recv()
            except ConnectionClosed as closed:
                equal((closed.rcvd and closed.rcvd.code, closed.rcvd_then_sent), (1001, True))
            else:
                raise AssertionError("a message instead of a close")


CHECKS = [
    text,
    binary,
    empty_message,
    fragmented_message,
    ping_between_fragments,
    ping_and_pong,
    many_in_flight,
    largest_message,
    message_too_big,
    close_code,
    subprotocol,
    rejection,
    deferred_accept,
    compression_offer,
    going_away,
]


async def main():
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            await asyncio.wait_for(check(), 60)
            print(f"ok   {name}", flush=True)
        except Exception as error:  # every check is reported, whatever it raised
            failed += 1
            print(f"FAIL {name}: {type(error).__name__}: {error}", flush=True)
    sys.exit(1 if failed else 0)


asyncio.run(main())
