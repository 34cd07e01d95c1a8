"""The limits that workers keep, in the instances table: `execution_timeout_s` and `network_bytes_per_s`.

An instance's own process knows nothing of them. A worker times what it gave to the agent, and paces the agent's
connection; what came of it is told by control record or stands in the workers' seats, and is published here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.vocabulary import LIMIT_SCALES, LIMITS, LimitLevel
from spearpool.protocol.identifiers import InstanceId

from .instance import Instance

__all__ = ["Traffic", "WorkerLimits"]

LEAST_S = 0.2
"""What is measured is the traffic of at least so long."""

_TIMEOUT = LIMITS.index("execution_timeout_s")
_NETWORK = LIMITS.index("network_bytes_per_s")


class Traffic(NamedTuple):
    """What all workers together have counted of an instance: bytes both ways, and how often they had to wait."""

    size_bytes: int = 0
    throttled: int = 0


@dataclass(slots=True)
class _Account:
    """What has been published of an instance. Seats of dead workers are cleared: of `traffic` only growth counts."""

    seen_s: float
    traffic: Traffic
    rate: int = 0
    waits: int = 0
    overruns: int = 0


class WorkerLimits:
    """`traffic(instance)` adds up the seats; `clock` is monotonic seconds."""

    def __init__(
        self, table: InstancesTable, traffic: Callable[[InstanceId], Traffic], clock: Callable[[], float]
    ) -> None:
        self._table = table
        self._traffic = traffic
        self._clock = clock
        self._accounts: dict[InstanceId, _Account] = {}

    def publish(self, instance: Instance) -> None:
        """The limits of an instance, what was used since the last time, and how often they were met."""
        row, limits = instance.id.row, instance.limits
        account = self._account(instance)
        if limits.execution_timeout_s is not None:
            self._table.set_usage(row, _TIMEOUT, 0, account.overruns)
            self._table.set_limit(
                row, _TIMEOUT, int(limits.execution_timeout_s * LIMIT_SCALES["execution_timeout_s"]), LimitLevel.WATCHED
            )
        if limits.network_bytes_per_s is not None:
            rate = self._measure(instance.id, account)
            self._table.set_usage(row, _NETWORK, rate, account.waits)
            self._table.set_limit(row, _NETWORK, limits.network_bytes_per_s, LimitLevel.ENFORCED)

    def overran(self, instance: Instance) -> None:
        """An execution reached its limit at the instance."""
        account = self._account(instance)
        account.overruns += 1
        self._table.set_usage(instance.id.row, _TIMEOUT, 0, account.overruns)

    def forget(self, instance: Instance) -> None:
        self._accounts.pop(instance.id, None)

    def _account(self, instance: Instance) -> _Account:
        account = self._accounts.get(instance.id)
        if account is None:
            account = self._accounts[instance.id] = _Account(self._clock(), Traffic())
        return account

    def _measure(self, instance: InstanceId, account: _Account) -> int:
        """Bytes a second since the last time, both ways together; of a moment's traffic nothing is concluded."""
        now, before, after = self._clock(), account.traffic, self._traffic(instance)
        account.waits += max(0, after.throttled - before.throttled)
        if now - account.seen_s >= LEAST_S:
            account.rate = int(max(0, after.size_bytes - before.size_bytes) / (now - account.seen_s))
            account.seen_s, before = now, after
        account.traffic = Traffic(before.size_bytes, after.throttled)
        return account.rate
