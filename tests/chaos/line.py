"""One connection of a client that knows only the wire: plain frames and `json`, nothing of spearpool.

So it can judge the pool whatever the pool's own code says. A `Line` that ends without our doing has been *cut* (reset,
or closed without a word) or *dismissed* (closed with a ConnectionClose). Everything is counted in a `Tally`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

__all__ = ["Cut", "Dismissed", "Line", "LineEnded", "NotAdmitted", "Tally", "dial"]

MAX_EXAMPLES = 5
EXECUTION_TIMEOUT_S = 20
OUTCOME_UNKNOWN = 502
NOT_FINAL = frozenset({"Received", "Started", "Running"})
SMALL_BUFFER_BYTES = 8192

Document = dict[str, Any]


class LineEnded(Exception):
    """The pool ended the connection."""


class Cut(LineEnded):
    """Reset, or closed without a word."""


class Dismissed(LineEnded):
    """With a ConnectionClose, whose reason this is."""


class NotAdmitted(LineEnded):
    """The AuthRequest was answered with a no."""


@dataclass
class Tally:
    """What clients saw. `examples` tells of a few things that should not have been."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def wrong(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"{kind}: {example}")


@dataclass(frozen=True, slots=True)
class _Owed:
    """An answer that is to come."""

    task: str
    expected: bytes
    since_s: float
    settled: asyncio.Future[None]

    def settle(self) -> None:
        if not self.settled.done():  # else nobody waits any more
            self.settled.set_result(None)


