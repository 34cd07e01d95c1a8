"""Limits of a whole tree of processes, kept by the kernel: control groups, version 2, where we may make some.

Each instance gets a group of its own, `POOL-GROUP/INSTANCE`, and enters it before its program's first instruction; what
it starts is born there, and cannot leave. So limits that are otherwise watched are enforced (`memory.max`, `cpu.max`,
`pids.max`), as far as the controllers are delegated to us, and `cgroup.kill` ends every descendant at once, also those
that nobody can find any more because all that knew of them were killed.

A group with processes cannot have controllers for its children: so we need a group that nobody is in. That is the one
named by `pool.cgroup`; or our own, if it was delegated to us (systemd's `Delegate=`) and all who are in it are ours: we
then move into a group below. An interactive session's group has others in it, and is left alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from spearpool.config import ResourceLimits
from spearpool.errors import PoolStartError
from spearpool.metrics.vocabulary import LIMIT_SCALES, LIMITS, LimitLevel

from .limits import Reading

__all__ = ["InstanceGroup", "PoolGroup", "open_pool_group"]

_CONTROLLERS = ("cpu", "memory", "pids")
_MAIN = "spearpool-main"
_CPU_PERIOD_US = 100_000
_REMOVED_WITHIN_S = 2.0

_FILES = {"memory_bytes": "memory.max", "cpu_cores": "cpu.max", "processes": "pids.max"}
"""The limits that a group can keep, and the file that says so."""


def open_pool_group(wanted: str, pool: str, ours: Collection[int], proc: Path = Path("/proc")) -> PoolGroup | None:
    """The group below which the pool's instances get theirs, or None where there can be none.

    `wanted` is `pool.cgroup`: `auto`, `off`, or a directory. `ours` are the pids that may be moved out of the way. What
    an earlier pool of that name has left in its group is ended. Raises `PoolStartError` when a directory will not do.
    """
    if wanted == "off":
        return None
    parent = _own_group(ours, proc) if wanted == "auto" else Path(wanted)
    if parent is None:
        return None
    try:
        made = wanted != "auto" and not parent.exists()
        if wanted != "auto":
            parent.mkdir(exist_ok=True)
            if not (parent / "cgroup.procs").exists():
                if made:
                    parent.rmdir()
                raise PoolStartError(f"pool.cgroup {parent} is no control group of version 2: is the path right?")
        _delegate(parent)
        group = PoolGroup(parent / f"pool-{pool}", parent if made else None)
        group.path.mkdir(exist_ok=True)
        group.sweep()
        _delegate(group.path)
    except OSError as error:
        if wanted == "auto":
            return None
        raise PoolStartError(
            f"pool.cgroup {parent} cannot be used: {error.strerror}; it must be writable, and nobody may be in it"
        ) from None
    return group


def _own_group(ours: Collection[int], proc: Path) -> Path | None:
    """The group that we are in, with all of us moved into one below it; None when it is not ours alone to arrange."""
    mounts = (line.split() for line in (proc / "self/mountinfo").read_text().splitlines())
    mount = next((Path(fields[4]) for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"), None)
    lines = (proc / "self/cgroup").read_text().splitlines()
    name = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    if mount is None or not name:  # the root group is the machine's
        return None
    group = mount / name
    if not os.access(group / "cgroup.subtree_control", os.W_OK) or not _is_delegated(group):
        return None
    if not set(map(int, (group / "cgroup.procs").read_text().split())) <= set(ours):
        return None
    main = group / _MAIN
    try:
        main.mkdir(exist_ok=True)
        for pid in ours:
            (main / "cgroup.procs").write_text(str(pid))
    except OSError:
        return None
    return group


def _is_delegated(group: Path) -> bool:
    """Whether somebody left it to us: what root may write to can still be the service manager's own."""
    for name in ("user.delegate", "trusted.delegate"):  # set by systemd
        with suppress(OSError):
            return os.getxattr(group, name) == b"1"
    return group.stat().st_uid != 0


def _delegate(group: Path) -> None:
    """Have the groups below it limited by all controllers that there are."""
    offered = (group / "cgroup.controllers").read_text().split()
    for controller in _CONTROLLERS:
        if controller in offered:
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


