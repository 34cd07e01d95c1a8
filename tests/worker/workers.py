"""Workers inside the test's own event loop: all but the process and the supervisor, whose part the test plays."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from spearpool.config import ConnectionManagerConfig, MonitoringConfig, TaskConfig
from spearpool.metrics import InstancesTable, Layout, MonitoringService, Seat, SeatState, Segment
from spearpool.metrics.vocabulary import COUNTER, TASK_COUNTERS, TASK_WORDS
from spearpool.processes import start_ticks
from spearpool.protocol.credentials import TokenKey, Verifier, make_token
from spearpool.protocol.events import ConnectionEvent
from spearpool.protocol.identifiers import ConnectionId, InstanceId
from spearpool.protocol.identity import Role
from spearpool.worker.connection_manager import ConnectionManager
from spearpool.worker.control import FromWorker
from spearpool.worker.mover import Mover
from spearpool.worker.outbox import Outbox
from spearpool.worker.task_execution import TaskExecutionManager

__all__ = ["EPOCH", "LAUNCH_KEY", "TASKS", "Pool", "Worker", "new_pool"]

EPOCH = 7
LAUNCH_KEY = TokenKey("launch", b"k" * 32)
TASKS = {"echo": TaskConfig(target="python:a:b"), "slow": TaskConfig(target="python:a:b", concurrency=2, prefetch=1)}

R = TypeVar("R", bound=FromWorker)


class Worker:
    """One worker of the test's pool. What it told the supervisor is in `told`, its connections' events in `events`."""

    def __init__(self, pool: Pool, slot: int, config: ConnectionManagerConfig) -> None:
        self.slot = slot
        self.incarnation = slot + 1
        self.seat = Seat(pool.segment, 2 * slot)
        self.seat.occupy(self.incarnation, os.getpid())
        self.seat.state = SeatState.READY
        self.told: list[FromWorker] = []
        self.events: list[tuple[ConnectionId, ConnectionEvent]] = []
        self.port = 0
        outbox = Outbox(asyncio.get_running_loop())
        monitoring = MonitoringService(self.seat, MonitoringConfig())
        self.executions = TaskExecutionManager(
            slot=slot,
            incarnation=self.incarnation,
            epoch=EPOCH,
            tasks=pool.tasks,
            config=config,
            seat=self.seat,
            monitoring=monitoring,
            outbox=outbox,
            tell=self.told.append,
        )
        self.connections = ConnectionManager(
            config,
            Verifier([LAUNCH_KEY], row_is_alive=pool.table.is_alive),
            handler=self.executions,
            monitoring=monitoring,
            outbox=outbox,
            slot=slot,
            incarnation=self.incarnation,
        )
        self.mover = Mover(self.seat, self.connections, self.executions, monitoring)
        self.connections.subscribe(lambda connection_id, event: self.events.append((connection_id, event)))

    def counter(self, name: str) -> int:
        return int(self.seat.counters[COUNTER[name]])

    def executed(self, task: str, stage: str) -> int:
        """A counter of a task's block."""
        column = self.seat.segment.task_index(task)
        return int(self.seat.task_counters[column * TASK_WORDS + TASK_COUNTERS.index(stage)])

    def records(self, kind: type[R]) -> list[R]:
        return [record for record in self.told if isinstance(record, kind)]

    async def stop(self) -> None:
        self.mover.stop()
        self.executions.stop()
        await self.connections.close()


class Pool:
    """The segment and the workers of one test."""

    def __init__(self, segment: Segment, tasks: Mapping[str, TaskConfig]) -> None:
        self.segment = segment
        self.tasks = tasks
        self.table = InstancesTable(segment)
        self.workers: list[Worker] = []

    async def worker(self, config: ConnectionManagerConfig | None = None) -> Worker:
        """One more worker, listening; `link` joins two."""
        worker = Worker(self, len(self.workers), config or ConnectionManagerConfig())
        worker.port = await worker.connections.start_listening(0)
        self.workers.append(worker)
        return worker

    async def link(self, one: Worker, other: Worker) -> None:
        """As the supervisor does it: two socketpairs, one end of each to each."""
        pairs = (socket.socketpair(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        for worker, neighbour, ends in zip((one, other), (other, one), zip(*pairs, strict=True), strict=True):
            worker.mover.handover.open(neighbour.seat.index, ends[1].detach())
            await worker.executions.links.open(neighbour.incarnation, neighbour.seat.index, ends[0].detach())

    def instance(self, task: str) -> tuple[InstanceId, str, str]:
        """A row for a launched instance: its id, its name, and its token."""
        instance = self.table.open_row(self.segment.task_index(task))
        name = instance.name(task)
        return instance, name, make_token(LAUNCH_KEY, Role.AGENT, name, f"{instance.row}:{instance.generation}")

    @staticmethod
    def client_token(rights: str = "submit", name: str = "client") -> str:
        return make_token(LAUNCH_KEY, Role.CLIENT, name, rights)

    @staticmethod
    def issued_token(task: str, name: str) -> str:
        return make_token(LAUNCH_KEY, Role.AGENT, name, task)


@asynccontextmanager
async def new_pool(directory: Path, tasks: Mapping[str, TaskConfig] = TASKS) -> AsyncIterator[Pool]:
    layout = Layout.plan(4, list(tasks), 1024, rows=64)
    pid = os.getpid()
    with Segment.create(directory, "test", layout, EPOCH, pid, start_ticks(pid) or 0) as segment:
        pool = Pool(segment, tasks)
        try:
            yield pool
        finally:
            for worker in pool.workers:
                await worker.stop()
            segment.unlink()
