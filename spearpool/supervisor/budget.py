"""What all instances together may reserve of the pool's and the host's memory, CPUs and places. Pure.

An instance reserves what its limits allow it to use, from its start to its end; one without a limit reserves its place
only. The host's own say is its free memory now: below `HOST_RESERVE_BYTES` nothing more is started, whatever the
reservations say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["HOST_RESERVE_BYTES", "Budget", "Need"]

HOST_RESERVE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Need:
    """What one instance reserves."""

    memory_bytes: int = 0
    cpu_cores: float = 0.0


class Budget:
    """`instances`, `memory_bytes` and `cpu_cores` are the most that there may be; infinity for no bound."""

    def __init__(
        self, instances: float = math.inf, memory_bytes: float = math.inf, cpu_cores: float = math.inf
    ) -> None:
        self._instances = instances
        self._memory_bytes = memory_bytes
        self._cpu_cores = cpu_cores
        self._held: list[Need] = []

    def shortage(self, need: Need, host_free_bytes: float = math.inf) -> str:
        """Which resource is too scarce for one more instance, in words; `""` when none is."""
        if len(self._held) + 1 > self._instances:
            return f"instances: all {self._instances:g} places are taken (budget.instances)"
        memory = sum(held.memory_bytes for held in self._held)
        if need.memory_bytes and memory + need.memory_bytes > self._memory_bytes:
            return (
                f"memory: {need.memory_bytes} bytes are wanted, and {memory} of {self._memory_bytes:.0f} are reserved"
                " (budget.memory_bytes)"
            )
        cores = sum(held.cpu_cores for held in self._held)
        if need.cpu_cores and cores + need.cpu_cores > self._cpu_cores + 1e-9:
            return (
                f"CPU: {need.cpu_cores:g} cores are wanted, and {cores:g} of {self._cpu_cores:g} are reserved"
                " (budget.cpu_cores)"
            )
        if host_free_bytes < HOST_RESERVE_BYTES:
            return f"memory: the host has only {host_free_bytes:.0f} bytes free"
        return ""

    def take(self, need: Need) -> None:
        self._held.append(need)

    def give_back(self, need: Need) -> None:
        self._held.remove(need)
