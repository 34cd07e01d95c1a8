"""One instance as `ProcessRuntime` holds it, and as others see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spearpool.config import ResourceLimits, TaskConfig
from spearpool.processes import ProcessIdentity
from spearpool.protocol.identifiers import InstanceId

from .cgroups import InstanceGroup
from .lifecycle import Lifecycle, Phase
from .logs import InstanceLog
from .places import Place
from .progress import Progress
from .watching import Watching

__all__ = ["Instance", "InstanceView"]


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance as `status` shows it; `state` is `starting`, `ready` or `stopping`."""

    id: InstanceId
    name: str
    task: str
    pid: int | None
    state: str
    phase: Phase


@dataclass(slots=True, eq=False)
class Instance:
    """One instance, from its row to its end. `crashed` is known once it is gone: nobody wanted it to end like that."""

    id: InstanceId
    name: str
    task: str
    config: TaskConfig
    limits: ResourceLimits
    place: Place
    lifecycle: Lifecycle
    progress: Progress
    log: InstanceLog
    launch: int
    directory: Path | None = None  # private, removed at the end
    identity: ProcessIdentity | None = None
    watch: Watching | None = None
    group: InstanceGroup | None = None
    crashed: bool = False

    @property
    def was_ready(self) -> bool:
        return self.lifecycle.ready_at is not None

    def view(self) -> InstanceView:
        pid = None if self.identity is None else self.identity.pid
        return InstanceView(self.id, self.name, self.task, pid, self.state, self.lifecycle.phase)

    @property
    def cgroup(self) -> str:
        """The directory of its control group, if it has one."""
        return "" if self.group is None else str(self.group.path)

    @property
    def state(self) -> str:
        if self.lifecycle.phase is Phase.READY:
            return "ready"
        return "stopping" if self.lifecycle.stopping else "starting"
