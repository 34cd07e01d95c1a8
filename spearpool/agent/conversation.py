"""What an agent and its pool are saying to each other: one line at a time, dialled again whenever it is lost, and the
executions in hand.

Reading is a role that one thread has at a time (`take_over`); the reader calls `turn` again and again. Whoever ends an
execution calls `deliver`, from any thread. An answer goes out on the line on which its request came, under the
request's id; once that line is gone, on the next one, under id 0 and with its execution id, by which the pool knows it:
a request id means nothing on another connection. Until then it is listed in `running` when we authenticate.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from spearpool import __version__
from spearpool.backoff import Backoff
from spearpool.errors import AuthenticationError, ConnectionLost, ErrorCode, LocalProtocolError
from spearpool.protocol.environment import InstanceEnvironment
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import (
    UNSET,
    AuthRequest,
    Custom,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Signal,
    SignalName,
)
from spearpool.protocol.negotiation import ASK
from spearpool.protocol.session import Closed, Received, SessionEvent, Side

from .dial import dial
from .line import Line, Watch
from .notices import deliver
from .request import Request

__all__ = ["EXIT_UNFINISHED", "STOP_GRACE_S", "Conversation", "Work"]

EXIT_UNFINISHED = 75
"""Exit code when handlers had not returned at the end of the grace (EX_TEMPFAIL)."""

STOP_GRACE_S = 10.0
"""How long what runs may go on after we were told to stop."""

_DIAL_TIMEOUT_S = 10.0
_STEADY_S = 1.0
"""A connection that lasted this long was a success; one that ended sooner counts as one more failed attempt."""

_BACKOFF = Backoff()
_UNWANTED = {CloseReason.REPLACED.value, CloseReason.REVOKED.value}
"""Reasons in the pool's ConnectionClose after which nobody waits for us to come back."""

_STOPS = frozenset({SignalName.TERMINATE, SignalName.RESTART})


@dataclass(slots=True, eq=False)
class Work:
    """An execution in hand, and where its answer goes."""

    line: Line
    number: int
    request: Request
    answered: bool = False


