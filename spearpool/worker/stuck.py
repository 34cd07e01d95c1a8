"""Whose execution runs longer than its task allows (`execution_timeout_s`), and who does not let go of it. Pure.

An agent may have more in flight than it runs: what was prefetched waits inside the instance, and that costs it nothing.
So as many clocks run for an agent as it has concurrency, for the oldest it has; the next one starts when one of those
is answered. When a clock reaches the limit the execution has *overrun*: it is cancelled. When the agent has still not
answered `STUCK_GRACE_S` later it is *stuck*, and its instance has to go.

A cancel and a client's own deadline do not shorten this. They take the answer away, not the time: a handler that does
not look whether it is cancelled may be near its end, and others may be at work beside it. It holds its place until it
answers or the limit has come.

An agent that was away goes on where its clocks stood, if it comes back to this worker. At another one they start anew:
ids travel with the agent, times do not. While its process is stopped by SIGSTOP its clocks stand still.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import inf

from spearpool.packing import Record

from .deadlines import Deadlines
from .executions import Agent

__all__ = ["STUCK_GRACE_S", "Overrun", "Stopwatch", "Stuck", "Verdict"]

STUCK_GRACE_S = 1.0
"""How long an agent has to answer for an execution that was cancelled at its limit. The cancel reaches a handler that
listens, or ends the program of an `exec:` task, in milliseconds; the rest is for a busy machine."""

_RECALL_S = 60.0
"""How long the clocks of an agent that is away are kept."""


class Overrun(Record, frozen=True):
    """The execution has reached its limit: cancel it."""

    agent: Agent
    execution_id: str
    limit_s: float


class Stuck(Record, frozen=True):
    """The agent still has it, so long after the limit."""

    agent: Agent
    execution_id: str
    limit_s: float
    since_s: float


Verdict = Overrun | Stuck


@dataclass(slots=True, eq=False)
class _Clock:
    """`overran_at` is when it was found out; inf until then."""

    agent: Agent
    began_at: float
    overran_at: float = inf


@dataclass(slots=True, eq=False)
class _Away:
    """The clocks of an agent that left, by execution id: how long each had run."""

    left_at: float
    ran_s: dict[str, float]


class Stopwatch:
    """The clocks of all agents of one worker; `limits` in seconds by task. `agent.timed` says that it has a limit."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self._clocks: dict[Agent, dict[str, _Clock]] = {}
        self._running: dict[str, _Clock] = {}
        self._due: Deadlines[str] = Deadlines()
        self._away: dict[Hashable, _Away] = {}
        self._frozen: dict[Agent, float] = {}

    def times(self, task: str) -> bool:
        """Whether executions of this task have a limit."""
        return task in self._limits

    def look(self, agent: Agent, now: float) -> None:
        """What the agent has in flight has changed."""
        clocks = self._clocks.setdefault(agent, {})
        for execution_id in [name for name in clocks if name not in agent.running]:
            self._stop(clocks, execution_id)
        away = self._away.pop(agent.who, None) if self._away else None
        if away is not None:
            for execution_id in agent.running:
                if execution_id in away.ran_s:
                    self._start(clocks, execution_id, _Clock(agent, now - away.ran_s[execution_id]))
        spare = agent.concurrency - len(clocks)
        if spare > 0:
            for execution_id in [name for name in agent.running if name not in clocks][:spare]:
                self._start(clocks, execution_id, _Clock(agent, now))

    def left(self, agent: Agent, now: float) -> None:
        """Its connection has ended; what it had in flight is still to be seen in `running`."""
        clocks = self._clocks.pop(agent, {})
        self._frozen.pop(agent, None)
        ran_s = {name: now - clock.began_at for name, clock in clocks.items() if name in agent.running}
        for execution_id in list(clocks):
            self._stop(clocks, execution_id)
        self._away = {who: away for who, away in self._away.items() if now - away.left_at < _RECALL_S}
        if ran_s:
            self._away[agent.who] = _Away(now, ran_s)

    def gone(self, who: object) -> None:
        """It will not come back."""
        self._away.pop(who, None)

    def freeze(self, agent: Agent, now: float) -> None:
        """Its process stands still, and so do its clocks."""
        self._frozen.setdefault(agent, now)

    def thaw(self, agent: Agent, now: float) -> None:
        """Its process goes on."""
        frozen_at = self._frozen.pop(agent, now)
        for execution_id, clock in self._clocks.get(agent, {}).items():
            clock.began_at += now - max(frozen_at, clock.began_at)
            if clock.overran_at < inf:
                clock.overran_at += now - max(frozen_at, clock.overran_at)
            self._due.set(execution_id, self._due_at(clock))

    def next_deadline(self) -> float:
        """When `expire` is to be called next (monotonic seconds, inf for never)."""
        return self._due.next()

    def expire(self, now: float) -> list[Verdict]:
        """Who has overrun, and who is stuck; each is said once."""
        verdicts: list[Verdict] = []
        for execution_id in self._due.due(now):
            clock = self._running[execution_id]
            agent, limit_s = clock.agent, self._limits[clock.agent.task]
            if agent in self._frozen:
                continue  # `thaw` sets it again
            if clock.overran_at == inf:
                clock.overran_at = now
                self._due.set(execution_id, self._due_at(clock))
                verdicts.append(Overrun(agent, execution_id, limit_s))
            else:
                verdicts.append(Stuck(agent, execution_id, limit_s, now - clock.overran_at))
        return verdicts

    def _due_at(self, clock: _Clock) -> float:
        if clock.overran_at < inf:
            return clock.overran_at + STUCK_GRACE_S
        return clock.began_at + self._limits[clock.agent.task]

    def _start(self, clocks: dict[str, _Clock], execution_id: str, clock: _Clock) -> None:
        clocks[execution_id] = self._running[execution_id] = clock
        self._due.set(execution_id, self._due_at(clock))

    def _stop(self, clocks: dict[str, _Clock], execution_id: str) -> None:
        clock = clocks.pop(execution_id)
        if self._running.get(execution_id) is clock:
            del self._running[execution_id]
            self._due.discard(execution_id)
