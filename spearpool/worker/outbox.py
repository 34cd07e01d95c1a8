"""One write per turn of the event loop and connection.

Whoever has something to say posts itself here; when all that arrived in this turn has been handled, everybody posted
writes once. A `write` of the transport is a system call each time, and several answers to one peer in a turn are the
rule under load: this halves the cost of an execution.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["Outbox", "Writer"]


class Writer(Protocol):
    """Something with bytes to write. `posted` belongs to the outbox."""

    posted: bool

    def flush(self) -> None:
        """Hand everything that is queued to the transport."""
        ...


class Outbox:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._writers: list[Writer] = []

    def post(self, writer: Writer) -> None:
        """Have `writer.flush()` called at the end of this turn."""
        if not writer.posted:
            writer.posted = True
            if not self._writers:
                self._loop.call_soon(self._flush)
            self._writers.append(writer)

    def _flush(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.posted = False
            writer.flush()
