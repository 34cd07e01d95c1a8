"""All that is watched of one instance: what the kernel keeps of its limits, and what has to be sampled."""

from __future__ import annotations

from pathlib import Path

from spearpool.config import ResourceLimits
from spearpool.processes import ProcessIdentity

from .disk_gauge import DiskGauge
from .limits import LimitWatch, Reading
from .tree_watch import TreeWatch

__all__ = ["Watching"]


class Watching:
    """`LimitWatch` and `TreeWatch` of one process, as one."""

    def __init__(self, identity: ProcessIdentity, limits: ResourceLimits, directory: Path, gauge: DiskGauge) -> None:
        self._process = LimitWatch(identity, limits)
        self._tree = TreeWatch(identity.pid, limits, directory, gauge)

    def sample(self, now: float) -> list[Reading]:
        """For about once a second; `now` is monotonic seconds. Nothing once the process is gone."""
        return [*self._process.sample(), *self._tree.sample(now)]

    def take_breach(self) -> str:
        """Which watched limit the last sample found exceeded, in words, once."""
        breach, self._tree.breach = self._tree.breach, ""
        return breach

    def ended(self, signum: int | None) -> str | None:
        """The limit that ended the process, in words, if one did."""
        return self._process.ended(signum)

    def final(self) -> list[Reading]:
        return [*self._process.final(), *self._tree.final()]
