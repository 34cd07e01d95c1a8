#!/usr/bin/env python3
"""The yardstick for the wire: the least server that uvloop and msgspec make possible.

It knows the version-1 handshake and answers heartbeats, and nothing else: one token, no sessions, no limits, no
time-outs, no metrics. What spearpool's worker does more than this is what its guarantees cost; see `wire.py`.

    python benchmarks/reference_server.py --token 12345678

prints one JSON line with its address and runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import time
from typing import cast

import msgspec
import uvloop

__all__ = ["ReferenceServer", "serve"]


class Timestamp(msgspec.Struct):
    secs_since_epoch: int
    nanos_since_epoch: int


class Message(msgspec.Struct):
    message_type: str
    request_id: int
    timestamp: Timestamp
    payload: list[int]
    version: int = 1


class AuthRequest(msgspec.Struct):
    instance_id: str
    token: str
    client_version: str
    client_type: str
    extra_params: dict[str, str]


class AuthResponse(msgspec.Struct):
    success: bool
    error_message: str | None
    session_id: str | None
    server_version: str
    supported_features: list[str]


class Heartbeat(msgspec.Struct):
    timestamp: Timestamp
    sequence: int
    status: str


ENCODER = msgspec.json.Encoder()
READ_MESSAGE = msgspec.json.Decoder(Message)
READ_AUTH_REQUEST = msgspec.json.Decoder(AuthRequest)
READ_HEARTBEAT = msgspec.json.Decoder(Heartbeat)


def now() -> Timestamp:
    return Timestamp(*divmod(time.time_ns(), 1_000_000_000))


def frame(message_type: str, request_id: int, payload: msgspec.Struct) -> bytes:
    body = ENCODER.encode(Message(message_type, request_id, now(), list(ENCODER.encode(payload))))
    return len(body).to_bytes(4) + body


class ReferenceServer(asyncio.Protocol):
    """One connection."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._buffer = b""
        self._authenticated = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own does not inherit from it

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        answers = []
        while len(buffer) >= 4 and len(buffer) >= (end := 4 + int.from_bytes(buffer[:4])):
            answers.append(self._answer(READ_MESSAGE.decode(buffer[4:end])))
            buffer = buffer[end:]
        self._buffer = buffer
        assert self._transport is not None
        self._transport.write(b"".join(answers))

    def _answer(self, message: Message) -> bytes:
        payload = bytes(message.payload)
        if message.message_type == "Heartbeat" and self._authenticated:
            sequence = READ_HEARTBEAT.decode(payload).sequence
            return frame("Heartbeat", message.request_id, Heartbeat(now(), sequence, "Active"))
        if message.message_type == "AuthRequest":
            self._authenticated = READ_AUTH_REQUEST.decode(payload).token == self._token
            response = AuthResponse(self._authenticated, None, "session", "reference", ["heartbeat"])
            return frame("AuthResponse", message.request_id, response)
        return b""


async def serve(host: str, port: int, token: str) -> None:
    """Print the address, serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ReferenceServer(token), host, port, backlog=1024)
    print(json.dumps(dict(zip(("host", "port"), server.sockets[0].getsockname(), strict=False))), flush=True)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    await stop.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token", required=True)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.host, options.port, options.token))


if __name__ == "__main__":
    main()