class Line(asyncio.Protocol):
    """A connection. Made by `dial`, which returns it authenticated."""

    def __init__(self, tally: Tally, token: str, label: str) -> None:
        loop = asyncio.get_running_loop()
        self.admitted: asyncio.Future[None] = loop.create_future()
        self.local_port = 0
        self.ended: LineEnded | None = None
        self._tally = tally
        self._token = token
        self._label = label
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._owed: dict[int, _Owed] = {}
        self._last_id = 0
        self._goodbye: str | None = None
        self._leaving = False

    def execute(self, task: str, data: bytes, expected: bytes, *args: str) -> asyncio.Future[None]:
        """Submit an execution; the future is done when it has been judged and counted, or the connection is gone."""
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request: Document = {"task_id": task, "command": "", "args": args, "env": {}, "working_dir": None}
        request |= {"timeout": EXECUTION_TIMEOUT_S, "mode": "Sync", "input_data": list(data)}
        self._owed[self._send("ExecuteRequest", request)] = _Owed(task, expected, time.monotonic(), settled)
        self._tally.counts["executions"] += 1
        return settled

    @property
    def gone(self) -> bool:
        """Whether there is no connection, yet or any more."""
        return self._transport is None

    def give_up(self) -> None:
        """Count the executions that have no final answer by now, and leave."""
        for request_id, owed in self._owed.items():
            waited_s = time.monotonic() - owed.since_s
            self._tally.wrong("without a final status", f"{owed.task}, request {request_id}: {waited_s:.1f} s")
        self.leave()

    def read_nothing(self) -> None:
        """Be a slow client, until `read_on`."""
        if self._transport is not None:
            self._transport.pause_reading()

    def read_on(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def leave(self) -> None:
        """Say goodbye and close."""
        if self._transport is not None:
            self._leaving = True
            self._send("ConnectionClose", {"reason": "done"})
            self._transport.close()

    def abandon(self) -> None:
        """Close at once, without a word."""
        if self._transport is not None:
            self._leaving = True
            self._transport.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.local_port = transport.get_extra_info("sockname")[1]
        request = {"instance_id": self._label, "token": self._token, "client_version": "1", "client_type": "chaos"}
        self._send("AuthRequest", request | {"extra_params": {}})

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:
            end = 4 + int.from_bytes(self._buffer[:4])
            if len(self._buffer) < end:
                return
            message = json.loads(self._buffer[4:end])
            del self._buffer[:end]
            payload = bytes(message["payload"])
            self._receive(message["message_type"], message["request_id"], json.loads(payload) if payload else {})

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._leaving:
            self._ended_by_pool(exc)
        owed, self._owed = self._owed, {}
        for each in owed.values():
            each.settle()

    def _ended_by_pool(self, exc: Exception | None) -> None:
        if self.ended is None:
            self.ended = Cut(repr(exc or "end of stream")) if self._goodbye is None else Dismissed(self._goodbye)
        if isinstance(self.ended, Cut):
            self._tally.counts["reset"] += 1
        elif isinstance(self.ended, Dismissed):
            self._tally.wrong("dismissed", str(self.ended))
        if not self.admitted.done():
            self.admitted.set_exception(self.ended)
        self._tally.counts["lost with their connection"] += len(self._owed)

    # Messages

    def _send(self, kind: str, payload: Document, request_id: int | None = None) -> int:
        if request_id is None:
            request_id = self._last_id = self._last_id + 1
        now = time.time_ns()
        message = {
            "message_type": kind,
            "request_id": request_id,
            "timestamp": {"secs_since_epoch": now // 10**9, "nanos_since_epoch": now % 10**9},
            "payload": list(json.dumps(payload, separators=(",", ":")).encode()),
            "version": 1,
        }
        body = json.dumps(message, separators=(",", ":")).encode()
        if self._transport is not None:
            self._transport.write(len(body).to_bytes(4) + body)
        return request_id

    def _receive(self, kind: str, request_id: int, payload: Document) -> None:
        match kind:
            case "AuthResponse" if payload["success"]:
                self.admitted.set_result(None)
            case "AuthResponse":
                self.ended = NotAdmitted(payload["error_message"])
                self._tally.wrong("not admitted", str(self.ended))
                self.admitted.set_exception(self.ended)
            case "Heartbeat":
                self._send("Heartbeat", payload, request_id)
            case "ConnectionClose":
                self._goodbye = payload.get("reason", "")
            case "ExecuteResponse" if payload["status"] in NOT_FINAL:
                pass
            case "ExecuteResponse" | "Error":
                self._answered(kind, request_id, payload)
            case _:
                self._tally.wrong("stray", f"{kind} {request_id}")

    def _answered(self, kind: str, request_id: int, payload: Document) -> None:
        owed = self._owed.pop(request_id, None)
        if owed is None:
            known = 0 < request_id <= self._last_id
            self._tally.wrong("duplicate" if known else "stray", f"{kind} {request_id}: {payload}"[:200])
            return
        owed.settle()
        if kind == "Error":
            self._tally.wrong("refused executions", f"{owed.task}: {payload['error_code']} {payload['message']}")
        elif payload["status"] == "Completed":
            output, data = payload.get("output"), payload.get("output_data")
            answer = output.encode() if output is not None else bytes(data or b"")
            if answer == owed.expected:
                self._tally.counts["right"] += 1
            else:
                self._tally.wrong("wrong", f"{owed.task}: expected {owed.expected[:60]!r}, got {answer[:60]!r}")
        elif payload.get("error_code") == OUTCOME_UNKNOWN:
            self._tally.counts["outcome unknown"] += 1
        else:
            self._tally.wrong("failed", f"{owed.task}: {payload['status']} {payload.get('error')}")


async def dial(
    tally: Tally, address: tuple[str, int], token: str, label: str, *, timeout_s: float, slow: bool = False
) -> Line:
    """An authenticated connection; `slow` for one whose kernel does not buffer much for it.

    Raises `OSError` (counted by the caller), `TimeoutError` and `LineEnded`.
    """
    sock = socket.socket()
    sock.setblocking(False)
    if slow:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
    loop = asyncio.get_running_loop()
    line = Line(tally, token, label)
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, address)
            await loop.create_connection(lambda: line, sock=sock)
            await line.admitted
    except BaseException:
        if line.gone:
            sock.close()
        line.abandon()
        raise
    return line
