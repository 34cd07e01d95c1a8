"""Listeners that are lent to this worker: those of slots whose own worker is not there.

The supervisor lends a duplicate of the slot's listening socket while connections could wait in its queue for nobody,
and takes it back when the slot has a worker again. For a moment both may accept: a connection is taken by exactly one.
They are accepted by hand: asyncio's own server drops what it has accepted when it is closed in the same turn.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from spearpool.log import get_logger

__all__ = ["Rescuer"]

BATCH = 64
"""How many connections of one slot are accepted in one turn of the loop."""

RETRY_S = 0.5
"""When to try again after the kernel had no descriptor or no memory for us."""


class Rescuer:
    """Accepts at lent listeners; `new_connection` makes the protocol of each connection, as for the worker's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, new_connection: Callable[[], asyncio.BaseProtocol]) -> None:
        self._loop = loop
        self._new_connection = new_connection
        self._listeners: dict[int, socket.socket] = {}
        self._beginnings: set[asyncio.Task[None]] = set()
        self._log = get_logger("rescue")

    def begin(self, slot: int, listener: socket.socket) -> None:
        """Accept what waits at this slot, and what comes to it. The socket is ours."""
        self.over(slot)
        self._listeners[slot] = listener
        self._watch(slot, listener)

    def over(self, slot: int) -> None:
        """Its own worker is there."""
        listener = self._listeners.pop(slot, None)
        if listener is not None:
            self._loop.remove_reader(listener)
            listener.close()

    def close(self) -> None:
        """Accept nothing more for others."""
        for slot in list(self._listeners):
            self.over(slot)

    def _watch(self, slot: int, listener: socket.socket) -> None:
        if self._listeners.get(slot) is listener:  # else it was taken back meanwhile
            self._loop.add_reader(listener, self._accept, slot, listener)

    def _accept(self, slot: int, listener: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return  # all are taken, by us or by the slot's heir
            except ConnectionError:
                continue  # this one did not want to wait
            except OSError as error:
                self._log.warning("cannot accept for a neighbour", slot=slot, reason=error.strerror)
                self._loop.remove_reader(listener)
                self._loop.call_later(RETRY_S, self._watch, slot, listener)
                return
            sock.setblocking(False)
            beginning = self._loop.create_task(self._open(sock))
            self._beginnings.add(beginning)
            beginning.add_done_callback(self._beginnings.discard)

    async def _open(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._new_connection, sock)
        except OSError:  # the peer has gone already
            sock.close()
