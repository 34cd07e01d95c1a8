"""One connection to a pool, shared by many threads, without a thread of its own on the usual path.

Of the threads that wait for an answer one is the reader: it waits on the socket and hands the others what is theirs.
When its own answer has come, it passes the role to one that still waits (the leader/followers pattern, Schmidt et al.,
2000). A single caller therefore sends, waits and reads in its own thread, with no switch.

Two things have nobody who waits: the heartbeats of an idle connection, and executions whose answer goes to a `Future`.
They are the keeper's, a background thread. It looks once a second, reads what is there if nobody else does, and is the
reader itself while futures are open. Only the keeper completes futures, and never while it is the reader: what a
program does in a future's callback, even a call on this very connection, holds up nobody but other callbacks.

Only the reader gives out answers. A request that has been given up is forgotten, so its late answer finds no one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from spearpool.agent.line import Line, Watch
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import ErrorMessage, ExecuteRequest, ExecuteResponse
from spearpool.protocol.session import Closed, Received, SessionEvent

from .outcome import Answer, Lost, Overdue

__all__ = ["Connection"]

_KEEPER_S = 1.0
_STALE_S = 0.01
"""A connection that nobody has read for this long is looked at before a request goes out: it may be over already."""


class _Call:
    """A request on its way. `gate` wakes a caller who waits; `done` takes the answer of one who does not."""

    __slots__ = ("answer", "done", "gate", "give_up_at", "number")

    def __init__(self, give_up_at: float, done: Callable[[Answer], None] | None = None) -> None:
        self.number = 0
        self.answer: Answer | None = None
        self.give_up_at = give_up_at
        self.done = done
        self.gate = threading.Lock()
        self.gate.acquire()


class Connection:
    """Takes over an authenticated line. `open` turns false when it is over, for whatever reason."""

    def __init__(self, line: Line, early: list[SessionEvent]) -> None:
        self._line = line
        self._watch = Watch()  # the reader's
        self._lock = threading.Lock()  # guards all that follows
        self._reader: object | None = None
        self._calls: dict[int, _Call] = {}
        self._followers: dict[_Call, None] = {}  # callers that wait for an answer or for the role, oldest first
        self._open_futures = 0
        self._done: deque[_Call] = deque()
        self._read_at = time.monotonic()
        self._over = False
        self._next_sweep = 0.0
        self._wake = threading.Event()
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
        self._wake.set()
        if threading.current_thread() is not self._keeper:
            self._keeper.join()

    def call(self, request: ExecuteRequest, give_up_at: float) -> Answer:
        """Send and wait for the final answer until `give_up_at` (monotonic seconds, `inf` for ever).

        Raises `ConnectionLost` when the connection is over and nothing was sent, `LocalProtocolError` when the request
        cannot be sent.
        """
        call = _Call(give_up_at)
        with self._lock:
            if self._reader is None:
                self._reader = call
        try:
            if self._reader is call and time.monotonic() - self._read_at > _STALE_S:
                self._take(self._line.receive())
            self._post(call, request)
            return self._await(call)
        finally:
            with self._lock:
                self._calls.pop(call.number, None)
                self._followers.pop(call, None)
                if self._reader is call:
                    self._pass_on()

    def submit(self, request: ExecuteRequest, give_up_at: float, done: Callable[[Answer], None]) -> None:
        """Send and return; the keeper calls `done` with the answer. Raises like `call`."""
        self._post(_Call(give_up_at, done), request)
        self._wake.set()

    def _post(self, call: _Call, request: ExecuteRequest) -> None:
        with self._lock:
            call.number = self._line.queue(request)
            self._calls[call.number] = call
            if call.done is not None:
                self._open_futures += 1
            elif self._reader is None:
                self._reader = call  # whoever read when we came has left
            elif self._reader is not call:
                self._followers[call] = None
        self._line.flush()

    def _await(self, call: _Call) -> Answer:
        while call.answer is None:
            left_s = call.give_up_at - time.monotonic()
            if left_s <= 0:
                return Overdue()
            if self._reader is call:
                self._read(left_s)
            else:
                call.gate.acquire(timeout=min(left_s, threading.TIMEOUT_MAX))
        return call.answer

    # The reader's

    def _read(self, timeout_s: float) -> None:
        self._watch.wait(self._line, min(timeout_s, self._line.next_deadline() - time.monotonic()))
        self._take(self._line.receive())

    def _take(self, events: list[SessionEvent]) -> None:
        with self._lock:
            self._read_at = time.monotonic()
            for event in events:
                match event:
                    case Received(message, ExecuteResponse() as response) if response.status.final:
                        self._settle(message.request_id, response)
                    case Received(message, ErrorMessage() as error):
                        known = message.request_id in self._calls
                        self._settle(message.request_id if known else error.related_request_id or 0, error)
                    case Closed(reason, detail):
                        for number in list(self._calls):
                            self._settle(number, Lost(f"{reason.value}: {detail}" if detail else reason.value))
                        self._over = True  # last: the keeper, without the lock, takes it to mean that all are settled
                        self._wake.set()
                    case _:
                        pass  # answered by the session, or news of an execution that goes on

    def _settle(self, number: int, answer: Answer) -> None:
        call = self._calls.pop(number, None)
        if call is None:
            return  # given up
        call.answer = answer
        if call.done is not None:
            self._open_futures -= 1
            self._done.append(call)
            self._wake.set()
        elif self._reader is not call:
            call.gate.release()

    def _pass_on(self) -> None:
        """Give the role to the caller that has waited longest, or to nobody: the keeper then reads for the futures."""
        self._reader = next((call for call in self._followers if call.answer is None), None)
        if isinstance(self._reader, _Call):
            self._followers.pop(self._reader)
            self._reader.gate.release()
        elif self._open_futures:
            self._wake.set()

    # The keeper's

    def _keep(self) -> None:
        try:
            while not self._over or self._done:
                reading = self._become_reader()
                if reading:
                    self._read(_KEEPER_S if self._open_futures else 0.0)
                    with self._lock:
                        self._pass_on()
                self._complete_futures()
                if not self._over and not (reading and self._open_futures):
                    self._wake.wait(_KEEPER_S)
                    self._wake.clear()
        finally:
            self._line.close()

    def _become_reader(self) -> bool:
        with self._lock:
            if self._reader is None and not self._over:
                self._reader = self
                return True
            return False

    def _complete_futures(self) -> None:
        self._give_up_late_ones(time.monotonic())
        while self._done:
            call = self._done.popleft()
            assert call.done is not None
            assert call.answer is not None
            call.done(call.answer)

    def _give_up_late_ones(self, now: float) -> None:
        """Once a second at most: there may be thousands. The pool minds their deadlines; this is the net below."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + _KEEPER_S
        with self._lock:
            late = [n for n, call in self._calls.items() if call.done is not None and call.give_up_at <= now]
            for number in late:
                self._settle(number, Overdue())
