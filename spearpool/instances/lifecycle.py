"""The life of one instance: phases, deadlines, and what its end means. Pure: time is an argument.

    WAITING ─► LAUNCHING ─► CONNECTING ─► READY ◄─► AWAY
       │           │            │           │        │
    (gone)       KILLED     TERMINATED    ASKED  TERMINATED

An instance must be READY within `start_timeout_s` of its request, whatever it spends the time on: waiting for the
import of its task's code, being launched, dialling in and authenticating. One that loses its connection (AWAY) must be
back within the same time. A stop escalates: ASKED (its agent is told to finish) ─ `stop_timeout_s` ─► TERMINATED
(SIGTERM to its process group) ─ `TERMINATE_S` ─► KILLED (SIGKILL to its whole tree). What the caller has to do next is
an `Order`.
"""

from __future__ import annotations

import math
import signal as signals
from enum import Enum

from spearpool.config import TaskConfig

__all__ = [
    "REASON_CHARS",
    "SETTLED_S",
    "TERMINATE_S",
    "Lifecycle",
    "Order",
    "Phase",
    "describe_exit",
    "longest_stop_s",
    "shorten",
]

SETTLED_S = 10.0
"""An instance that ends sooner than this after it was ready has failed."""

REASON_CHARS = 2000
"""How much of a reason is told."""

TERMINATE_S = 2.0
"""What an instance has between SIGTERM and SIGKILL."""


class Phase(Enum):
    WAITING = "waiting"  # for its zygote
    LAUNCHING = "launching"
    CONNECTING = "connecting"
    READY = "ready"
    AWAY = "away"
    ASKED = "asked"
    TERMINATED = "terminated"
    KILLED = "killed"


class Order(Enum):
    """What the runtime has to do."""

    ABANDON = "abandon"  # there is no process: forget it
    ASK = "ask"  # have its worker send Signal Terminate
    TERMINATE = "terminate"  # SIGTERM to its process group
    KILL = "kill"  # SIGKILL to its whole tree


_STOP_BEGINS_WITH = {
    Phase.WAITING: Order.ABANDON,
    Phase.LAUNCHING: Order.KILL,
    Phase.CONNECTING: Order.TERMINATE,
    Phase.READY: Order.ASK,
    Phase.AWAY: Order.TERMINATE,
}
_ESCALATES_TO = {Phase.ASKED: Order.TERMINATE, Phase.TERMINATED: Order.KILL}
_PHASE_AFTER = {Order.ASK: Phase.ASKED, Order.TERMINATE: Phase.TERMINATED, Order.KILL: Phase.KILLED}

_TOO_LATE = {
    Phase.WAITING: "its code was not imported within {:g} s",
    Phase.LAUNCHING: "it was not launched within {:g} s",
    Phase.CONNECTING: "it runs, but did not connect and authenticate within {:g} s",
    Phase.AWAY: "it lost its connection and did not come back within {:g} s",
}
_BEFORE_READY = frozenset({Phase.WAITING, Phase.LAUNCHING, Phase.CONNECTING})


