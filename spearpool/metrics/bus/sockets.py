"""ZeroMQ sockets, wrapped for the two places where they are used: on the supervisor's loop, and in a plain program.

A zmq socket's descriptor is edge-triggered and speaks of *some* change inside: it must be drained until `EVENTS` says
that there is nothing to read, and looked at again after every send, because sending may swallow the edge. (pyzmq's
asyncio sockets do the same with a Future per message; plain callbacks suffice here.)
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from spearpool.errors import NoSuchPool, PoolError

__all__ = ["Line", "LoopSocket", "PoolGone"]

_DRAIN_AT_ONCE = 64
"""Messages read before the loop gets a turn."""

_NEVER_MS = 24 * 3600 * 1000
_NO_CONNECTION = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_CLOSED

Frames = Sequence[bytes]


def _path_of(endpoint: str) -> Path | None:
    """The socket file of an ipc endpoint."""
    return Path(endpoint.removeprefix("ipc://")) if endpoint.startswith("ipc://") else None


class PoolGone(PoolError):
    """The other end of a line closed, or was never there."""


class LoopSocket:
    """A bound socket on an asyncio loop. `receive` is called with the frames of each message."""

    def __init__(self, socket: zmq.Socket[bytes], receive: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._receive = receive
        self._loop: asyncio.AbstractEventLoop | None = None
        self._again: asyncio.Handle | None = None
        self._path: Path | None = None

    def bind(self, loop: asyncio.AbstractEventLoop, endpoint: str) -> None:
        """Bind with no access for others, and read from now on. Raises `PoolError`."""
        before = os.umask(0o177)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise PoolError(f"cannot bind {endpoint}: {error.strerror}") from None
        finally:
            os.umask(before)
        self._path = _path_of(endpoint)
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._drain)

    def send(self, frames: Frames) -> None:
        """Hand a message to zmq, which drops it for peers that are gone or too far behind: this never waits."""
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        self._look_again()

    def close(self, linger_ms: int = 0) -> None:
        """Unbind. What was sent is still delivered for `linger_ms`, while the context ends."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop = None
        if self._again is not None:
            self._again.cancel()
        self._socket.close(linger_ms)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _drain(self) -> None:
        self._again = None
        for _ in range(_DRAIN_AT_ONCE):
            if self._loop is None or not self._readable():
                return
            self._receive(self._socket.recv_multipart(zmq.NOBLOCK))
        self._look_again()

    def _look_again(self) -> None:
        if self._loop is not None and self._again is None and self._readable():
            self._again = self._loop.call_soon(self._drain)

    def _readable(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


class Line:
    """A socket towards a pool, for a program without a loop. It knows when the pool is gone.

    It never connects a second time: what answers later at the same path is another pool.
    """

    def __init__(self, kind: int, endpoint: str, high_water_mark: int = 0) -> None:
        """Raises `NoSuchPool` when nothing is bound at `endpoint`."""
        self.endpoint = endpoint
        path = _path_of(endpoint)
        if path is not None and not path.exists():
            raise NoSuchPool(f"no pool answers at {endpoint}: there is no such socket")
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(kind)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, high_water_mark)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # a subscription beyond the mark would be dropped without a word
        # An interval of -1 would drop what has arrived but was not read yet, together with the connection.
        self._socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(_NO_CONNECTION)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._gone = False
        self._socket.connect(endpoint)

    def subscribe(self, prefix: bytes) -> None:
        self._socket.setsockopt(zmq.SUBSCRIBE, prefix)

    def unsubscribe(self, prefix: bytes) -> None:
        self._socket.setsockopt(zmq.UNSUBSCRIBE, prefix)

    def send(self, frames: Frames) -> None:
        self._socket.send_multipart(frames)

    def receive(self, deadline: float) -> list[bytes] | None:
        """The next message, or None when there is none until `deadline` (monotonic seconds).

        Raises `PoolGone` once the connection is lost and all that had arrived is read.
        """
        while True:
            with contextlib.suppress(zmq.Again):
                return self._socket.recv_multipart(zmq.NOBLOCK)
            if self._gone:
                raise PoolGone(f"the pool behind {self.endpoint} is gone")
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            ready = self._poller.poll(math.ceil(remaining * 1000))
            if any(socket is self._monitor for socket, _ in ready):
                recv_monitor_message(self._monitor, zmq.NOBLOCK)
                self._gone = True

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()
