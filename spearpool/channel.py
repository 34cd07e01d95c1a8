"""A control channel between two of our processes: one typed record per datagram, with file descriptors.

A `SOCK_SEQPACKET` socketpair keeps record boundaries, passes descriptors by SCM_RIGHTS and reads as EOF when the other
process is gone, however it went. Nothing here blocks: a record that does not fit the socket's buffer waits in memory
until `flush` (the owner's loop calls it when the socket is writable, see `wants_write`).
Descriptors that arrive belong to the receiver; those sent are duplicated at `send` and stay the sender's.
"""

from __future__ import annotations

import array
import os
import select
import socket
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from .packing import Packer

__all__ = ["MAX_RECORD_BYTES", "Channel", "ChannelClosed"]

In = TypeVar("In")
Out = TypeVar("Out")

MAX_RECORD_BYTES = 160 * 1024
"""Larger datagrams do not fit the kernel's default socket buffer (EMSGSIZE above about 200 KB)."""

_MAX_FDS = 16


class ChannelClosed(Exception):
    """The other process is gone."""


class Channel(Generic[In, Out]):
    """Sends `Out` records and receives `In` records, each with up to 16 descriptors.

    Descriptors that a process has no room for are an error (the channel is closed), unless it `may_lack_fds`: then the
    record comes without them.
    """

    def __init__(
        self, sock: socket.socket, incoming: Packer[In], outgoing: Packer[Out], *, may_lack_fds: bool = False
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._may_lack_fds = may_lack_fds
        self._incoming = incoming
        self._outgoing = outgoing
        self._waiting: deque[tuple[bytes, list[int]]] = deque()

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two connected ends, close-on-exec."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._waiting)

    @property
    def hung_up(self) -> bool:
        """Whether the other end is closed by now, though what it said last may still be unread."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return bool(poll.poll(0))

    def send(self, record: Out, fds: Sequence[int] = ()) -> None:
        """Send or queue one record. Raises `ChannelClosed` when nobody is there to read it."""
        data = self._outgoing.pack(record)
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError(f"control record of {len(data)} bytes; at most {MAX_RECORD_BYTES} fit")
        if self._waiting or not self._try_send(data, fds):
            self._waiting.append((data, [os.dup(fd) for fd in fds]))

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it. Raises `ChannelClosed`."""
        while self._waiting:
            data, fds = self._waiting[0]
            if not self._try_send(data, fds):
                return
            self._waiting.popleft()
            for fd in fds:
                os.close(fd)

    def receive(self) -> tuple[In, list[int]] | None:
        """The next record and its descriptors, or None when there is none now. Raises `ChannelClosed` at EOF."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                MAX_RECORD_BYTES, socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionError as error:
            raise ChannelClosed(str(error)) from None
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if not data:
            raise ChannelClosed("end of file")
        if flags & socket.MSG_TRUNC or (flags & socket.MSG_CTRUNC and not self._may_lack_fds):
            for fd in fds:
                os.close(fd)
            raise ChannelClosed("a record was cut off: too many descriptors or bytes")
        return self._incoming.unpack(data), list(fds)

    def close(self) -> None:
        for _, fds in self._waiting:
            for fd in fds:
                os.close(fd)
        self._waiting.clear()
        self._sock.close()

    def _try_send(self, data: bytes, fds: Sequence[int]) -> bool:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError as error:
            raise ChannelClosed(str(error)) from None
        return True
