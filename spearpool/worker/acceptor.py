"""Accept at a listener that other processes accept at as well: a connection is taken by exactly one of them.

It is done by hand: asyncio's own server drops what it has accepted when it is closed in the same turn, and would remove
the path of a Unix socket that is not its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable

from spearpool.log import get_logger

__all__ = ["RETRY_S", "Acceptor", "is_of_our_user"]

RETRY_S = 0.5
"""When to try again after the kernel had no descriptor or no memory for us."""

_CREDENTIALS = struct.Struct("3i")
"""`struct ucred`: pid, uid, gid."""


def is_of_our_user(sock: socket.socket) -> bool:
    """Whether a process of our own user, or of root, is at the other end of this Unix socket."""
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid in {os.geteuid(), 0}


class Acceptor:
    """Accepts until it is closed; `new_connection` makes the protocol of each connection.

    `batch` is how many are taken in one turn of the loop: 1 leaves the next to whoever is idle. Who is not `admitted`
    is hung up on without a word. `listener` is ours.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        new_connection: Callable[[], asyncio.BaseProtocol],
        batch: int,
        admitted: Callable[[socket.socket], bool] = lambda _sock: True,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._new_connection = new_connection
        self._batch = batch
        self._admitted = admitted
        self._closed = False
        self._beginnings: set[asyncio.Task[None]] = set()
        self._watch()

    def close(self) -> None:
        """Accept nothing more; what has been accepted stays."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _watch(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(self._batch):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return  # others have taken them
            except ConnectionError:
                continue  # this one did not want to wait
            except OSError as error:
                get_logger("acceptor").warning("cannot accept", reason=error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(RETRY_S, self._watch)
                return
            if not self._admitted(sock):
                sock.close()
                continue
            sock.setblocking(False)
            beginning = self._loop.create_task(self._open(sock))
            self._beginnings.add(beginning)
            beginning.add_done_callback(self._beginnings.discard)

    async def _open(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._new_connection, sock)
        except OSError:  # the peer has gone already
            sock.close()
