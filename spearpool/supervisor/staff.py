"""The instances side of the supervisor: `scaling` decides how many, `ProcessRuntime` runs them, workers are told.

Ends, failures and readiness flow from the runtime to the decisions; starts flow back; whether a task can be served
flows on to all workers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping

from spearpool.config import Settings
from spearpool.errors import InstanceStartError
from spearpool.instances.instance import Instance
from spearpool.instances.launch import Exited, Launched, Launcher, LaunchFailed, ZygoteReady
from spearpool.instances.lifecycle import longest_stop_s
from spearpool.instances.process_runtime import ProcessRuntime
from spearpool.instances.surroundings import Surroundings
from spearpool.log import get_logger
from spearpool.metrics.instances_table import InstanceRow
from spearpool.metrics.monitoring import MonitoringService
from spearpool.protocol.identifiers import InstanceId
from spearpool.worker.control import Claim, Released, SignalAgent, TaskState

from . import scaling
from .crew import Crew, Member
from .owners import Owners
from .premises import Premises

__all__ = ["Staff"]


class Staff:
    """All instances of all tasks."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        launcher: Launcher,
        premises: Premises,
        crew: Crew,
        owners: Owners,
        monitoring: MonitoringService,
    ) -> None:
        self._settings = settings
        self._crew = crew
        self._owners = owners
        self._log = get_logger("staff")
        listeners = premises.listeners
        self._runtime = ProcessRuntime(
            launcher,
            premises.table,
            Surroundings(
                environ=environ,
                port=listeners.port,
                host=listeners.host,
                work_dir=premises.runtime_dir.work_path,
                log_dir=premises.state.log_path,
            ),
            monitoring,
            task_index=premises.segment.task_index,
            token_for=premises.keys.for_instance,
            tell_agent=self._tell_agent,
            on_ready=self._ready,
            on_end=self._ended,
        )
        now = time.monotonic()
        wanted = {name: task.min_instances for name, task in settings.tasks.items()}
        self._scaling = scaling.Scaling(wanted, scaling.ScalingPolicy(), now)
        self._states: dict[str, TaskState] = {}
        self._failures = dict.fromkeys(settings.tasks, 0)
        self._deadlines = {name: now + task.start_timeout_s for name, task in settings.tasks.items()}

    # What is heard

    def handle(self, record: Launched | LaunchFailed | ZygoteReady | Exited) -> None:
        self._runtime.handle(record)

    def claimed(self, claim: Claim) -> None:
        instance = InstanceId(claim.row, claim.generation)
        self._runtime.claimed(instance, claim.connection, claim.connected_ns, claim.authenticated_ns)

    def released(self, released: Released) -> None:
        self._runtime.released(InstanceId(released.row, released.generation))

    def disconnected(self, instances: Iterable[InstanceId]) -> None:
        """Their worker died; their agents will dial again."""
        for instance in instances:
            self._runtime.released(instance)

    def tell_states(self, member: Member) -> None:
        """A new worker takes every task for available until it is told otherwise."""
        for state in self._states.values():
            self._crew.send(member, state)

    # What is done

    def tick(self) -> None:
        self._runtime.tick()
        self._decide(scaling.Tick())

    def sample_usage(self) -> None:
        self._runtime.sample_usage()

    def hire_no_more(self) -> None:
        self._decide(scaling.Stop())

    def stop_all(self) -> None:
        self.hire_no_more()
        self._runtime.stop_all()

    @property
    def all_gone(self) -> bool:
        return self._runtime.all_gone

    def longest_stop_s(self) -> float:
        """How long stopping all instances can take."""
        return max(map(longest_stop_s, self._settings.tasks.values()), default=0.0)

    # What is known

    def settled(self, now: float) -> bool:
        """Whether each task has its instances, or has failed to get them in its time."""
        return all(
            task.ready >= task.wanted or not task.available or now >= self._deadlines[task.task]
            for task in self._scaling.snapshot()
        )

    def warnings(self) -> list[str]:
        """Tasks that do not have all their instances, and why."""
        return [
            f"task {task.task!r} has {task.ready} of {task.wanted} instances: {task.reason or 'not ready yet'}"
            for task in self._scaling.snapshot()
            if task.ready < task.wanted
        ]

    def problem(self, task: str) -> str:
        """The last failure of a task's instances in words, `""` when they are well."""
        return next(staff.reason for staff in self._scaling.snapshot() if staff.task == task)

    def failures(self, task: str) -> int:
        """How many instances of the task have failed since the pool was started: ended as nobody wanted them to."""
        return self._failures[task]

    def state_of(self, row: InstanceRow) -> str:
        """`starting`, `ready` or `stopping`."""
        instance = self._runtime.find(row.instance)
        if instance is not None:
            return instance.state
        return "ready" if row.owner else "starting"

    # Between the two

    def _decide(self, event: scaling.Event) -> None:
        for action in self._scaling.handle(event, time.monotonic(), random.random()):
            match action:
                case scaling.StartInstance():
                    self._start(action.task)
                case scaling.Availability():
                    state = TaskState(action.task, action.available, action.reason)
                    self._states[action.task] = state
                    self._crew.broadcast(state)

    def _start(self, task: str) -> None:
        try:
            self._runtime.create_instance(task, self._settings.tasks[task], self._settings.limits_of(task))
        except InstanceStartError as error:
            self._failed(task, str(error))
            self._decide(scaling.InstanceEnded(task, was_ready=False, failed=True, reason=str(error)))

    def _ready(self, instance: Instance) -> None:
        self._decide(scaling.InstanceReady(instance.task))

    def _ended(self, instance: Instance, reason: str, failed: bool) -> None:
        self._owners.forget(instance.id)
        if instance.crashed:
            self._failed(instance.task, reason, instance.name)
        elif not instance.lifecycle.stop_wanted:
            self._log.warning("an instance ended", instance=instance.name, reason=reason)
        self._decide(scaling.InstanceEnded(instance.task, instance.was_ready, failed, reason))

    def _failed(self, task: str, reason: str, instance: str = "") -> None:
        self._failures[task] += 1
        self._log.warning("an instance failed", task=task, instance=instance, reason=reason)

    def _tell_agent(self, instance: InstanceId, signal: str) -> bool:
        member = self._owners.member_of(instance)
        if member is None:
            return False
        self._crew.send(member, SignalAgent(instance.row, instance.generation, signal))
        return True
