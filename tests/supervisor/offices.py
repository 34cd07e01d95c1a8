"""The supervisor's parts put together without a process: real premises, runtime and channels; workers and launcher are
played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from spearpool.config import load
from spearpool.instances.launch import ForkSpec, Launched, LaunchSpec, ZygoteSpec
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.processes import ProcessIdentity
from spearpool.protocol.identifiers import ConnectionId, InstanceId
from spearpool.runtime_dir import RuntimeDir, StateDir
from spearpool.supervisor.crew import Crew, Member, worker_launch
from spearpool.supervisor.owners import Owners
from spearpool.supervisor.premises import open_premises
from spearpool.supervisor.staff import Staff
from spearpool.supervisor.warden import Warden
from spearpool.worker.control import Claim, ToWorker, WorkerEnd, supervisor_end, worker_end
from tests.conftest import RuntimeEnv

__all__ = ["AGENT", "Forks", "Office", "Recorder", "office"]

AGENT = "agent:/bin/sleep 60"
"""A target that resolves; nobody launches it here."""


@dataclass
class Recorder:
    """A `Launcher` that writes down what it is asked for."""

    launches: list[tuple[int, LaunchSpec | ZygoteSpec | ForkSpec]] = field(default_factory=list)
    signals: list[tuple[int, int]] = field(default_factory=list)
    tree_signals: list[tuple[int, int]] = field(default_factory=list)
    kills: list[int] = field(default_factory=list)

    def launch(self, launch: int, spec: LaunchSpec | ZygoteSpec | ForkSpec, log_fd: int) -> None:
        os.fstat(log_fd)  # it is open now
        self.launches.append((launch, spec))

    def signal_group(self, launch: int, signum: int) -> None:
        self.signals.append((launch, signum))

    def signal_tree(self, launch: int, signum: int) -> None:
        self.tree_signals.append((launch, signum))

    def kill_tree(self, launch: int) -> None:
        self.kills.append(launch)


class Forks:
    """In the warden's place: keeps the control socket that a fork would have got, and writes down who is to die."""

    def __init__(self) -> None:
        self.workers: dict[int, WorkerEnd] = {}
        self.names: list[str] = []
        self.kills: list[int] = []

    def spawn_worker(self, launch: int, control: socket.socket, name: str) -> None:
        self.workers[launch] = worker_end(control.dup())
        self.names.append(name)

    def kill_tree(self, launch: int) -> None:
        self.kills.append(launch)

    def end(self, incarnation: int) -> None:
        self.workers.pop(worker_launch(incarnation)).close()

    def hear(self, incarnation: int) -> list[tuple[ToWorker, list[int]]]:
        """Everything that this worker has been told."""
        heard = []
        while (received := self.workers[worker_launch(incarnation)].receive()) is not None:
            heard.append(received)
        return heard

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


class Office:
    """Two workers, of incarnations 1 and 2, whose ends are read here."""

    def __init__(self, env: RuntimeEnv, stack: contextlib.ExitStack, sections: dict[str, Any]) -> None:
        memory = env.runtime_dir.parent / "shm"
        memory.mkdir()
        self.settings = load(overrides={"monitoring": {"shared_memory_dir": str(memory)}, **sections})
        name = self.settings.pool.name
        self.premises = stack.enter_context(
            open_premises(self.settings, RuntimeDir.locate(name, env.environ), StateDir.locate(name, env.environ))
        )
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        self.crew = Crew(loop, cast(Warden, None), name, lambda _member, _record: None)
        stack.callback(self.crew.close)
        self.members: list[Member] = []
        self.ends: list[WorkerEnd] = []
        for slot in range(2):
            ours, theirs = WorkerEnd.pair()
            self.members.append(Member(slot, 2 * slot, slot + 1, supervisor_end(ours)))
            self.crew._members[slot + 1] = self.members[-1]
            self.ends.append(worker_end(theirs))
            stack.callback(self.ends[-1].close)
        self.table = self.premises.table
        self.owners = Owners(self.table, self.crew)
        self.recorder = Recorder()
        seat = Seat(self.premises.segment, self.premises.segment.layout.supervisor_seat)
        seat.occupy(0, os.getpid())
        self.monitoring = MonitoringService(seat, self.settings.monitoring)
        self.staff = Staff(
            self.settings,
            env.environ,
            self.recorder,
            self.premises,
            self.crew,
            self.owners,
            self.monitoring,
            Rollup(self.premises.segment),
        )
        stack.callback(self.staff.let_go)

    def heard(self, slot: int) -> list[ToWorker]:
        """What the worker has been told since it was last looked at."""
        records = []
        while (received := self.ends[slot].receive()) is not None:
            records.append(received[0])
        return records

    def launched(self, launch: int) -> None:
        """The process exists; ours plays it."""
        me = ProcessIdentity.of(os.getpid())
        self.staff.handle(Launched(launch, me.pid, me.start_ticks, time.monotonic_ns()))

    def claim(self, instance: InstanceId, slot: int = 0, counter: int = 1) -> Claim:
        """The instance's agent authenticates at a worker."""
        connection = ConnectionId(slot, slot + 1, counter).pack()
        connected_ns = time.monotonic_ns()
        claim = Claim(instance.row, instance.generation, connection, connected_ns, connected_ns + 1)
        assert self.owners.claim(claim, self.members[slot])
        self.staff.claimed(claim)
        return claim

    def instance(self, place: int = 0) -> InstanceId:
        return self.table.snapshots()[place].instance

    def ready(self) -> InstanceId:
        """Start the first instance and have its agent come."""
        self.staff.tick()
        self.launched(self.recorder.launches[-1][0])
        instance = self.instance()
        self.claim(instance)
        return instance


@contextlib.contextmanager
def office(env: RuntimeEnv, **sections: Any) -> Iterator[Office]:
    with contextlib.ExitStack() as stack:
        yield Office(env, stack, sections)
