"""Listeners that are lent to this worker: those of slots whose own worker is not there.

The supervisor lends a duplicate of the slot's listening socket while connections could wait in its queue for nobody,
and takes it back when the slot has a worker again. For a moment both may accept.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from .acceptor import Acceptor

__all__ = ["Rescuer"]

BATCH = 64
"""How many connections of one slot are accepted in one turn of the loop."""


class Rescuer:
    """Accepts at lent listeners; `new_connection` makes the protocol of each connection, as for the worker's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, new_connection: Callable[[], asyncio.BaseProtocol]) -> None:
        self._loop = loop
        self._new_connection = new_connection
        self._acceptors: dict[int, Acceptor] = {}

    def begin(self, slot: int, listener: socket.socket) -> None:
        """Accept what waits at this slot, and what comes to it. The socket is ours."""
        self.over(slot)
        self._acceptors[slot] = Acceptor(self._loop, listener, self._new_connection, BATCH)

    def over(self, slot: int) -> None:
        """Its own worker is there."""
        acceptor = self._acceptors.pop(slot, None)
        if acceptor is not None:
            acceptor.close()

    def close(self) -> None:
        """Accept nothing more for others."""
        for slot in list(self._acceptors):
            self.over(slot)
