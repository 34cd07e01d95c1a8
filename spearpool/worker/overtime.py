"""Has `stuck` obeyed: its timer, the cancel of what has overrun, and the word to the supervisor.

The supervisor counts each overrun as a breach of the limit, and kills an instance that is stuck. One that somebody else
started is nobody's to kill: it goes on holding the place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import assert_never

from spearpool.config import TaskConfig

from .control import FromWorker, Overran
from .execution_messages import overran
from .executions import Agent
from .stuck import Overrun, Stopwatch, Stuck, Verdict

__all__ = ["Overtime"]

_SLACK_S = 0.002
"""A timer of the loop may fire a little early."""


class Overtime:
    """The limits on execution time of one worker. `end` is called with an agent, an execution id and the answer that
    its origin gets."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tasks: Mapping[str, TaskConfig],
        end: Callable[[Agent, str, object], None],
        tell: Callable[[FromWorker], None],
    ) -> None:
        limits = {name: task.limits.execution_timeout_s for name, task in tasks.items()}
        self._watch = Stopwatch({name: limit for name, limit in limits.items() if limit is not None})
        self._loop = loop
        self._end = end
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = inf

    def times(self, task: str) -> bool:
        return self._watch.times(task)

    def look(self, agent: Agent) -> None:
        """What a timed agent has in flight has changed."""
        self._watch.look(agent, time.monotonic())
        self._see_to_next()

    def left(self, agent: Agent) -> None:
        """Its connection has ended; nothing has been taken from its books yet."""
        self._watch.left(agent, time.monotonic())

    def gone(self, who: object) -> None:
        self._watch.gone(who)

    def freeze(self, agent: Agent, *, frozen: bool) -> None:
        """Its process stands still, or goes on."""
        now = time.monotonic()
        if frozen:
            self._watch.freeze(agent, now)
        else:
            self._watch.thaw(agent, now)
            self._see_to_next()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_at = -inf

    def _see_to_next(self) -> None:
        when = self._watch.next_deadline()
        if when < self._wake_at:
            if self._timer is not None:
                self._timer.cancel()
            self._wake_at = when
            self._timer = self._loop.call_later(max(0.0, when - time.monotonic()) + _SLACK_S, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._wake_at = inf
        for verdict in self._watch.expire(time.monotonic()):
            self._pronounce(verdict)
        self._see_to_next()

    def _pronounce(self, verdict: Verdict) -> None:
        agent, name = verdict.agent, verdict.execution_id
        if name not in agent.running or agent.instance is None:
            return
        row, generation = agent.instance.row, agent.instance.generation
        match verdict:
            case Overrun(limit_s=limit_s):
                self._tell(Overran(row, generation, name, 0.0))
                self._end(agent, name, overran(agent.task, name, limit_s))
            case Stuck(since_s=since_s):
                self._tell(Overran(row, generation, name, since_s))
            case _:
                assert_never(verdict)
