"""All that is watched of one instance: what the kernel keeps of its limits, and what has to be sampled.

What a control group keeps for the whole tree is neither sampled nor read from the process.
"""

from __future__ import annotations

from pathlib import Path

from spearpool.config import ResourceLimits
from spearpool.packing import replace
from spearpool.processes import ProcessIdentity

from .cgroups import InstanceGroup
from .disk_gauge import DiskGauge
from .limits import LimitWatch, Reading
from .tree_watch import TreeWatch

__all__ = ["Watching"]


class Watching:
    """`LimitWatch`, `TreeWatch` and the control group of one instance, as one."""

    def __init__(
        self,
        identity: ProcessIdentity,
        limits: ResourceLimits,
        directory: Path,
        gauge: DiskGauge,
        group: InstanceGroup | None = None,
    ) -> None:
        self._group = group
        if group is not None:
            limits = replace(limits, **dict.fromkeys(group.enforced))
        self._process = LimitWatch(identity, limits)
        self._tree = TreeWatch(identity.pid, limits, directory, gauge)
        self._of_group: list[Reading] = []

    def sample(self, now: float) -> list[Reading]:
        """For about once a second; `now` is monotonic seconds. Nothing once the process is gone."""
        if self._group is not None:
            self._of_group = self._group.readings()
        return [*self._of_group, *self._process.sample(), *self._tree.sample(now)]

    def take_breach(self) -> str:
        """Which watched limit the last sample found exceeded, in words, once."""
        breach, self._tree.breach = self._tree.breach, ""
        return breach

    def ended(self, signum: int | None) -> str | None:
        """The limit that ended the process, in words, if one did."""
        return (self._group is not None and self._group.killed_by()) or self._process.ended(signum)

    def final(self) -> list[Reading]:
        return [*self._of_group, *self._process.final(), *self._tree.final()]
