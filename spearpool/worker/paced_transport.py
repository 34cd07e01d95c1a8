"""A transport that reads and writes no faster than a token bucket allows, between asyncio's and a protocol.

Reading stops while more has arrived than the rate allows; the peer then finds its socket full, and waits. What is
written beyond the allowance is kept here and follows in pieces. A connection that has no rate has none of this: the
wrapper puts itself in front of the protocol with `set_protocol`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .pace import Pace

__all__ = ["PacedTransport"]


class PacedTransport(asyncio.Transport, asyncio.Protocol):
    """`count(size_bytes, waits)` is told of all that passes, both ways, and how often it had to begin to wait."""

    def __init__(
        self, inner: asyncio.Transport, protocol: asyncio.Protocol, pace: Pace, count: Callable[[int, int], None]
    ) -> None:
        super().__init__()
        self._inner = inner
        self._protocol = protocol
        self._pace = pace
        self._count = count
        self._backlog = bytearray()
        self._eof_waits = False
        self._held = False  # by the protocol
        self._in_debt = False
        self._timer: asyncio.TimerHandle | None = None
        inner.set_protocol(self)

    @property
    def in_debt(self) -> bool:
        """Whether nothing is read because too much has been read: the peer's silence means nothing now."""
        return self._in_debt

    # ------------------------------------------------------------------------------------------ what asyncio calls

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._pace.take(len(data), now)
        began = not self._in_debt and not self._inner.is_closing() and self._pace.allowance(now) < 0
        self._count(len(data), int(began))
        if began:
            self._in_debt = True
            self._inner.pause_reading()
            self._wait(now)
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # ------------------------------------------------------------------------------------- what the protocol calls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._backlog:
            self._backlog += data
            return
        now = time.monotonic()
        allowed = max(0, self._pace.allowance(now))
        if len(data) <= allowed:
            self._pass(data, now, waits=0)
            return
        self._backlog += memoryview(data)[allowed:]
        self._pass(memoryview(data)[:allowed], now, waits=1)
        self._wait(now)

    def write_eof(self) -> None:
        self._eof_waits = bool(self._backlog)
        if not self._eof_waits:
            self._inner.write_eof()

    def pause_reading(self) -> None:
        self._held = True
        if not self._in_debt:
            self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._held = False
        if not self._in_debt:
            self._inner.resume_reading()

    def get_write_buffer_size(self) -> int:
        return len(self._backlog) + self._inner.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def close(self) -> None:
        """What still waits for its turn is not sent."""
        self._forget()
        self._inner.close()

    def abort(self) -> None:
        self._forget()
        self._inner.abort()

    # ------------------------------------------------------------------------------------------------------- waiting

    def _pass(self, data: bytes | bytearray | memoryview, now: float, waits: int) -> None:
        self._pace.take(len(data), now)
        self._count(len(data), waits)
        if data:
            self._inner.write(bytes(data))

    def _wait(self, now: float) -> None:
        if self._timer is None:
            delay_s = self._pace.wait_s(len(self._backlog), now)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._go_on)

    def _go_on(self) -> None:
        """Some time has passed: write what may be written now, then read again, so that neither keeps the other out."""
        self._timer = None
        if self._inner.is_closing():
            self._forget()
            return
        now = time.monotonic()
        allowed = self._pace.allowance(now)
        if self._backlog and allowed > 0:
            piece = bytes(memoryview(self._backlog)[:allowed])
            del self._backlog[:allowed]
            self._pass(piece, now, waits=0)
            if self._eof_waits and not self._backlog:
                self._inner.write_eof()
        if self._in_debt and self._pace.allowance(now) >= 0:
            self._in_debt = False
            if not self._held:
                self._inner.resume_reading()
        if self._backlog or self._in_debt:
            self._wait(now)

    def _forget(self) -> None:
        self._backlog.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
