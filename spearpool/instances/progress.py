"""The stages of one instance, put on record as they are reached: in its row, and in the supervisor's seat.

Times are those of whoever saw it happen (monotonic ns, one clock for all processes), not those of hearing of it: the
warden or zygote that forked it, the worker that it dialled. The word of a worker may be heard before the warden's, so
whatever comes after SPAWNED waits for it: the record tells a life in its order, no stage earlier than the one before.
"""

from __future__ import annotations

from collections.abc import Callable

from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.monitoring import MonitoringService, StageReport
from spearpool.metrics.vocabulary import InstanceStage
from spearpool.protocol.identifiers import InstanceId

from .places import Place

__all__ = ["Progress"]

_MOST_RESTARTS = 0xFFFF
"""That a record can tell."""


class Progress:
    """One instance's. `connection` is the packed id of its agent's present or last connection, 0 before the first."""

    def __init__(
        self,
        table: InstancesTable,
        monitoring: MonitoringService,
        instance: InstanceId,
        task_index: int,
        clock_ns: Callable[[], int],
    ) -> None:
        self.connection = 0
        self._table = table
        self._monitoring = monitoring
        self._instance = instance
        self._task_index = task_index
        self._clock_ns = clock_ns
        self._times: dict[InstanceStage, int] = {}
        self._waiting: list[tuple[InstanceStage, int]] = []

    def requested(self, place: Place) -> None:
        """It has its row; `place` is whose place it takes."""
        now_ns = self._clock_ns()
        self._tell(InstanceStage.REQUESTED, now_ns)
        if place.restarts:
            told = StageReport(duration_ns=now_ns - place.empty_since_ns, code=min(place.restarts, _MOST_RESTARTS))
            self._monitoring.record_instance(InstanceStage.RESTARTED, self._instance, self._task_index, told)

    def reached(self, stage: InstanceStage, at_ns: int | None = None) -> None:
        """A stage between the request and the end was reached, now or at `at_ns`. Only the first time counts."""
        at_ns = self._clock_ns() if at_ns is None else at_ns
        if stage > InstanceStage.SPAWNED and InstanceStage.SPAWNED not in self._times:
            self._waiting.append((stage, at_ns))
            return
        self._tell(stage, at_ns)
        self._catch_up()

    def ended(self, *, failed: bool, code: int | None, reason: str) -> None:
        """It is gone, or never came to be. `code` and `reason` as in `StageReport`."""
        self._catch_up()
        self._tell(InstanceStage.FAILED if failed else InstanceStage.EXITED, self._clock_ns(), code, reason)

    def _catch_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        for stage, at_ns in waiting:
            self._tell(stage, at_ns)

    def _tell(self, stage: InstanceStage, at_ns: int, code: int | None = None, reason: str = "") -> None:
        if stage in self._times:
            return
        before = [time_ns for earlier, time_ns in self._times.items() if earlier < stage]
        self._times[stage] = at_ns
        self._table.mark(self._instance.row, stage, at_ns)
        told = StageReport(
            ago_ns=self._clock_ns() - at_ns,
            duration_ns=at_ns - max(before, default=at_ns),
            age_ns=at_ns - self._times[InstanceStage.REQUESTED],
            connection=self.connection if stage > InstanceStage.SPAWNED else 0,
            code=code,
            reason=reason,
        )
        self._monitoring.record_instance(stage, self._instance, self._task_index, told)
