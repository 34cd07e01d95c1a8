"""A board that is a dictionary, seen by one dispatcher; and executions and agents that nobody carries out."""

from __future__ import annotations

import itertools
from math import inf

from spearpool.protocol.identifiers import execution_id
from spearpool.protocol.messages import ExecuteRequest
from spearpool.worker.executions import CLIENT, Agent, Execution

__all__ = ["ME", "PlainBoard", "new_agent", "new_execution"]

ME = 0
"""The slot of the dispatcher under test."""

_NUMBERS = itertools.count(1)


class PlainBoard:
    """`rows[slot, task]` is (free, queued); `log` tells in which order rows were written and read."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], tuple[int, int]] = {}
        self.left: set[int] = set()
        self.log: list[tuple[str, int]] = []

    def publish(self, task: int, free: int, queued: int) -> None:
        self.log.append(("write", ME))
        self.rows[ME, task] = (free, queued)

    def read(self, slot: int, task: int) -> tuple[int, int]:
        self.log.append(("read", slot))
        return self.rows.get((slot, task), (0, 0))

    def leaving(self, slot: int) -> bool:
        return slot in self.left


def new_execution(
    task: str = "a",
    *,
    source: int = CLIENT,
    deadline: float = inf,
    size_bytes: int = 10,
    origin: object = None,
    slot: int = ME,
) -> Execution:
    """`slot` is the one that accepted it; its own by default."""
    name = execution_id(1, slot if source == CLIENT else source, 1, next(_NUMBERS))
    request = ExecuteRequest(task, "", [], {})
    return Execution(name, task, request, origin, 1, size_bytes, 0.0, deadline, source)


def new_agent(task: str = "a", capacity: int = 1, who: object = "somebody") -> Agent:
    return Agent(None, task, capacity, who)