class Conversation:
    """`accept` is given each new execution, by the reader."""

    def __init__(self, me: InstanceEnvironment, accept: Callable[[Work], None]) -> None:
        self._me = me
        self._accept = accept
        self._line: Line | None = None
        self._connected_at = 0.0
        self._attempts = 0
        self._complained = False
        self._next_dial = 0.0
        self._stop_at = inf
        self._role = threading.Lock()  # held by the reader while it reads
        self._reader: Watch | None = None
        self._books = threading.Lock()  # guards the next two, and which line is current
        self._held: set[Work] = set()
        self._undelivered: list[ExecuteResponse] = []
        self.refused: AuthenticationError | None = None
        self.stopping = False
        self.wake_fd, self._wake_write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do: refused, or told to stop and done."""
        if not self.stopping or self.refused is not None:
            return self.refused is not None
        waits = bool(self._undelivered) and time.monotonic() < self._stop_at
        return not self._held and not waits

    def stop(self) -> None:
        """Finish what is in hand, take nothing more, and be over. Safe in a signal handler: it only takes a note."""
        if not self.stopping:
            self._stop_at = time.monotonic() + STOP_GRACE_S
            self.stopping = True
        os.write(self._wake_write_fd, b"\0")

    def close(self) -> None:
        with self._role:
            self._reader = None
            if self._line is not None:
                self._line.close(CloseReason.DRAIN)
                self._line = None
        os.close(self.wake_fd)
        os.close(self._wake_write_fd)

    # Reading

    def take_over(self, watch: Watch, still: Callable[[], bool] = lambda: True) -> bool:
        """The thread of this watch reads from now on, if `still()`; waits while the one before it is dialling.

        It is the reader already when `still` is asked, so who makes that untrue may look for the reader afterwards
        (`is_read_by`) and, as a rule, spare itself the lock.
        """
        with self._role:
            before, self._reader = self._reader, watch
            if not still():
                self._reader = before
            return self._reader is watch

    def is_read_by(self, watch: Watch) -> bool:
        return self._reader is watch

    def turn(self, watch: Watch, timeout_s: float = inf) -> None:
        """Wait for something to read or to do, for at most `timeout_s`, and do it if we still are the reader."""
        line = self._line
        due = self._stop_at if line is not None else min(self._stop_at, self._next_dial)
        watch.wait(line, timeout_s if due == inf else min(timeout_s, due - time.monotonic()))
        with self._role:
            if self._reader is watch:
                self._step()

    def _step(self) -> None:
        if self.stopping and self._held and time.monotonic() >= self._stop_at:
            self._abandon()
        if self._line is not None:
            self._handle(self._line, self._line.receive())
        elif time.monotonic() >= self._next_dial and not self.over:
            self._dial()

    def _handle(self, line: Line, events: list[SessionEvent]) -> None:
        for event in events:
            match event:
                case Received(number, ExecuteRequest() as payload):
                    self._take(line, number, payload)
                case Received(payload=Signal() as signal):
                    self._obey(signal)
                case Received(payload=ErrorMessage() as error):
                    _say(f"the pool says: {error.message} ({error.error_code})")
                case Closed():
                    self._lost(line, event)
                case _:
                    pass  # the session has answered it

    def _take(self, line: Line, number: int, payload: ExecuteRequest) -> None:
        if self.stopping:
            refusal = ErrorMessage(ErrorCode.DRAINING, "this instance is stopping", None, number)
            with contextlib.suppress(ConnectionLost):  # then nobody waits for it either
                line.send(refusal, number)
            return
        work = Work(line, number, Request.from_payload(payload, line.read_at))
        with self._books:
            self._held.add(work)
        self._accept(work)

    def _obey(self, signal: Signal) -> None:
        """Terminate with an execution id cancels that one; without, it ends this program. A name of its own is for who
        listens; others are not for us."""
        if isinstance(signal.signal_type, Custom):
            deliver(signal.signal_type.name)
        elif signal.execution_id is not UNSET:
            for work in self._in_hand():
                if work.request.execution_id == signal.execution_id:
                    work.request.cancel()
        elif signal.signal_type in _STOPS:
            self.stop()

    def _in_hand(self) -> list[Work]:
        return list(self._held)  # in one step, beside a thread that delivers

    # Dialling

    def _dial(self) -> None:
        me = self._me
        request = AuthRequest(me.instance_id, me.secret, __version__, "agent", self._extra_params())
        try:
            line, events = dial(Side.AGENT, me.dialled, request, _DIAL_TIMEOUT_S)
        except AuthenticationError as error:
            self.refused = error
        except ConnectionLost as error:
            if not self._complained:
                _say(f"{error}; trying again")
            self._complained = True
            self._retry_later()
        else:
            self._connected_at = time.monotonic()
            self._complained = False
            with self._books:
                self._line = line
                answers, self._undelivered = self._undelivered, []
            for response in answers:
                self._send_late(response)
            self._handle(line, events)

    def _extra_params(self) -> dict[str, str]:
        with self._books:
            running = [work.request.execution_id for work in self._in_hand()]
            running += [response.execution_id or "" for response in self._undelivered]
        params = {"concurrency": str(self._me.concurrency), **ASK}
        if any(running):
            params["running"] = ",".join(filter(None, running))
        return params

    def _lost(self, line: Line, closed: Closed) -> None:
        line.close()
        with self._books:
            self._line = None
        if closed.reason is CloseReason.PEER and closed.detail.partition(":")[0] in _UNWANTED:
            self.refused = AuthenticationError(f"the pool does not want this instance any more: {closed.detail}")
            return
        if time.monotonic() - self._connected_at >= _STEADY_S:
            self._attempts = 0
        self._retry_later()

    def _retry_later(self) -> None:
        chance = int.from_bytes(os.urandom(4)) / 2**32  # not `random`: one import less in each instance
        self._next_dial = time.monotonic() + _BACKOFF.delay_s(self._attempts, chance)
        self._attempts += 1

    # Answers

    def deliver(self, work: Work, response: ExecuteResponse) -> None:
        """Send the answer, now or on the next line. A `work` that was abandoned meanwhile has been answered already."""
        with self._books:
            if work.answered:
                return
            work.answered = True
        try:
            self._send(work.line, response, work.number)
        except ConnectionLost:
            self._send_late(response)
        self._held.discard(work)
        if self.stopping:
            self.stop()  # wakes a reader that waits for the last answer

    def _send_late(self, response: ExecuteResponse) -> None:
        """Answer on another line than the request's, or keep the answer for one. Without an id nobody could know it."""
        if response.execution_id is UNSET:
            return
        with self._books:
            line = self._line
            if line is None or line.closed is not None:
                self._undelivered.append(response)
                return
        try:
            self._send(line, response, 0)
        except ConnectionLost:
            with self._books:
                self._undelivered.append(response)

    @staticmethod
    def _send(line: Line, response: ExecuteResponse, number: int) -> None:
        try:
            line.send(response, number)
        except LocalProtocolError as error:  # too large, or text that UTF-8 cannot carry
            failed = ExecuteResponse(
                response.task_id,
                ExecutionStatus.FAILED,
                error=f"the result cannot be sent: {error}",
                exit_code=response.exit_code,
                duration_ms=response.duration_ms,
                execution_id=response.execution_id,
            )
            line.send(failed, number)

    def _abandon(self) -> None:
        """The grace is over and handlers still run: answer for them, and end them by ending the process."""
        for work in self._in_hand():
            work.request.cancel()
            failed = ExecuteResponse(
                work.request.task,
                ExecutionStatus.FAILED,
                error=f"the instance was stopped and the handler did not end within {STOP_GRACE_S:g} s",
                execution_id=work.request.execution_id or UNSET,
                error_code=ErrorCode.OUTCOME_UNKNOWN,
            )
            self.deliver(work, failed)
        _say(f"handlers still run {STOP_GRACE_S:g} s after the stop; giving up")
        if self._line is not None:
            self._line.close(CloseReason.DRAIN)
        os._exit(EXIT_UNFINISHED)


def _say(text: str) -> None:
    print(f"spearpool.agent: {text}", file=sys.stderr, flush=True)
