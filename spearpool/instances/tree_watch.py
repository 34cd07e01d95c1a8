"""The limits that the kernel does not keep for a tree of processes: CPUs, number of processes, room on disk.

They are *watched*: sampled about once a second, over an instance's process and all that descends from it. CPU use is
the average over `CPU_WINDOW_S`, so that a moment's work on several CPUs is no breach; a limit is exceeded when the
average is more than `CPU_TOLERANCE` times it. What is born between two samples is the price of watching: a fork bomb
has a second.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from spearpool.config import ResourceLimits
from spearpool.metrics.vocabulary import LIMIT_SCALES, LIMITS, LimitLevel
from spearpool.processes import cpu_seconds, tree_of

from .disk_gauge import DiskGauge
from .limits import Reading

__all__ = ["CPU_TOLERANCE", "CPU_WINDOW_S", "TreeWatch"]

CPU_WINDOW_S = 3.0
CPU_TOLERANCE = 1.1

_WATCHED = ("cpu_cores", "processes", "disk_bytes")


class TreeWatch:
    """One instance's. `breach` says in words what the last sample found exceeded that was not before."""

    def __init__(self, root: int, limits: ResourceLimits, directory: Path, gauge: DiskGauge) -> None:
        self._root = root
        self._limits: dict[str, float] = {
            name: value for name in _WATCHED if (value := getattr(limits, name)) is not None
        }
        self._directory = directory
        self._gauge = gauge
        self._cpu: deque[tuple[float, float]] = deque()  # when, and the seconds used until then
        self._breaches = dict.fromkeys(self._limits, 0)
        self._exceeded: set[str] = set()
        self._read: list[Reading] = []
        self.breach = ""

    def sample(self, now: float) -> list[Reading]:
        """What is used of each limit, in the units of the instances table."""
        self.breach = ""
        if not self._limits:
            return []
        tree = tree_of(self._root) if self._limits.keys() != {"disk_bytes"} else []
        used: dict[str, float] = {"processes": len(tree)}
        full = True
        if "cpu_cores" in self._limits:
            used["cpu_cores"], full = self._cores(now, tree)
        if "disk_bytes" in self._limits:
            used["disk_bytes"] = self._gauge.read(self._directory)
        for name, limit in self._limits.items():
            tolerated = limit * CPU_TOLERANCE if name == "cpu_cores" else limit
            self._judge(name, used[name], exceeded=used[name] > tolerated and (full or name != "cpu_cores"))
        self._read = [
            Reading(
                LIMITS.index(name),
                int(limit * LIMIT_SCALES.get(name, 1)),
                LimitLevel.WATCHED,
                int(used[name] * LIMIT_SCALES.get(name, 1)),
                self._breaches[name],
            )
            for name, limit in self._limits.items()
        ]
        return self._read

    def final(self) -> list[Reading]:
        """What was read last."""
        if "disk_bytes" in self._limits:
            self._gauge.forget(self._directory)
        return self._read

    def _cores(self, now: float, tree: list[int]) -> tuple[float, bool]:
        """CPUs in use on average, and whether that is the average of a whole window."""
        self._cpu.append((now, sum(map(cpu_seconds, tree))))
        while len(self._cpu) > 2 and self._cpu[1][0] <= now - CPU_WINDOW_S:
            self._cpu.popleft()
        (then, before), (_, after) = self._cpu[0], self._cpu[-1]
        if now <= then:
            return 0.0, False
        return max(0.0, after - before) / (now - then), now - then >= CPU_WINDOW_S

    def _judge(self, name: str, used: float, *, exceeded: bool) -> None:
        """One breach each time that a limit begins to be exceeded."""
        if exceeded and name not in self._exceeded:
            self._exceeded.add(name)
            self._breaches[name] += 1
            shown = f"{used:.2f}" if name == "cpu_cores" else f"{used:.0f}"
            self.breach = f"it exceeded its limit {name} = {self._limits[name]} (with {shown})"
        elif not exceeded:
            self._exceeded.discard(name)
