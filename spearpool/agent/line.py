"""A connection for code that blocks: a socket and its session, safe to write from many threads, read by one at a time.

Two locks, never held together for longer than it takes to empty the session: `_state` guards the session, `_sending`
the order of bytes on the wire. A thread that finds `_sending` taken leaves its bytes to the holder, who looks again
after letting go (flat combining); so a reader that has a heartbeat to answer never waits behind a writer whom the peer
keeps waiting, and the two cannot starve each other.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from math import ceil, inf

from spearpool.errors import ConnectionLost
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import Payload
from spearpool.protocol.session import Closed, Session, SessionEvent

__all__ = ["Line", "Watch"]

_READ_BYTES = 64 * 1024
_SEND_TIMEOUT_S = 30
"""How long a peer may leave our bytes lying before the connection counts as lost."""

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
"""The dialling side cannot know the pool's heartbeat interval; the kernel notices a vanished host without it.
A Unix socket has no such options, and its peer cannot vanish."""

_LONGEST_POLL_S = 86_400.0


class Watch:
    """Waits until a line has something to read or to do, or the wake-up descriptor. Each thread has its own."""

    def __init__(self, wake_fd: int | None = None) -> None:
        self._poll = select.poll()
        self._line_fd = -1
        self._wake_fd = -1
        if wake_fd is not None:
            self._wake_fd = wake_fd
            self._poll.register(wake_fd, select.POLLIN)

    def wait(self, line: Line | None, timeout_s: float) -> bool:
        """Whether something came. Else `timeout_s` or the line's time is up; `inf` waits for as long as it takes."""
        fd = -1 if line is None else line.fileno()
        if fd != self._line_fd:
            if self._line_fd != -1:
                self._poll.unregister(self._line_fd)
            if fd != -1:
                self._poll.register(fd, select.POLLIN)
            self._line_fd = fd
        if fd == -1 and line is not None:
            return True  # closed meanwhile: `receive` says so
        if line is not None and line.due < inf:
            timeout_s = min(timeout_s, line.due - time.monotonic())
        ready = self._poll.poll(None if timeout_s == inf else ceil(max(0.0, min(timeout_s, _LONGEST_POLL_S)) * 1000))
        for ready_fd, _ in ready:
            if ready_fd == self._wake_fd:
                os.read(ready_fd, 512)
        return bool(ready)


class Line:
    """One connection. `closed` says why it is over; the last event of `receive` says so, too.

    In monotonic seconds: `read_at` is when `receive` was called last, and `due` when it has something to do although
    nothing arrives (`inf` for never). `fileno` gives -1 once the line is closed on our side.
    """

    def __init__(self, sock: socket.socket, session: Session) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        for level, option, value in _KEEPALIVE if sock.family != socket.AF_UNIX else ():
            sock.setsockopt(level, option, value)
        self._sock = sock
        self._session = session
        self.fileno = sock.fileno
        self.read_at = time.monotonic()
        self.due = session.next_deadline()
        self._state = threading.Lock()
        self._sending = threading.Lock()
        self._unsent = False
        self.closed: Closed | None = None

    def queue(self, payload: Payload, request_id: int | None = None) -> int:
        """Take a message for the next `flush` and return its id.

        Raises `ConnectionLost` when the line is over, `LocalProtocolError` when this cannot be said or is too large.
        """
        with self._state:
            if self.closed is not None:
                raise self._lost()
            number = self._session.send(payload, request_id)
            self._unsent = True
            return number

    def flush(self) -> None:
        """Write what is queued, or leave it to the thread that is writing. A failure ends the line and shows there."""
        while self._unsent and self._sending.acquire(False):
            try:
                with self._state:
                    self._unsent = False
                    data = self._session.data_to_send()
                    self._session.take_sent()
                if data:
                    self._sock.sendall(data)
            except OSError as error:
                self._end(Closed(CloseReason.LOST, _words(error)))
            finally:
                self._sending.release()

    def send(self, payload: Payload, request_id: int | None = None) -> int:
        """`queue` and `flush`. Raises like `queue`; `ConnectionLost` also when it was found lost while writing."""
        number = self.queue(payload, request_id)
        self.flush()
        if self.closed is not None:
            raise self._lost()
        return number

    def receive(self) -> list[SessionEvent]:
        """Take what has arrived, without waiting, and do what is due. `Closed`, once, is the last event of all."""
        try:
            data = self._sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            data = None
        except OSError as error:
            self._end(Closed(CloseReason.LOST, _words(error)))
            data = b""
        self.read_at = now = time.monotonic()
        with self._state:
            events = [] if data is None else self._session.receive_data(data, now)
            if self.due < inf:  # else there will be none any more
                if self.due <= now:
                    events += self._session.expire(now)
                self.due = self._session.next_deadline()
            if self.closed is None and events and isinstance(events[-1], Closed):
                self.closed = events[-1]
            if self._session.take_sent():  # by the session itself: a heartbeat's answer, say
                self._unsent = True
        if self._unsent:
            self.flush()
        return events

    def close(self, reason: CloseReason = CloseReason.PEER, message: str = "") -> None:
        """Say why where that is possible, and close. May be called from any thread, and again."""
        with self._state:
            self._session.close(reason, message)
            self._unsent = True
            self.closed = self.closed or Closed(reason, message)
        self.flush()
        self._end(self.closed)
        with self._sending:  # nobody is inside sendall with this descriptor
            self._sock.close()

    def _end(self, closed: Closed) -> None:
        with self._state:
            if self.closed is None:
                self.closed = closed
        with contextlib.suppress(OSError):  # it has no peer any more
            self._sock.shutdown(socket.SHUT_RDWR)  # whoever waits in poll or send wakes up

    def _lost(self) -> ConnectionLost:
        assert self.closed is not None
        return ConnectionLost(f"the connection is over ({_why(self.closed)})")


def _why(closed: Closed) -> str:
    return f"{closed.reason.value}: {closed.detail}" if closed.detail else closed.reason.value


def _words(error: OSError) -> str:
    return error.strerror or str(error)
