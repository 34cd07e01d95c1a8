"""The instances side of the supervisor: `scaling` decides how many, `ProcessRuntime` runs them, workers are told.

Ends, failures and readiness flow from the runtime to the decisions, and so does what is seen of the work; starts and
retirements flow back; whether a task can be served flows on to all workers. The decisions know an instance by a number.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from spearpool.config import OnBreach, Settings, TargetKind, TaskConfig
from spearpool.errors import ConfigError, InstanceStartError
from spearpool.instances.artifact import ArtifactError
from spearpool.instances.instance import Instance
from spearpool.instances.launch import Exited, Launched, Launcher, LaunchFailed, ZygoteReady
from spearpool.instances.lifecycle import longest_stop_s
from spearpool.instances.process_runtime import ProcessRuntime
from spearpool.instances.surroundings import Surroundings
from spearpool.instances.worker_limits import WorkerLimits
from spearpool.log import get_logger
from spearpool.metrics.instances_table import InstanceRow
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.rollup import Rollup
from spearpool.protocol.identifiers import InstanceId
from spearpool.worker.control import Claim, Overran, Released, SignalAgent, TaskState

from . import scaling_moves as moves
from .crew import Crew, Member
from .observer import Observer
from .owners import Owners
from .plans import budget_of, plan_of, with_bounds
from .premises import Premises
from .reload import to_replace
from .scaling import Scaling
from .traffic import TrafficCount

__all__ = ["Staff"]


QUIET_LOOK_S = 0.25
"""How long nobody looks at the instances when nothing waited or ran. A worker says at once when work waits."""


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
        rollup: Rollup,
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
                socket_path=premises.runtime_dir.agents_path,
                work_dir=premises.runtime_dir.work_path,
                log_dir=premises.state.log_path,
            ),
            monitoring,
            task_index=premises.segment.task_index,
            token_for=premises.keys.for_instance,
            tell_agent=self._tell_agent,
            on_ready=self._ready,
            on_end=self._ended,
            on_breach=self._breached,
            on_warm=self._warm,
            groups=premises.group,
        )
        self._worker_limits = WorkerLimits(premises.table, TrafficCount(premises.segment), time.monotonic)
        now = time.monotonic()
        plans = {name: plan_of(task, settings.limits_of(name)) for name, task in settings.tasks.items()}
        budget = budget_of(settings.budget, premises.segment.layout.rows)
        self._scaling = Scaling(plans, budget, moves.ScalingPolicy(), now)
        self._observer = Observer(rollup)
        self._tasks: dict[str, TaskConfig] = dict(settings.tasks)
        self._instances: dict[int, Instance] = {}  # by the number that scaling knows
        self._numbers: dict[int, int] = {}  # that number, by launch
        self._versions = dict.fromkeys(settings.tasks, 0)
        self._on_warmed: Callable[[str], None] | None = None
        self._warm_until = math.inf
        self._look_at = 0.0
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

    def overran(self, overran: Overran) -> None:
        """An execution reached its limit; an instance that does not let go of it is stuck. One that somebody else
        started is not ours to end."""
        instance = self._runtime.find(InstanceId(overran.row, overran.generation))
        if instance is None:
            return
        if overran.held_s:
            limit = f"its limit execution_timeout_s = {instance.limits.execution_timeout_s:g}"
            self._runtime.condemn(instance, f"it did not let go of an execution {overran.held_s:.0f} s after {limit}")
        else:
            self._worker_limits.overran(instance)

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
        self._runtime.rotate_logs()
        if time.monotonic() >= self._warm_until:
            self._warmed(f"the import of {', '.join(self._runtime.nursery.warming())} takes too long")
        if time.monotonic() >= self._look_at:
            self.look()

    def look(self) -> None:
        """See how much work there is, and have as many instances as it takes."""
        seen = self._observer.look(self._tasks)
        quiet = not seen.in_use and not any(load.queued for load in seen.loads.values())
        self._decide(seen)
        if quiet:
            self._look_at = min(time.monotonic() + QUIET_LOOK_S, self._scaling.next_deadline())

    def sample_usage(self) -> None:
        self._runtime.sample_usage()
        for instance in self._instances.values():
            self._worker_limits.publish(instance)
        measured = ((number, one) for number, one in self._instances.items() if one.config.max_memory_bytes)
        self._observer.measure(measured)

    def scale(self, task: str, minimum: int, maximum: int) -> None:
        """Have between so many and so many instances of a task. Raises `ConfigError`."""
        self.staff_of(task)
        config = with_bounds(self._tasks[task], minimum, maximum)
        self._tasks[task] = config
        self._decide(moves.Replan({task: plan_of(config, self._settings.limits_of(task))}))

    # A reload

    def warm(self, settings: Settings, on_warmed: Callable[[str], None]) -> None:
        """Import the code of all Python tasks anew; `on_warmed` is told when it is done, or why it cannot be done."""
        self._on_warmed = on_warmed
        python = {name: task for name, task in settings.tasks.items() if task.parsed_target.kind is TargetKind.PYTHON}
        self._warm_until = time.monotonic() + max((task.start_timeout_s for task in python.values()), default=0.0)
        for name, task in python.items():
            try:
                self._runtime.nursery.warm(name, task)
            except (ArtifactError, OSError) as error:
                self._warmed(f"task {name!r}: {error}")
                return
        if not python:
            self._warmed("")

    def _warm(self, task: str, failure: str) -> None:
        """What became of one of them."""
        if failure:
            self._warmed(f"task {task!r}: {failure}")
        elif not self._runtime.nursery.warming():
            self._warmed("")

    def _warmed(self, failure: str) -> None:
        self._warm_until = math.inf
        on_warmed, self._on_warmed = self._on_warmed, None
        if failure:
            self.cool()
        if on_warmed is not None:
            on_warmed(failure)

    def cool(self) -> None:
        """What was imported anew is not wanted after all."""
        self._runtime.nursery.cool()

    def close(self, tasks: Iterable[str]) -> None:
        """These tasks are going to be no more: nobody waits for them, and their instances finish what they have."""
        for task in tasks:
            self._say(TaskState(task, False, f"task {task!r} was removed"))
            self._decide(moves.Replan({task: None}))

    def reopen(self) -> None:
        """They stay after all."""
        for task, config in self._tasks.items():
            self._say(TaskState(task, True, ""))
            plan = plan_of(config, self._settings.limits_of(task), self._versions[task])
            self._decide(moves.Replan({task: plan}))

    def adopt(self, settings: Settings) -> None:
        """All workers run with these settings: have the instances do so as well."""
        gone = self._tasks.keys() - settings.tasks.keys()
        for task in to_replace(self._settings, settings):
            self._versions[task] += 1
        self._settings, self._tasks = settings, dict(settings.tasks)
        self._runtime.nursery.promote(gone)
        for task, config in settings.tasks.items():
            self._versions.setdefault(task, 0)
            self._failures.setdefault(task, 0)
            self._deadlines.setdefault(task, 0.0)
            plan = plan_of(config, settings.limits_of(task), self._versions[task])
            self._decide(moves.Replan({task: plan}))
        for task in gone:
            self._states.pop(task, None)

    def _say(self, state: TaskState) -> None:
        self._states[state.task] = state
        self._crew.broadcast(state)

    @property
    def tasks(self) -> Mapping[str, TaskConfig]:
        """Those that there are now."""
        return self._tasks

    # The end

    def find(self, instance: InstanceId) -> Instance | None:
        """The living instance of ours with that row."""
        return self._runtime.find(instance)

    def stop_instance(self, instance: Instance) -> None:
        """End one instance as planned; the task gets another one when it needs it."""
        self._runtime.stop_instance(instance)

    def freeze(self, instance: Instance, *, frozen: bool) -> None:
        self._runtime.freeze(instance, frozen=frozen)

    def hire_no_more(self) -> None:
        self._decide(moves.Stop())

    def stop_all(self) -> None:
        self.hire_no_more()
        self._runtime.stop_all()

    def let_go(self) -> None:
        """All are gone, or nobody waits for them any longer."""
        self._runtime.close()

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
            task.ready >= task.minimum or not task.available or task.waits_for or now >= self._deadlines[task.task]
            for task in self._scaling.snapshot()
        )

    def warnings(self) -> list[str]:
        """Tasks that do not have the instances that they should have, and why."""
        short = [task for task in self._scaling.snapshot() if task.ready < task.minimum or task.waits_for]
        return [
            f"task {task.task!r} has {task.ready} of {task.wanted} instances:"
            f" {f'not enough {task.waits_for}' if task.waits_for else task.reason or 'not ready yet'}"
            for task in short
        ]

    def staff_of(self, task: str) -> moves.TaskStaff:
        """How many instances the task has and wants, and what keeps it from them. Raises `ConfigError`."""
        for staff in self._scaling.snapshot():
            if staff.task == task:
                return staff
        raise ConfigError("task", task, f"one of: {', '.join(self._tasks) or 'none'}")

    def problem(self, task: str) -> str:
        """The last failure of a task's instances in words, or what is too scarce for them; `""` when they are well."""
        staff = self.staff_of(task)
        return f"not enough {staff.waits_for}" if staff.waits_for else staff.reason

    def failures(self, task: str) -> int:
        """How many instances of the task have failed since the pool was started: ended as nobody wanted them to."""
        return self._failures[task]

    def state_of(self, row: InstanceRow) -> str:
        """`starting`, `ready`, `paused` or `stopping`."""
        instance = self._runtime.find(row.instance)
        state = ("ready" if row.owner else "starting") if instance is None else instance.state
        asleep = state == "ready" or (instance is not None and instance.lifecycle.frozen)
        return "paused" if row.pause and asleep else state

    # Between the two

    def _decide(self, event: moves.Event) -> None:
        self._look_at = 0.0
        for action in self._scaling.handle(event, time.monotonic(), random.random()):
            match action:
                case moves.StartInstance():
                    self._start(action.task, action.number)
                case moves.Retire():
                    self._retire(self._instances[action.number], action.cause)
                case moves.Availability():
                    self._say(TaskState(action.task, action.available, action.reason))
                case _:
                    assert_never(action)

    def _start(self, task: str, number: int) -> None:
        try:
            instance = self._runtime.create_instance(task, self._tasks[task], self._settings.limits_of(task))
        except InstanceStartError as error:
            self._failed(task, str(error))
            self._decide(moves.InstanceEnded(number, failed=True, reason=str(error)))
            return
        self._instances[number] = instance
        self._numbers[instance.launch] = number
        self._observer.follow(self._instances)

    def _retire(self, instance: Instance, cause: str) -> None:
        self._log.info("an instance is retired", instance=instance.name, cause=cause)
        self._runtime.stop_instance(instance)

    def _ready(self, instance: Instance) -> None:
        self._worker_limits.publish(instance)
        self._decide(moves.InstanceReady(self._numbers[instance.launch]))

    def _ended(self, instance: Instance, reason: str, failed: bool) -> None:
        number = self._numbers.pop(instance.launch)
        del self._instances[number]
        holds = instance.config.concurrency + instance.config.prefetch
        if failed and self._observer.given(number) > holds:
            failed = False  # it has answered: its start was none that failed, however young it is
        self._observer.follow(self._instances)
        self._owners.forget(instance.id)
        self._worker_limits.forget(instance)
        if instance.crashed:
            self._failed(instance.task, reason, instance.name)
        elif not instance.lifecycle.stop_wanted:
            self._log.warning("an instance ended", instance=instance.name, reason=reason)
        self._decide(moves.InstanceEnded(number, failed, reason))

    def _breached(self, instance: Instance, breach: str) -> None:
        """A watched limit was exceeded: do what the task wants done then."""
        action = instance.limits.on_breach or OnBreach.KILL
        self._log.warning("a limit was exceeded", instance=instance.name, breach=breach, action=action.value)
        match action:
            case OnBreach.KILL:
                self._runtime.condemn(instance, breach)
            case OnBreach.RECYCLE:
                self.recycle(instance, breach)
            case OnBreach.WARN:
                pass
            case _:
                assert_never(action)

    def pause(self, instance: Instance, *, paused: bool) -> None:
        """It is given no more work, or is again."""
        self._decide(moves.Pause(self._numbers[instance.launch], paused))

    def recycle(self, instance: Instance, cause: str) -> None:
        """Have an instance replaced; it goes on until its successor is ready."""
        self._decide(moves.Recycle(self._numbers[instance.launch], cause))

    def _failed(self, task: str, reason: str, instance: str = "") -> None:
        self._failures[task] += 1
        self._log.warning("an instance failed", task=task, instance=instance, reason=reason)

    def _tell_agent(self, instance: InstanceId, signal: str) -> bool:
        member = self._owners.member_of(instance)
        if member is None:
            return False
        self._crew.send(member, SignalAgent(instance.row, instance.generation, signal))
        return True
