"""The warden's wards: each launch with what is known of its process, found by launch number and by pid.

A launch is *pending* until it is answered by `Launched` or `LaunchFailed`, and leaves the table when its process is
reaped; a failed one keeps its place by pid alone, so that its exit is neither reported nor taken for a stranger's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from spearpool.instances.launch import ForkSpec
from spearpool.instances.zygote_messages import WardenEnd

__all__ = ["Stage", "Ward", "Wards", "WorkerProcess", "Zygote"]


class WorkerProcess(Protocol):
    """What the warden uses of multiprocess's `Process`. Reading `exitcode` reaps the process when it has ended."""

    @property
    def pid(self) -> int | None: ...

    @property
    def exitcode(self) -> int | None: ...

    def start(self) -> None: ...

    def close(self) -> None: ...


class Stage(Enum):
    PENDING = "pending"
    RUNNING = "running"
    FAILED = "failed"


@dataclass(slots=True, eq=False)
class Zygote:
    """The extra of a zygote: its channel, and the forks asked of it. Few are under way at a time, the others wait."""

    channel: WardenEnd
    waiting: deque[tuple[Ward, ForkSpec, int]] = field(default_factory=deque)
    under_way: int = 0
    hung_up: bool = False


@dataclass(slots=True, eq=False)
class Ward:
    """One launch. `pid` is None for an instance that its zygote has not forked yet; `forked_ns` as in `Launched`."""

    launch: int
    pid: int | None = None
    forked_ns: int = 0
    stage: Stage = Stage.PENDING
    worker: WorkerProcess | None = None
    zygote: Zygote | None = None
    parent: Ward | None = None  # the zygote of a forked instance
    status_fd: int | None = None
    reason: bytes = b""


class Wards:
    """All of them."""

    def __init__(self) -> None:
        self._by_launch: dict[int, Ward] = {}
        self._by_pid: dict[int, Ward] = {}
        self._pending = 0

    def add(self, ward: Ward) -> None:
        self._by_launch[ward.launch] = ward
        self._pending += 1

    def name(self, ward: Ward, pid: int, forked_ns: int) -> None:
        """The ward has a process now."""
        ward.pid = pid
        ward.forked_ns = forked_ns
        self._by_pid[pid] = ward

    def answer(self, ward: Ward, stage: Stage) -> None:
        """The ward is no longer pending."""
        ward.stage = stage
        self._pending -= 1
        if stage is Stage.FAILED:
            del self._by_launch[ward.launch]

    def remove(self, ward: Ward) -> None:
        """Its process has been reaped."""
        self._by_launch.pop(ward.launch, None)
        if ward.pid is not None:
            del self._by_pid[ward.pid]

    @property
    def pending(self) -> int:
        return self._pending

    def launched_as(self, launch: int) -> Ward | None:
        return self._by_launch.get(launch)

    def with_pid(self, pid: int) -> Ward | None:
        return self._by_pid.get(pid)

    def workers(self) -> Iterator[Ward]:
        """Those that run now as a list of its own: the table may change meanwhile."""
        return (ward for ward in list(self._by_launch.values()) if ward.worker is not None)

    def zygotes(self) -> Iterator[tuple[Ward, Zygote]]:
        """Zygotes that can be heard; as above."""
        for ward in list(self._by_pid.values()):
            if ward.zygote is not None and not ward.zygote.hung_up:
                yield ward, ward.zygote
