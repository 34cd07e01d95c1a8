"""`ProcessRuntime` turns a task into running instances, watches them, and ends them.

`create_instance` follows the flow that the seed fixes, each step visible and each failure named by its step:

    resources reserved → artifact checked → working directory → environment → launch → connected → authenticated → ready

The first five are done when it returns; the process itself is started by the `Launcher` (the warden), and what became
of it comes back through `handle`. That the instance connected and authenticated is told by the worker it dialled
(`claimed`). Every stage is put on record (`progress`) and timed into the instance's row of the instances table, whose
being *alive* is what makes the instance's secret valid. An instance that ends unasked leaves its place to the next one
of its task (`places`). Deadlines are the business of `lifecycle`; `tick` has them obeyed. Nothing here blocks.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import assert_never

from spearpool.config import ResourceLimits, TargetKind, TaskConfig
from spearpool.errors import InstanceStartError, SegmentError
from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.vocabulary import InstanceStage
from spearpool.processes import ProcessIdentity
from spearpool.protocol.identifiers import InstanceId

from .artifact import ArtifactError, check_artifact, resolve_target
from .cgroups import PoolGroup
from .disk_gauge import DiskGauge
from .instance import Instance, InstanceView
from .launch import Exited, ForkSpec, Launched, Launcher, LaunchFailed, LaunchSpec, ZygoteReady
from .lifecycle import Lifecycle, Order, describe_exit, shorten
from .limits import Reading
from .log_keeper import LogKeeper
from .logs import prune_logs
from .nursery import RUNNER, Nursery
from .places import Places
from .progress import Progress
from .surroundings import Surroundings, copy_files, remove_tree
from .watching import Watching
from .zygotes import Zygote

__all__ = ["Instance", "InstanceView", "ProcessRuntime"]

_NO_PROCESS = "was not launched"


class ProcessRuntime:
    """The instances of a pool. `now` is always read from `clock_ns` (monotonic).

    `token_for(id, name)` makes an instance's secret. `tell_agent(id, signal)` has the worker that owns its connection
    send a `Signal`; False when no worker does. `on_ready(instance)` is called once, `on_end(instance, reason, failed)`
    when the instance is gone; `failed` says that it ended unasked before it was ready or soon after. All of them may
    call `create_instance`. `on_breach(instance, breach)` tells of a watched limit that was exceeded, and
    `on_warm(task, failure)` that the code of a task was imported anew (`warm`), or why not.
    """

    def __init__(
        self,
        launcher: Launcher,
        table: InstancesTable,
        surroundings: Surroundings,
        monitoring: MonitoringService,
        *,
        task_index: Callable[[str], int],
        token_for: Callable[[InstanceId, str], str],
        tell_agent: Callable[[InstanceId, str], bool],
        on_ready: Callable[[Instance], None],
        on_end: Callable[[Instance, str, bool], None],
        on_breach: Callable[[Instance, str], None],
        on_warm: Callable[[str, str], None],
        groups: PoolGroup | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._launcher = launcher
        self._table = table
        self._surroundings = surroundings
        self._monitoring = monitoring
        self._task_index = task_index
        self._token_for = token_for
        self._tell_agent = tell_agent
        self._on_ready = on_ready
        self._on_end = on_end
        self._on_breach = on_breach
        self._groups = groups
        self._gauge = DiskGauge()
        self._log_keeper = LogKeeper()
        self._clock_ns = clock_ns
        self._next_launch: Callable[[], int] = itertools.count(1).__next__
        self.nursery = Nursery(
            launcher,
            surroundings,
            self._next_launch,
            fork=self._fork_late,
            lose=self._lose,
            on_warm=on_warm,
        )
        self._instances: dict[int, Instance] = {}  # by launch
        self._by_row: dict[int, Instance] = {}
        self._places = Places()

    # --- starting -----------------------------------------------------------------------------------------------------

    def create_instance(self, task: str, config: TaskConfig, limits: ResourceLimits) -> Instance:
        """Start one instance of a task. Raises `InstanceStartError` when it cannot even be launched.

        What happens after the launch is told by `on_ready` and `on_end`.
        """
        instance = self._reserve(task, config, limits)
        with self._step(instance, "artifact"):
            environ = self._surroundings.common_environment(config.environment)
            argv = resolve_target(config.parsed_target, environ, config.working_dir)
            check_artifact(config, argv)
        with self._step(instance, "working directory"):
            working_dir = self._enter(instance)
        with self._step(instance, "control group"):
            if self._groups is not None:
                instance.group = self._groups.make(instance.name, limits)
        with self._step(instance, "environment"):
            secret = self._token_for(instance.id, instance.name)
            environ = self._surroundings.environment(instance.name, secret, task, config)
        with self._step(instance, "launch"):
            self._launch(instance, LaunchSpec(argv, environ, working_dir, limits, instance.cgroup))
        return instance

    def _reserve(self, task: str, config: TaskConfig, limits: ResourceLimits) -> Instance:
        """Resources: a row, which makes the instance's secret valid, and a place for its log."""
        place, index = self._places.take(task), self._task_index(task)
        try:
            row = self._table.open_row(index, restarts=place.restarts)
        except SegmentError as error:
            self._places.leave(task, place)
            raise InstanceStartError(str(error), instance_id="", task=task, stage="resources") from None
        progress = Progress(self._table, self._monitoring, row, index, self._clock_ns)
        progress.requested(place)
        name = row.name(task)
        lifecycle = Lifecycle(config, self._now_s())
        log = self._surroundings.log(name, config.log_bytes)
        instance = Instance(row, name, task, config, limits, place, lifecycle, progress, log, self._next_launch())
        self._instances[instance.launch] = instance
        self._by_row[row.row] = instance
        return instance

    def _enter(self, instance: Instance) -> str:
        if instance.config.working_dir is not None:
            return instance.config.working_dir
        instance.directory = self._surroundings.private_directory(instance.name, kept=instance.config.keep_workdir)
        copy_files(instance.config.files, instance.directory)
        return str(instance.directory)

    def _launch(self, instance: Instance, spec: LaunchSpec) -> None:
        """Directly, or by a fork of its zygote as soon as that is ready."""
        kind = instance.config.parsed_target.kind
        if kind is TargetKind.AGENT:
            self._start(instance, spec)
            return
        zygote = self.nursery.zygote_for(instance.task, instance.config, spec.argv)
        if zygote.ready:
            self._fork(zygote, instance, spec)
        else:
            zygote.waiting[instance.launch] = spec

    def _fork(self, zygote: Zygote, instance: Instance, spec: LaunchSpec) -> None:
        argv = spec.argv if zygote.key == RUNNER else []
        self._start(instance, ForkSpec(zygote.launch, argv, spec.environ, spec.working_dir, spec.limits, spec.cgroup))

    def _start(self, instance: Instance, spec: LaunchSpec | ForkSpec) -> None:
        instance.lifecycle.launching()
        log_fd = instance.log.open()
        self._log_keeper.follow(instance.log)
        try:
            self._launcher.launch(instance.launch, spec, log_fd)
        finally:
            os.close(log_fd)

    @contextmanager
    def _step(self, instance: Instance, stage: str) -> Iterator[None]:
        """Undo everything when this step of the start fails, and say which it was."""
        try:
            yield
        except (ArtifactError, OSError, ValueError) as error:  # ValueError: a spec that fits no control record
            self._discard(instance)
            raise InstanceStartError(
                f"instance {instance.name}: {stage}: {error}",
                instance_id=instance.name,
                task=instance.task,
                stage=stage,
            ) from None

    # --- what the launcher reports ------------------------------------------------------------------------------------

    def handle(self, record: Launched | LaunchFailed | ZygoteReady | Exited) -> None:
        """What became of a launch. Those of others are ignored."""
        if self.nursery.handle(record):
            return
        instance = self._instances.get(record.launch)
        if instance is None:
            return
        match record:
            case Launched():
                self._launched(instance, record)
            case LaunchFailed():
                self._end(instance, instance.lifecycle.explain_no_process(shorten(record.reason)))
            case Exited():
                breach = instance.watch.ended(record.signal) if instance.watch is not None else None
                end = describe_exit(record.code, record.signal) + (f" ({breach})" if breach else "")
                self._end(instance, instance.lifecycle.explain(end, self._now_s()), record)
            case ZygoteReady():
                raise AssertionError("an instance is no zygote")
            case _:
                assert_never(record)

    def _fork_late(self, zygote: Zygote, launch: int, spec: LaunchSpec) -> None:
        instance = self._instances[launch]
        try:
            self._fork(zygote, instance, spec)
        except (OSError, ValueError) as error:
            self._end(instance, instance.lifecycle.explain_no_process(str(error)))

    def _lose(self, launch: int, reason: str) -> None:
        """It waited for a zygote in vain."""
        instance = self._instances[launch]
        self._end(instance, instance.lifecycle.explain_no_process(reason))

    def _launched(self, instance: Instance, record: Launched) -> None:
        instance.identity = ProcessIdentity(record.pid, record.start_ticks)
        instance.lifecycle.launched()
        self._table.set_process(instance.id.row, record.pid, record.start_ticks)
        instance.progress.reached(InstanceStage.SPAWNED, record.forked_ns)
        directory = instance.directory or Path(instance.config.working_dir or ".")
        instance.watch = Watching(instance.identity, instance.limits, directory, self._gauge, instance.group)
        self._publish(instance, instance.watch.sample(self._now_s()))

    # --- what the workers report --------------------------------------------------------------------------------------

    def claimed(self, instance: InstanceId, connection: int, connected_ns: int, authenticated_ns: int) -> None:
        """Its agent has authenticated at a worker over that connection (its packed id; times: monotonic ns)."""
        found = self.find(instance)
        if found is None:
            return
        found.progress.connection = connection
        if found.lifecycle.claimed(self._now_s()):
            found.progress.reached(InstanceStage.CONNECTED, connected_ns)
            found.progress.reached(InstanceStage.AUTHENTICATED, authenticated_ns)
            found.progress.reached(InstanceStage.READY)
            self._on_ready(found)

    def released(self, instance: InstanceId) -> None:
        """Its agent has no connection any more, and is expected to come back."""
        found = self.find(instance)
        if found is not None:
            found.lifecycle.released(self._now_s())

    # --- stopping -----------------------------------------------------------------------------------------------------

    def stop_instance(self, instance: Instance) -> None:
        """End an instance: its agent is asked, then its process group gets SIGTERM, then its whole tree SIGKILL."""
        if instance.lifecycle.frozen:
            self.freeze(instance, frozen=False)
        self._obey(instance, instance.lifecycle.stop(self._now_s()))

    def freeze(self, instance: Instance, *, frozen: bool) -> None:
        """Stop all its processes where they stand, or have them go on."""
        instance.lifecycle.freeze(self._now_s(), frozen=frozen)
        self._launcher.signal_tree(instance.launch, signal.SIGSTOP if frozen else signal.SIGCONT)

    def condemn(self, instance: Instance, complaint: str) -> None:
        """End its whole tree at once: it did what `complaint` says, and that is a crash."""
        self._obey(instance, instance.lifecycle.condemn(complaint, self._now_s()))

    def stop_all(self) -> None:
        """End all instances and zygotes; they are gone when `all_gone`."""
        for instance in list(self._instances.values()):
            self.stop_instance(instance)
        self.nursery.stop()

    def close(self) -> None:
        """When all are gone, or nobody can be waited for any longer."""
        self._log_keeper.close()

    @property
    def all_gone(self) -> bool:
        return not self._instances and self.nursery.empty

    def tick(self) -> None:
        """Have deadlines obeyed that have passed."""
        if self._groups is not None:
            self._groups.tick()
        now = self._now_s()
        for instance in list(self._instances.values()):
            if instance.launch in self._instances:  # not gone along with another one just now
                self._obey(instance, instance.lifecycle.expire(now))

    def next_deadline(self) -> float:
        """Monotonic seconds at which `tick` has something to do; infinity when nothing is awaited."""
        return min((instance.lifecycle.deadline for instance in self._instances.values()), default=math.inf)

    def _obey(self, instance: Instance, order: Order | None) -> None:
        if instance.lifecycle.stopping:
            instance.progress.reached(InstanceStage.STOPPING)
        match order:
            case None:
                pass
            case Order.ABANDON:
                self._abandon(instance)
            case Order.ASK:
                if not self._tell_agent(instance.id, "Terminate"):
                    self._obey(instance, instance.lifecycle.hurry(self._now_s()))
            case Order.TERMINATE:
                self._launcher.signal_group(instance.launch, signal.SIGTERM)
            case Order.KILL:
                self._launcher.kill_tree(instance.launch)
            case _:
                assert_never(order)

    def _abandon(self, instance: Instance) -> None:
        """Stop waiting for a zygote; one that did not get ready in all that time hangs, and takes the others along."""
        zygote = self.nursery.awaited_by(instance.launch)
        assert zygote is not None
        if instance.lifecycle.stop_wanted:
            del zygote.waiting[instance.launch]
            self._end(instance, instance.lifecycle.explain_no_process(""))
        else:
            self._launcher.kill_tree(zygote.launch)
            self.nursery.bury(zygote, "the import of its code takes too long")

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _end(self, instance: Instance, reason: str, exited: Exited | None = None) -> None:
        """It is gone: its secret is void, its directory removed, its end told with the last lines of its log."""
        failed = instance.lifecycle.failed(self._now_s())
        if instance.watch is not None:
            self._publish(instance, instance.watch.final())
        self._discard(instance, exited)
        prune_logs(self._surroundings.log_dir, instance.task, {other.name for other in self._instances.values()})
        if not instance.lifecycle.stop_wanted and (tail := instance.log.tail()):
            reason = f"{reason}; its log ends:\n{tail}"
        self._on_end(instance, reason, failed)

    def _discard(self, instance: Instance, exited: Exited | None = None) -> None:
        """Put its end on record, how its process `exited` if there was one, and forget it."""
        lifecycle, code = instance.lifecycle, None if exited is None else exited.returncode
        end = _NO_PROCESS if exited is None else describe_exit(exited.code, exited.signal)
        instance.crashed = lifecycle.crashed(self._now_s(), clean=code == 0)
        instance.progress.ended(failed=instance.crashed, code=code, reason=lifecycle.cause(end))
        if not lifecycle.stop_wanted:
            self._places.leave(instance.task, instance.place.left(self._clock_ns()))
        self._table.close_row(instance.id.row)
        self._log_keeper.forget(instance.log)
        if self._groups is not None and instance.group is not None:
            self._groups.leave(instance.group)
        del self._instances[instance.launch]
        del self._by_row[instance.id.row]
        if instance.config.keep_workdir:
            self._surroundings.prune_kept(instance.task, {other.name for other in self._instances.values()})
        elif instance.directory is not None:
            remove_tree(instance.directory)

    # --- watching -----------------------------------------------------------------------------------------------------

    def sample_usage(self) -> None:
        """Publish each instance's limits as they are now, and what it uses of them. For about once a second."""
        now = self._now_s()
        for instance in list(self._instances.values()):
            if instance.watch is not None:
                self._publish(instance, instance.watch.sample(now))
                breach = instance.watch.take_breach()
                if breach and not instance.lifecycle.stopping:
                    self._on_breach(instance, breach)

    def rotate_logs(self) -> None:
        """Keep logs within their quotas. For every tick: those that do not grow cost nothing."""
        self._log_keeper.tick(self._now_s())

    def snapshot(self) -> list[InstanceView]:
        """The living ones, in the order of their requests."""
        return [instance.view() for instance in self._instances.values()]

    def find(self, instance: InstanceId) -> Instance | None:
        """The living instance of that row and generation."""
        found = self._by_row.get(instance.row)
        return found if found is not None and found.id == instance else None

    def _publish(self, instance: Instance, readings: Iterable[Reading]) -> None:
        for reading in readings:
            self._table.set_limit(instance.id.row, reading.index, reading.value, reading.level)
            self._table.set_usage(instance.id.row, reading.index, reading.usage, reading.breaches)

    def _now_s(self) -> float:
        return self._clock_ns() / 1e9
