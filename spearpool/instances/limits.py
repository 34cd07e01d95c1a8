"""What the kernel says of an instance's limits, and how much of each it uses. The only door of psutil.

`instances.confine` puts limits in force before the program starts; here they are read back from the running process, so
that what is published is what *is*. A limit is `enforced` when the kernel holds the value that was asked for, and
`watched` when the process has changed it since (it may widen its own CPU affinity, for instance) or when we may not
look. One psutil handle per process is kept, and used only while start time says that it is still the same process.

A *breach* is counted where one can be seen: an end by SIGXCPU (or by SIGKILL, with the CPU time used up), a nice value
or a set of CPUs that the process gave itself against the limit. Nobody sees an allocation that RLIMIT_DATA refused, or
an open that RLIMIT_NOFILE refused: these fail inside the program, which may go on. Usage next to the limit is the only
hint. All figures are of the process itself; the kernel, too, applies these limits to each process of a tree apart.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from spearpool.config import ResourceLimits
from spearpool.metrics.layout import LIMITS, LimitLevel
from spearpool.processes import ProcessIdentity

__all__ = ["Limit", "LimitWatch", "Usage"]


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit as it is in force: `index` is its place in `LIMITS`, `value` the kernel's, in the limit's own unit."""

    index: int
    value: int
    level: LimitLevel


@dataclass(frozen=True, slots=True)
class Usage:
    """What is used of a limit, and how often it was met."""

    index: int
    usage: int
    breaches: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one limit is read from a process. `exceeds(found, wanted)`: the process has loosened it by itself."""

    in_force: Callable[[psutil.Process], Any]
    usage: Callable[[psutil.Process], float]
    exceeds: Callable[[Any, Any], bool] = lambda found, wanted: False  # noqa: ARG005 - the kernel does not allow it
    number: Callable[[Any], int] = int


def _rlimit(resource: int) -> Callable[[psutil.Process], int]:
    return lambda process: process.rlimit(resource)[0]


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


_KINDS: dict[str, _Kind] = {
    "memory_bytes": _Kind(_rlimit(psutil.RLIMIT_DATA), lambda process: process.memory_info().data),
    "cpu_seconds": _Kind(_rlimit(psutil.RLIMIT_CPU), _cpu_seconds),
    "open_files": _Kind(_rlimit(psutil.RLIMIT_NOFILE), lambda process: process.num_fds()),
    "nice": _Kind(
        lambda process: process.nice(),
        lambda process: process.nice(),
        lambda found, wanted: found < wanted,
    ),
    "cpu_affinity": _Kind(
        lambda process: frozenset(process.cpu_affinity() or ()),
        lambda process: len(process.cpu_affinity() or ()),
        lambda found, wanted: not found <= frozenset(wanted),
        len,
    ),
}


class LimitWatch:
    """Reads one process. Every method tells what it knows, and nothing new once the process is gone."""

    def __init__(self, identity: ProcessIdentity, limits: ResourceLimits) -> None:
        self._identity = identity
        self._wanted = {name: value for name in LIMITS if (value := getattr(limits, name)) is not None}
        self._breaches = dict.fromkeys(self._wanted, 0)
        self._usage = dict.fromkeys(self._wanted, 0.0)
        self._loosened: set[str] = set()
        self._process = _handle(identity)

    def limits(self) -> list[Limit]:
        """The limits that were asked for, as the kernel has them now."""
        return self._read(self._limit)

    def sample(self) -> list[Usage]:
        """Usage of each limit now; bytes, CPU seconds, descriptors, nice value, number of CPUs."""
        return self._read(self._sample)

    def ended(self, signum: int | None) -> str | None:
        """The process was ended by `signum`: the limit that did it, in words, counted as a breach; None if none did."""
        limit = self._wanted.get("cpu_seconds")
        if limit is None:
            return None
        used_up = signum == signals.SIGKILL and self._usage["cpu_seconds"] >= limit
        if signum != signals.SIGXCPU and not used_up:
            return None
        self._breaches["cpu_seconds"] += 1
        return f"its limit cpu_seconds = {limit} was used up"

    def final(self) -> list[Usage]:
        """The last usage known and all breaches, after the end."""
        return [self._said(name) for name in self._wanted]

    def _read(self, read: Callable[[psutil.Process, str], Any]) -> list[Any]:
        """What `read` says of each limit; nothing when the process is gone."""
        if self._process is None or not self._wanted or not self._identity.alive():
            return []
        try:
            with self._process.oneshot():
                return [read(self._process, name) for name in self._wanted]
        except psutil.NoSuchProcess:
            return []

    def _limit(self, process: psutil.Process, name: str) -> Limit:
        kind, wanted = _KINDS[name], self._wanted[name]
        try:
            found = kind.in_force(process)
        except psutil.AccessDenied:
            return Limit(LIMITS.index(name), kind.number(wanted), LimitLevel.WATCHED)
        as_asked = found == (frozenset(wanted) if name == "cpu_affinity" else wanted)
        level = LimitLevel.ENFORCED if as_asked else LimitLevel.WATCHED
        return Limit(LIMITS.index(name), kind.number(found), level)

    def _sample(self, process: psutil.Process, name: str) -> Usage:
        kind = _KINDS[name]
        try:
            self._usage[name] = kind.usage(process)
            loosened = kind.exceeds(kind.in_force(process), self._wanted[name])
        except psutil.AccessDenied:
            return self._said(name)
        if loosened and name not in self._loosened:
            self._loosened.add(name)
            self._breaches[name] += 1
        elif not loosened:
            self._loosened.discard(name)
        return self._said(name)

    def _said(self, name: str) -> Usage:
        return Usage(LIMITS.index(name), int(self._usage[name]), self._breaches[name])


def _handle(identity: ProcessIdentity) -> psutil.Process | None:
    """A psutil handle for this very process; None when it is gone."""
    try:
        process = psutil.Process(identity.pid)
    except psutil.NoSuchProcess:
        return None
    return process if identity.alive() else None