class Lifecycle:
    """One instance, from its request on. `deadline` (monotonic seconds) is when to call `expire`."""

    def __init__(self, config: TaskConfig, now: float) -> None:
        self._config = config
        self.phase = Phase.WAITING
        self.deadline = now + config.start_timeout_s
        self.ready_at: float | None = None
        self.stop_wanted = False
        self.frozen = False
        self._complaint = ""

    @property
    def starting(self) -> bool:
        return self.phase in _BEFORE_READY

    @property
    def stopping(self) -> bool:
        return self.phase not in _STOP_BEGINS_WITH

    def launching(self) -> None:
        """The launcher has been asked."""
        self.phase = Phase.LAUNCHING

    def launched(self) -> None:
        """The process runs. Its agent may have been quicker than this message."""
        if self.phase is Phase.LAUNCHING:
            self.phase = Phase.CONNECTING

    def claimed(self, now: float) -> bool:
        """Its agent has authenticated. Whether this made it ready for the first time."""
        if self.phase not in {Phase.LAUNCHING, Phase.CONNECTING, Phase.AWAY}:
            return False
        self.phase = Phase.READY
        self.deadline = math.inf
        first = self.ready_at is None
        if first:
            self.ready_at = now
        return first

    def released(self, now: float) -> None:
        """Its agent's connection ended."""
        if self.phase is Phase.READY:
            self.phase = Phase.AWAY
            self._await_return(now)

    def freeze(self, now: float, *, frozen: bool) -> None:
        """Its processes are stopped, or go on. While they are, a lost connection stays lost, and that is no fault."""
        self.frozen = frozen
        if self.phase is Phase.AWAY:
            self._await_return(now)

    def _await_return(self, now: float) -> None:
        self.deadline = math.inf if self.frozen else now + self._config.start_timeout_s

    def stop(self, now: float) -> Order | None:
        """Somebody wants it gone: no failure, however it ends."""
        if self.stopping:
            return None
        self.stop_wanted = True
        return self._follow(_STOP_BEGINS_WITH[self.phase], now)

    def expire(self, now: float) -> Order | None:
        """Its deadline has passed, if it has."""
        if now < self.deadline:
            return None
        if self.phase in _TOO_LATE:
            self._complaint = _TOO_LATE[self.phase].format(self._config.start_timeout_s)
            return self._follow(_STOP_BEGINS_WITH[self.phase], now)
        return self._follow(_ESCALATES_TO[self.phase], now)

    def condemn(self, complaint: str, now: float) -> Order | None:
        """It has to go at once, by its own fault. One that is ending already does so anyway."""
        if self.stopping:
            return None
        self._complaint = complaint
        return self._follow(Order.KILL, now)

    def hurry(self, now: float) -> Order | None:
        """The next step of a stop, without waiting for the present one."""
        self.deadline = now
        return self.expire(now)

    def failed(self, now: float) -> bool:
        """Whether an end now is a failure: unasked for, before it was ready or soon after."""
        return not self.stop_wanted and (self.ready_at is None or now - self.ready_at < SETTLED_S)

    def crashed(self, now: float, *, clean: bool) -> bool:
        """Whether an end now is none that anybody wanted; `clean`: with exit code 0, as of a program that is done."""
        return not self.stop_wanted and (self.failed(now) or bool(self._complaint) or not clean)

    def cause(self, end: str) -> str:
        """What `explain` says, in the fewest words."""
        return self._complaint or end

    def explain(self, end: str, now: float) -> str:
        """Why it ended, in words; `end` is how its process did (see `describe_exit`)."""
        if self._complaint:
            return self._complaint
        if self.stop_wanted:
            return f"it was stopped and {end}"
        if self.ready_at is None:
            return f"it {end} before it connected and authenticated"
        return f"it {end}, {now - self.ready_at:.1f} s after it was ready"

    def explain_no_process(self, reason: str) -> str:
        """Why there never was a process, in words."""
        if self.stop_wanted:
            return "it was stopped before it was launched"
        return self._complaint or f"it could not be launched: {reason}"

    def _follow(self, order: Order, now: float) -> Order:
        self.phase = _PHASE_AFTER.get(order, self.phase)
        match order:
            case Order.ASK:
                self.deadline = now + self._config.stop_timeout_s
            case Order.TERMINATE:
                self.deadline = now + TERMINATE_S
            case Order.KILL | Order.ABANDON:
                self.deadline = math.inf
        return order


def longest_stop_s(config: TaskConfig) -> float:
    """How long the stop of an instance can take until it is killed."""
    return config.stop_timeout_s + TERMINATE_S


def describe_exit(code: int | None, signal: int | None) -> str:
    """How a process ended, in words that follow its name: `exited with code 3`, `was killed by signal SIGKILL`."""
    if signal is None:
        return f"exited with code {code}"
    try:
        name = signals.Signals(signal).name
    except ValueError:  # a real-time signal
        name = str(signal)
    return f"was killed by signal {name}"


def shorten(reason: str) -> str:
    """The end of a long reason: of a traceback, the part that says what is wrong."""
    return reason if len(reason) <= REASON_CHARS else f"…{reason[-REASON_CHARS:]}"