@dataclass
class PoolGroup:
    """Makes groups for instances, and removes those that are empty."""

    path: Path
    _made: Path | None = None  # the directory above it, when there was none before
    _leaving: list[Path] = field(default_factory=list)

    def make(self, name: str, limits: ResourceLimits) -> InstanceGroup:
        """A new group, with those of the limits in force that it can keep. Raises OSError."""
        path = self.path / name
        self._empty([path])
        path.mkdir()
        group = InstanceGroup(path)
        group.take(limits)
        return group

    def leave(self, group: InstanceGroup) -> None:
        """Nobody is to be in it any more: who still is, dies; the kernel lets go of it a moment later."""
        group.kill()
        self._leaving.append(group.path)

    def tick(self) -> None:
        self._leaving = [path for path in self._leaving if not _removed(path)]

    def sweep(self) -> None:
        """End everybody in the groups that are there."""
        self._empty([path for path in self.path.iterdir() if path.is_dir()])

    def close(self) -> None:
        """Remove it, with what is below."""
        self.sweep()
        _removed(self.path)
        if self._made is not None:
            with suppress(OSError):  # another pool is in it by now
                self._made.rmdir()

    def _empty(self, groups: Iterable[Path]) -> None:
        left = [path for path in groups if path.exists()]
        for path in left:
            InstanceGroup(path).kill()
        end = time.monotonic() + _REMOVED_WITHIN_S
        while (left := [path for path in left if not _removed(path)]) and time.monotonic() < end:
            time.sleep(0.001)


@dataclass
class InstanceGroup:
    """One instance's group. `enforced` are the names of the limits that it keeps."""

    path: Path
    enforced: dict[str, float] = field(default_factory=dict)
    _cpu: tuple[int, float] = (0, 0.0)  # µs used until then, and when that was

    def take(self, limits: ResourceLimits) -> None:
        """Put the limits in force for which there are controllers."""
        for name, file in _FILES.items():
            value = getattr(limits, name)
            if value is not None and (self.path / file).exists():
                (self.path / file).write_text(_in_words(name, value))
                self.enforced[name] = value
        if "memory_bytes" in self.enforced:  # what is too much is not moved elsewhere, and all of it dies together
            for file, text in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with suppress(OSError):
                    (self.path / file).write_text(text)

    def kill(self) -> None:
        """SIGKILL everybody in it, and who is just being born."""
        try:
            (self.path / "cgroup.kill").write_text("1")
        except OSError:  # a kernel before 5.14, or it is gone
            with suppress(OSError):
                for pid in (self.path / "cgroup.procs").read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)

    def readings(self) -> list[Reading]:
        """What the kernel has in force, in the units of the instances table, what is used, and how often it was met."""
        found = []
        for name in self.enforced:
            with suppress(OSError, ValueError):  # it has just ended
                value, usage, breaches = getattr(self, f"_read_{name}")()
                scale = LIMIT_SCALES.get(name, 1)
                found.append(
                    Reading(LIMITS.index(name), int(value * scale), LimitLevel.ENFORCED, int(usage * scale), breaches)
                )
        return found

    def killed_by(self) -> str:
        """The limit that ended the instance, in words, if one did."""
        if "memory_bytes" in self.enforced and self._event("memory.events", "oom_kill"):
            return f"its limit memory_bytes = {self.enforced['memory_bytes']} was reached"
        return ""

    def _read_memory_bytes(self) -> tuple[float, float, int]:
        return self._number("memory.max"), self._number("memory.current"), self._event("memory.events", "oom")

    def _read_cpu_cores(self) -> tuple[float, float, int]:
        quota, period = (self.path / "cpu.max").read_text().split()
        used_us, now = self._event("cpu.stat", "usage_usec"), time.monotonic()
        before_us, then = self._cpu
        self._cpu = used_us, now
        cores = (used_us - before_us) / 1e6 / (now - then) if then and now > then else 0.0
        return int(quota) / int(period), cores, self._event("cpu.stat", "nr_throttled")

    def _read_processes(self) -> tuple[float, float, int]:
        return self._number("pids.max"), self._number("pids.current"), self._event("pids.events", "max")

    def _number(self, file: str) -> int:
        return int((self.path / file).read_text())

    def _event(self, file: str, name: str) -> int:
        lines = (line.split() for line in (self.path / file).read_text().splitlines())
        return next((int(value) for key, value in lines if key == name), 0)


def _in_words(name: str, value: float) -> str:
    return f"{int(value * _CPU_PERIOD_US)} {_CPU_PERIOD_US}" if name == "cpu_cores" else str(int(value))


def _removed(path: Path) -> bool:
    """Whether the group is gone; with groups that somebody made inside it."""
    for folder, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()
    return not path.exists()
