"""`ask`: commands to a running pool, one request and one reply.

A request is a MessagePack map `{command, arguments}`; the reply `{ok: true, result}` or `{ok: false, error, code}`,
with the codes of the wire's `Error`. `Desk` is the supervisor's end, `ask` the caller's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import zmq

from spearpool.errors import ConfigError, Draining, ErrorCode, Overloaded, RequestRefused, SpearpoolError, UnknownTask
from spearpool.packing import Packer, Section, UnpackError

from .sockets import Line, LoopSocket

__all__ = ["Desk", "Handler", "ask"]

Handler = Callable[[dict[str, Any]], "dict[str, Any] | Awaitable[dict[str, Any]]"]
"""Takes the arguments and gives the result. A `RequestRefused` is passed on with its code."""


class Request(Section, frozen=True):
    command: str
    arguments: dict[str, Any] = {}


class Reply(Section, frozen=True, omit_defaults=True):
    ok: bool
    result: dict[str, Any] | None = None
    error: str | None = None
    code: int | None = None


_REQUESTS: Packer[Request] = Packer(Request)
_REPLIES: Packer[Reply] = Packer(Reply)

_REFUSALS: Mapping[int, type[RequestRefused]] = {
    ErrorCode.UNKNOWN: UnknownTask,
    ErrorCode.OVERLOADED: Overloaded,
    ErrorCode.DRAINING: Draining,
}

_CODES: tuple[tuple[type[Exception], ErrorCode], ...] = (
    (UnpackError, ErrorCode.MALFORMED),
    (ConfigError, ErrorCode.MALFORMED),
    (TimeoutError, ErrorCode.TIMED_OUT),
    (SpearpoolError, ErrorCode.INTERNAL),
)


def ask(endpoint: str, command: str, arguments: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Ask a pool and wait for its answer.

    Raises `NoSuchPool` when nothing is bound there, `PoolGone` when the pool goes before it answers, `RequestRefused`
    (`UnknownTask`, `Overloaded`, `Draining` by its code) when it says no, and `TimeoutError`.
    """
    line = Line(zmq.REQ, endpoint)
    try:
        line.send([_REQUESTS.pack(Request(command, arguments))])
        frames = line.receive(time.monotonic() + timeout_s)
    finally:
        line.close()
    if frames is None:
        raise TimeoutError(f"the pool at {endpoint} did not answer {command!r} within {timeout_s:g} s")
    reply = _REPLIES.unpack(frames[-1])
    if reply.ok:
        return reply.result or {}
    code = reply.code or ErrorCode.INTERNAL
    refusal = _REFUSALS.get(code, RequestRefused)
    raise refusal(reply.error or f"the pool refused {command!r}", code)


class Desk:
    """Answers requests through handlers, which may be coroutines; a slow one does not delay the others."""

    def __init__(self, socket: zmq.Socket[bytes], handlers: Mapping[str, Handler]) -> None:
        self._socket = LoopSocket(socket, self._receive)
        self._handlers = handlers
        self._running: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self, loop: asyncio.AbstractEventLoop, endpoint: str) -> None:
        self._loop = loop
        self._socket.bind(loop, endpoint)

    def close(self, linger_ms: int = 0) -> None:
        for task in self._running:
            task.cancel()
        self._socket.close(linger_ms)

    def _receive(self, frames: list[bytes]) -> None:
        *envelope, body = frames  # a REQ puts an empty frame before the body, a DEALER need not
        try:
            answer = self._begin(_REQUESTS.unpack(body))
            reply = _granted(answer) if isinstance(answer, dict) else None
        except Exception as error:  # noqa: BLE001 - whatever a request brings about is its sender's to know
            self._socket.send([*envelope, self._refused(error)])
            return
        if reply is not None:
            self._socket.send([*envelope, reply])
        else:
            assert self._loop is not None
            task = self._loop.create_task(self._finish(envelope, cast(Awaitable[dict[str, Any]], answer)))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _begin(self, request: Request) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        handler = self._handlers.get(request.command)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise RequestRefused(f"no command {request.command!r}; there are {known}", ErrorCode.UNKNOWN)
        return handler(request.arguments)

    async def _finish(self, envelope: list[bytes], answer: Awaitable[dict[str, Any]]) -> None:
        try:
            reply = _granted(await answer)
        except Exception as error:  # noqa: BLE001 - as above
            reply = self._refused(error)
        self._socket.send([*envelope, reply])

    def _refused(self, error: Exception) -> bytes:
        """The reply that says so. An error that nobody raised on purpose is also reported to the loop."""
        if isinstance(error, RequestRefused):
            code, text = error.code, str(error)
        else:
            code = next((code for kind, code in _CODES if isinstance(error, kind)), 0)
            text = str(error)
        if not code:
            assert self._loop is not None
            self._loop.call_exception_handler({"message": "a command of the bus failed", "exception": error})
            code, text = ErrorCode.INTERNAL, f"internal error: {error!r}"
        return _REPLIES.pack(Reply(ok=False, error=text, code=code))


def _granted(result: dict[str, Any]) -> bytes:
    return _REPLIES.pack(Reply(ok=True, result=result))
