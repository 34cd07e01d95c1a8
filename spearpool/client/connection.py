"""One connection to a pool, shared by many threads, without a thread of its own on the usual path.

Of the threads that wait for an answer one is the reader: it waits on the socket and hands the others what is theirs.
When its own answer has come, it passes the role to one that still waits (the leader/followers pattern, Schmidt et al.,
2000). A single caller therefore sends, waits and reads in its own thread, with no switch.

The keeper, a background thread, does what nobody waits for. Once a second it looks for heartbeats on an idle
connection. It is the reader while futures are open and nobody waits; whoever comes to wait takes the role from it. And
it runs the callbacks of futures, never while it is the reader: what a program does in one, even a call on this very
connection, holds up only other callbacks, and the futures that no thread is waiting for.

To give the role back to the keeper each time a thread stops waiting would cost two switches per answer. So once the
role was taken from it, the keeper is *relaxed*: it looks every 5 ms, and is the reader again when nobody has read for
that long. A program that waits for one future after another thus does its own reading.

Only the reader gives out answers. A request that has been given up is forgotten, so its late answer finds no one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from spearpool.agent.line import Line, Watch
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import ErrorMessage, ExecuteRequest, ExecuteResponse
from spearpool.protocol.session import Closed, Received, SessionEvent

from .outcome import Answer, Lost, Overdue

__all__ = ["Call", "Connection"]

_KEEPER_S = 1.0
_RELAXED_S = 0.005
_STALE_S = 0.01
"""A connection that nobody has read for this long is looked at before a request goes out: it may be over already."""


class Call:
    """A request on its way. `done`, if any, is told the answer by the reader, and must be quick."""

    __slots__ = ("answer", "done", "gate", "give_up_at", "number")

    def __init__(self, give_up_at: float, done: Callable[[Answer], None] | None = None) -> None:
        self.number = 0
        self.answer: Answer | None = None
        self.give_up_at = give_up_at
        self.done = done
        self.gate: threading.Lock | None = None  # of a follower: opened by the answer, or by the role of the reader


class Connection:
    """Takes over an authenticated line. `open` turns false when it is over, for whatever reason."""

    def __init__(self, line: Line, early: list[SessionEvent]) -> None:
        self._line = line
        self._watch = Watch()  # the reader's
        self._reading = threading.Lock()  # held while the reader takes what has arrived
        self._lock = threading.Lock()  # guards all that follows
        self._reader: object | None = None
        self._calls: dict[int, Call] = {}
        self._followers: dict[Call, None] = {}  # that a thread waits for, beside the reader's, oldest first
        self._open_futures = 0
        self._untold: deque[Call] = deque()  # those that are `done` have their answer
        self._over = False
        self._callbacks: deque[Callable[[], None]] = deque()
        self._relaxed = False
        self._ended = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._keepers_watch = Watch(self._wake_fd)
        self._next_sweep = 0.0
        self._keeper = threading.Thread(target=self._keep, name="spearpool-keeper", daemon=True)
        self._take(early)

    def start(self) -> None:
        self._keeper.start()

    @property
    def open(self) -> bool:
        return not self._over and self._line.closed is None

    def close(self) -> None:
        """Whatever is under way ends as `Lost`."""
        self._line.close(CloseReason.DRAIN)
        with self._lock:
            self._wake_keeper()
        if threading.current_thread() is not self._keeper:
            self._keeper.join()

    def call(self, request: ExecuteRequest, give_up_at: float) -> Answer:
        """Send and wait for the final answer until `give_up_at` (monotonic seconds, `inf` for ever).

        Raises `ConnectionLost` when the connection is over and nothing was sent, `LocalProtocolError` when the request
        cannot be sent.
        """
        call = Call(give_up_at)
        try:
            self._send(call, request)
            self._await(call, give_up_at)
        finally:
            self._leave(call)
        return call.answer or Overdue()

    def submit(self, request: ExecuteRequest, give_up_at: float, done: Callable[[Answer], None]) -> Call:
        """Send and return; the reader, whoever that is, calls `done` with the answer. Raises like `call`."""
        call = Call(give_up_at, done)
        self._send(call, request)
        return call

    def wait(self, call: Call, until: float) -> None:
        """Wait until a submitted call has its answer or is given up, or until then; not if another thread does."""
        with self._lock:
            if call.answer is not None or self._reader is call or call in self._followers:
                return
            self._join(call)
        try:
            self._await(call, min(until, call.give_up_at))  # after which the keeper says so
        finally:
            self._leave(call)

    def call_back(self, action: Callable[[], None]) -> None:
        """Have the keeper do this; when it has ended, do it here."""
        with self._lock:
            if not self._ended:
                self._callbacks.append(action)
                if threading.current_thread() is not self._keeper:
                    self._wake_keeper()
                return
        action()

    def _send(self, call: Call, request: ExecuteRequest) -> None:
        if time.monotonic() - self._line.read_at > _STALE_S:
            self._freshen(call)
        with self._lock:
            call.number = self._line.queue(request)
            self._calls[call.number] = call
            if call.done is None:
                self._join(call)
            else:
                self._open_futures += 1
                if self._reader is None and not self._relaxed:
                    self._wake_keeper()
        self._line.flush()

    def _freshen(self, call: Call) -> None:
        with self._lock:
            if self._reader is not None:
                return  # who waits on the socket, and would know
            self._reader = call
        try:
            self._look(call)
        finally:
            self._leave(call)

    def _join(self, call: Call) -> None:
        """Its thread is going to wait: as the reader, if there is none but the keeper."""
        if self._reader is self:
            self._wake_keeper()
        if self._reader is None or self._reader is self:
            self._reader = call
        else:
            call.gate = threading.Lock()
            call.gate.acquire()
            self._followers[call] = None

    def _leave(self, call: Call) -> None:
        with self._lock:
            if call.done is None:
                self._calls.pop(call.number, None)
            self._followers.pop(call, None)
            call.gate = None
            if self._reader is call:
                self._pass_on()

    def _pass_on(self) -> None:
        """Give the role to the caller that has waited longest, or to nobody."""
        self._reader = heir = next((call for call in self._followers if call.answer is None), None)
        if heir is not None:
            del self._followers[heir]
            assert heir.gate is not None
            heir.gate.release()
        elif self._open_futures and not self._relaxed:
            self._wake_keeper()

    def _await(self, call: Call, until: float) -> None:
        if self._reader is call:
            with self._reading:
                pass  # if the role was the keeper's, it may have been giving out this very answer
        while call.answer is None:
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            if self._reader is call:
                self._read(call, self._watch, left_s)
            else:
                assert call.gate is not None
                call.gate.acquire(timeout=min(left_s, threading.TIMEOUT_MAX))

    # The reader's

    def _read(self, me: object, watch: Watch, timeout_s: float) -> None:
        watch.wait(self._line, timeout_s)
        self._look(me)

    def _look(self, me: object) -> None:
        """Take what has arrived, unless somebody else has become the reader meanwhile."""
        with self._reading:
            if self._reader is not me:
                return
            try:
                self._take(self._line.receive())
            except BaseException:  # a Ctrl-C, just now: nobody knows how much was lost, so no answer could be trusted
                self._line.close()
                raise
        self._tell()

    def _take(self, events: list[SessionEvent]) -> None:
        with self._lock:
            for event in events:
                match event:
                    case Received(number, ExecuteResponse() as response) if response.status.final:
                        self._settle(number, response)
                    case Received(number, ErrorMessage() as error):
                        known = number in self._calls
                        self._settle(number if known else error.related_request_id or 0, error)
                    case Closed(reason, detail):
                        for number in list(self._calls):
                            self._settle(number, Lost(f"{reason.value}: {detail}" if detail else reason.value))
                        self._over = True
                        self._wake_keeper()
                    case _:
                        pass  # answered by the session, or news of an execution that goes on

    def _settle(self, number: int, answer: Answer) -> None:
        call = self._calls.pop(number, None)
        if call is None:
            return  # given up
        call.answer = answer
        if call.done is not None:
            self._open_futures -= 1
            self._untold.append(call)
        if call in self._followers:
            assert call.gate is not None
            call.gate.release()

    def _tell(self) -> None:
        while self._untold:
            try:
                call = self._untold.popleft()
            except IndexError:
                return  # another thread was quicker
            assert call.done is not None
            assert call.answer is not None
            call.done(call.answer)
            call.done = None  # which may hold what holds the call

    # The keeper's

    def _keep(self) -> None:
        try:
            while not self._over:
                if self._becomes_reader():
                    self._read(self, self._keepers_watch, _KEEPER_S if self._open_futures else 0.0)
                    self._stops_reading()
                else:
                    self._keepers_watch.wait(None, _RELAXED_S if self._relaxed else _KEEPER_S)
                self._give_up_late_ones(time.monotonic())
                self._tell()
                self._run_callbacks()
        finally:
            self._line.close()
            if not self._over and self._becomes_reader():  # a callback said `sys.exit()`
                self._look(self)
            with self._lock:
                self._ended = True
                os.close(self._wake_fd)
            self._tell()
            self._run_callbacks()

    def _wake_keeper(self) -> None:
        if not self._ended:
            os.eventfd_write(self._wake_fd, 1)

    def _becomes_reader(self) -> bool:
        with self._lock:
            unread_s = time.monotonic() - self._line.read_at
            if unread_s >= _RELAXED_S:
                self._relaxed = False
            if self._reader is not None:
                return False
            if unread_s < _KEEPER_S and self._line.closed is None and (self._relaxed or not self._open_futures):
                return False
            self._reader = self
            return True

    def _stops_reading(self) -> None:
        with self._lock:
            if self._reader is self:
                self._reader = None
            else:
                self._relaxed = True

    def _run_callbacks(self) -> None:
        while self._callbacks:
            self._callbacks.popleft()()

    def _give_up_late_ones(self, now: float) -> None:
        """Once a second at most: there may be thousands. The pool minds their deadlines; this is the net below."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + _KEEPER_S
        with self._lock:
            for number in [n for n, call in self._calls.items() if call.done is not None and call.give_up_at <= now]:
                self._settle(number, Overdue())
