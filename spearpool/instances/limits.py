"""What the kernel says of an instance's limits, and how much of each it uses. The only door of psutil.

`instances.confine` puts limits in force before the program starts; here they are read back from the running process,
again and again, so that what is published is what *is*. A limit is `enforced` while the kernel holds the value that was
asked for, and `watched` while it holds another one (a process may widen its own CPU affinity, for instance) or when we
may not look. One psutil handle per process is kept, from the moment that its start time said who it is until its end is
reported, which is as soon as its number is free.

A *breach* is counted where one can be seen: an end by SIGXFSZ or SIGXCPU (or by SIGKILL, with the CPU time used up),
and each time that a process loosened a limit by itself: a resource limit (with the right to do so, or by the second
that RLIMIT_CPU leaves between soft and hard), a nice value, a set of CPUs. Nobody sees an allocation that RLIMIT_DATA
refused, or an open that RLIMIT_NOFILE refused: these fail inside the program, which may go on. Usage next to the limit
is the only hint. All figures are of the process itself, CPUs those of its main thread; the kernel, too, applies these
limits to each process of a tree apart. What is watched over a whole tree is the business of `tree_watch`.
"""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil

from spearpool.config import ResourceLimits
from spearpool.metrics.vocabulary import LIMITS, LimitLevel
from spearpool.processes import ProcessIdentity

__all__ = ["UNLIMITED", "LimitWatch", "Reading"]

UNLIMITED: int = psutil.RLIM_INFINITY
"""Value of a resource limit that is none any more: -1."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A limit at one moment: `index` is its place in `LIMITS`, `value` the kernel's, `usage` what is used of it, both
    in the limit's own unit; `breaches` says how often it was met or loosened until then."""

    index: int
    value: int
    level: LimitLevel
    usage: int
    breaches: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one limit is read from a process. `looser(found, wanted)`: the process has more than it was given."""

    in_force: Callable[[psutil.Process], Any]
    usage: Callable[[psutil.Process], float]
    looser: Callable[[Any, Any], bool]
    number: Callable[[Any], int] = int


def _resource(which: int, usage: Callable[[psutil.Process], float]) -> _Kind:
    return _Kind(
        lambda process: process.rlimit(which)[0],
        usage,
        lambda found, wanted: found == UNLIMITED or found > wanted,
    )


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _open_files(process: psutil.Process) -> int:
    """The kernel counts them by itself since Linux 6.2; before that the directory's size is 0."""
    try:
        return os.stat(f"/proc/{process.pid}/fd").st_size or process.num_fds()  # noqa: PTH116 - read by the hundred
    except PermissionError:
        raise psutil.AccessDenied(process.pid) from None
    except FileNotFoundError:
        raise psutil.NoSuchProcess(process.pid) from None


_KINDS: dict[str, _Kind] = {
    "memory_bytes": _resource(psutil.RLIMIT_DATA, lambda process: process.memory_info().data),
    "cpu_seconds": _resource(psutil.RLIMIT_CPU, _cpu_seconds),
    "file_size_bytes": _resource(psutil.RLIMIT_FSIZE, lambda _process: 0),  # nobody tells which file is the largest
    "open_files": _resource(psutil.RLIMIT_NOFILE, _open_files),
    "nice": _Kind(
        lambda process: process.nice(),
        lambda process: process.nice(),
        lambda found, wanted: found < wanted,
    ),
    "cpu_affinity": _Kind(
        lambda process: frozenset(process.cpu_affinity() or ()),
        lambda process: len(process.cpu_affinity() or ()),
        lambda found, wanted: not found <= wanted,
        len,
    ),
}


class LimitWatch:
    """Reads one process. Every method tells what it knows, and nothing new once the process is gone."""

    def __init__(self, identity: ProcessIdentity, limits: ResourceLimits) -> None:
        self._identity = identity
        self._wanted: dict[str, Any] = {
            name: value if name != "cpu_affinity" else frozenset(value)
            for name in LIMITS
            if name in _KINDS and (value := getattr(limits, name)) is not None
        }
        self._breaches = dict.fromkeys(self._wanted, 0)
        self._loose: set[str] = set()
        self._read: dict[str, Reading] = {}
        self._process = _handle(identity)

    def sample(self) -> list[Reading]:
        """The limits that were asked for, as the kernel has them now, and what is used of each: bytes, CPU seconds,
        descriptors, nice value, number of CPUs."""
        if self._process is None or not self._wanted:
            return []
        try:
            with self._process.oneshot():
                if self._process.status() == psutil.STATUS_ZOMBIE and not self._identity.alive():
                    return []
                self._read = {name: self._look(self._process, name) for name in self._wanted}
        except psutil.NoSuchProcess:
            return []
        return list(self._read.values())

    def ended(self, signum: int | None) -> str | None:
        """The process was ended by `signum`: the limit that did it, in words, counted as a breach; None if none did."""
        if signum == signals.SIGXFSZ and "file_size_bytes" in self._wanted:
            self._breaches["file_size_bytes"] += 1
            return f"a file grew to its limit file_size_bytes = {self._wanted['file_size_bytes']}"
        limit = self._wanted.get("cpu_seconds")
        if limit is None:
            return None
        last = self._read.get("cpu_seconds")
        used_up = signum == signals.SIGKILL and last is not None and last.usage >= limit
        if signum != signals.SIGXCPU and not used_up:
            return None
        self._breaches["cpu_seconds"] += 1
        return f"its limit cpu_seconds = {limit} was used up"

    def final(self) -> list[Reading]:
        """What was read last, with all breaches, after the end; nothing when the process was never seen."""
        return [replace(reading, breaches=self._breaches[name]) for name, reading in self._read.items()]

    def _look(self, process: psutil.Process, name: str) -> Reading:
        kind, wanted = _KINDS[name], self._wanted[name]
        index = LIMITS.index(name)
        try:
            found, usage = kind.in_force(process), kind.usage(process)
        except psutil.AccessDenied:  # it runs as somebody else by now
            before = self._read.get(name)
            usage = 0 if before is None else before.usage
            return Reading(index, kind.number(wanted), LimitLevel.WATCHED, int(usage), self._breaches[name])
        self._count(name, loose=kind.looser(found, wanted))
        level = LimitLevel.ENFORCED if found == wanted else LimitLevel.WATCHED
        return Reading(index, kind.number(found), level, int(usage), self._breaches[name])

    def _count(self, name: str, *, loose: bool) -> None:
        """One breach each time that a limit becomes loose."""
        if loose and name not in self._loose:
            self._loose.add(name)
            self._breaches[name] += 1
        elif not loose:
            self._loose.discard(name)


def _handle(identity: ProcessIdentity) -> psutil.Process | None:
    """A psutil handle for this very process; None when it is gone."""
    try:
        process = psutil.Process(identity.pid)
    except psutil.NoSuchProcess:
        return None
    return process if identity.alive() else None
