"""A board that is a dictionary, seen by one dispatcher; and executions and agents that nobody carries out."""

from __future__ import annotations

import itertools
from math import inf

from spearpool.protocol.identifiers import execution_id
from spearpool.protocol.messages import ExecuteRequest
from spearpool.worker.executions import CLIENT, Agent, Execution

__all__ = ["ME", "WHEN", "PlainBoard", "new_agent", "new_execution"]

ME = 0
"""The incarnation of the dispatcher under test."""

WHEN = 100.0
"""When all executions are received that the test does not say it of."""

_NUMBERS = itertools.count(1)


class PlainBoard:
    """`rows[incarnation, task]` is (free, queued); `heads` is since when the head of a queue waits, else `WHEN`.

    `log` tells in which order rows were written and read.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], tuple[int, int]] = {}
        self.heads: dict[tuple[int, int], float] = {}
        self.took: dict[int, int] = {}
        self.counted_in: dict[int, int] = {}
        self.left: set[int] = set()
        self.deaf: set[int] = set()
        self.log: list[str] = []

    def publish(self, task: int, free: int, queued: int, since: float) -> None:
        self.log.append("publish")
        self.rows[ME, task] = (free, queued)
        self.heads[ME, task] = since

    def free(self, task: int) -> dict[int, int]:
        self.log.append("free")
        rows = {
            incarnation: free
            for (incarnation, column), (free, _) in self.rows.items()
            if column == task and incarnation != ME
        }
        return {incarnation: free for incarnation, free in rows.items() if free and incarnation not in self.deaf}

    def waiting(self, task: int, before: float) -> dict[int, float]:
        self.log.append("waiting")
        rows = {
            incarnation: queued
            for (incarnation, column), (_, queued) in self.rows.items()
            if column == task and incarnation != ME
        }
        heads = {
            incarnation: self.heads.get((incarnation, task), WHEN) for incarnation, queued in rows.items() if queued
        }
        return {incarnation: since for incarnation, since in heads.items() if since < before}

    def queued(self, incarnation: int, task: int) -> int:
        return self.rows[incarnation, task][1]

    def publish_arrived(self, incarnation: int, count: int) -> None:
        self.log.append("publish_arrived")
        self.counted_in[incarnation] = count

    def arrived(self, incarnation: int) -> int:
        self.log.append("arrived")
        return self.took.get(incarnation, 0)

    def leaving(self, incarnation: int) -> bool:
        return incarnation in self.left

    def congested(self, incarnation: int) -> bool:
        return incarnation in self.deaf


def new_execution(
    task: str = "a",
    *,
    source: int = CLIENT,
    deadline: float = inf,
    size_bytes: int = 10,
    origin: object = None,
    received_at: float = WHEN,
) -> Execution:
    name = execution_id(1, ME if source == CLIENT else source, 1, next(_NUMBERS))
    request = ExecuteRequest(task, "", [], {})
    return Execution(name, task, request, origin, 1, size_bytes, received_at, deadline, source)


def new_agent(task: str = "a", capacity: int = 1, who: object = "somebody") -> Agent:
    return Agent(None, task, capacity, who)
