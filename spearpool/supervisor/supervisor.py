"""The supervisor: one loop that hears the warden, the workers, the bus and the clock, and has the pure parts decide.

It owns what must survive a worker (`premises`), and it is off the data path: no execution passes through it. It puts
the parts together and brings the pool from one phase to the next:

    starting ─ all workers and min_instances ready ─► ready ─ stop ─► stopping: drained ─► instances ─► workers ─► gone

Workers are the business of `workers`, instances that of `staff`. A signal that comes while the pool is stopping already
ends it at once: everything is killed, whatever it is doing. Whatever goes wrong ends in `_finish` with an error, and
`serve` raises it after everything was taken down. That goes for bugs as well: a callback of the loop that raises what
nobody foresaw has left something half done (a record not handled, an heir not spawned), and a pool that went on after
that would fail later and worse. So it is logged with its traceback and the pool ends, with its files and exit code 1,
for whoever watches over it to start it afresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any, assert_never

from spearpool.channel import ChannelClosed
from spearpool.config import Settings
from spearpool.errors import ConfigError, PoolError, PoolStartError, SpearpoolError
from spearpool.instances.artifact import check_tasks
from spearpool.log import get_logger
from spearpool.metrics.bus import Bus
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.packing import to_plain
from spearpool.processes import kill_descendants
from spearpool.runtime_dir import RuntimeDir, StateDir
from spearpool.worker.control import FromWorker

from . import roster_moves as moves
from . import signals
from .change import Change
from .commands import issue_token, number_of, seconds_of
from .crew import Crew, Member
from .notify import ServiceManager, ServiceState
from .owners import Owners
from .plans import check_budget
from .premises import Premises, open_premises
from .reload import worker_policy
from .report import Report
from .roster import Roster
from .signalling import Signalling
from .staff import Staff
from .task_reload import TaskReload
from .warden import Warden
from .workers import Milestone, Workers

__all__ = ["Phase", "Supervisor"]

TICK_S = 0.05
MIN_TICK_S = 0.001
USAGE_S = 1.0
LEAVE_S = 5.0

_READY_LINE = ("name", "pid", "host", "port", "runtime_dir", "segment", "endpoints", "workers")


class Phase(Enum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


_SERVICE_STATES = {
    Phase.STARTING: ServiceState.STARTING,
    Phase.READY: ServiceState.READY,
    Phase.STOPPING: ServiceState.STOPPING,
}


class Supervisor:
    """Runs one pool. `serve` returns when the pool has been stopped and nothing of it is left."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        warden: Warden,
        runtime_dir: RuntimeDir,
        state: StateDir,
        announce: Callable[[dict[str, Any]], None],
        lifeline_fd: int | None,
        reread: Callable[[], Settings],
        given: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._warden = warden
        self._runtime_dir = runtime_dir
        self._state = state
        self._announce = announce
        self._lifeline_fd = lifeline_fd
        self._reread = reread
        self._given = given
        self._log = get_logger("supervisor")
        self._phase = Phase.STARTING
        self._started_at = time.monotonic()
        self._workers_ready = False
        self._usage_at = self._started_at
        self._task_reload: TaskReload | None = None
        self._change_told = 0
        self._error: SpearpoolError | None = None

    async def serve(self) -> None:
        """Raises `PoolError` or `SegmentError` when the pool cannot be started or has broken down."""
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        with contextlib.ExitStack() as stack:
            self._manager = stack.enter_context(contextlib.closing(ServiceManager(self._environ, os.getpid())))
            self._premises = stack.enter_context(
                open_premises(self._settings, self._runtime_dir, self._state, self._given)
            )
            self._assemble(stack, self._premises)
            self._listen(stack)
            stack.callback(self._end_everybody)
            self._next_tick = self._loop.call_soon(self._tick)
            await self._over
        if self._error is not None:
            raise self._error

    def _assemble(self, stack: contextlib.ExitStack, premises: Premises) -> None:
        settings = self._settings
        roster = Roster(settings.pool.workers, worker_policy(settings.pool), time.monotonic())
        crew = Crew(self._loop, self._warden, settings.pool.name, self._hear_worker)
        stack.callback(crew.close)
        owners = Owners(premises.table, crew)
        seat = Seat(premises.segment, premises.segment.layout.supervisor_seat)
        seat.occupy(0, premises.identity.pid)
        stack.callback(seat.vacate)
        monitoring = MonitoringService(seat, settings.monitoring, settings.connections.enable_monitoring)
        rollup = Rollup(premises.segment)
        self._staff = Staff(settings, self._environ, self._warden, premises, crew, owners, monitoring, rollup)
        stack.callback(self._staff.let_go)
        self._workers = Workers(
            settings, self._warden, premises, roster, crew, owners, self._staff, monitoring, self._reached
        )
        self._report = Report(settings, premises, roster, self._staff, rollup, self._started_at)
        self._bus = Bus(
            self._runtime_dir.path,
            rollup,
            self._report.workers,
            self._report.instances,
            {
                "status": self._status,
                "stop": self._stop_command,
                "token_issue": self._token_issue,
                "reload": self._reload_command,
                "scale": self._scale_command,
                "task": self._task_command,
                "change": self._change_command,
                "signal": Signalling(premises.table, crew, owners, self._staff).command,
            },
        )
        stack.callback(self._bus.close)
        self._bus.bind(self._loop)
        self._token_at = time.monotonic() + premises.renew_client_token()
        self._runtime_dir.write_pool(premises.describe(self._bus.endpoints))  # whoever finds it finds everything

    def _listen(self, stack: contextlib.ExitStack) -> None:
        loop = self._loop
        loop.set_exception_handler(self._broken)
        loop.add_reader(self._warden.fileno(), self._hear_warden)
        stack.callback(loop.remove_reader, self._warden.fileno())
        loop.add_reader(self._warden.pidfd, self._warden_died)
        stack.callback(loop.remove_reader, self._warden.pidfd)
        if self._lifeline_fd is not None:
            loop.add_reader(self._lifeline_fd, self._lifeline)
            stack.callback(loop.remove_reader, self._lifeline_fd)
        signals.heed(loop, self._signalled, self._hung_up)

    # ------------------------------------------------------------------------------------------ what is heard of others

    def _hear_warden(self) -> None:
        try:
            reports = self._warden.on_readable()
        except ChannelClosed:
            self._loop.remove_reader(self._warden.fileno())  # its pidfd tells the rest
            return
        for record, pidfd in reports:
            if pidfd is not None:
                os.close(pidfd)
            if record.launch >= 0:
                self._staff.handle(record)
            else:
                self._workers.handle(record)
        self._check()

    def _hear_worker(self, member: Member, record: FromWorker) -> None:
        self._workers.hear(member, record)
        self._check()

    def _warden_died(self) -> None:
        """Without it nothing can be started or reaped: end everything, and say so."""
        self._loop.remove_reader(self._warden.pidfd)
        self._finish(PoolError("the warden died; every process of the pool has been ended"))

    def _lifeline(self) -> None:
        assert self._lifeline_fd is not None
        if not os.read(self._lifeline_fd, 64):
            self._loop.remove_reader(self._lifeline_fd)
            self.stop()

    def _signalled(self, number: signal.Signals) -> None:
        if self._over.done():
            return
        if self._phase is Phase.STOPPING:
            self._log.warning("asked again to stop: everything is ended at once", signal=number.name)
            self._finish(PoolError(f"{number.name} while stopping: what was in flight has been killed"))
        else:
            self._log.info("stopping", signal=number.name)
            self.stop()

    def _hung_up(self) -> None:
        """Reload; nobody waits for an answer, so what is wrong is logged."""
        try:
            self._reload()
        except SpearpoolError as error:
            self._log.error("not reloaded", reason=str(error))

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something raised: one of our callbacks (see above), or a command of the bus, whose sender has been told."""
        is_callback, error = "handle" in context, context.get("exception")
        if is_callback and isinstance(error, SpearpoolError):
            self._finish(error)  # raised on purpose: it says what is wrong
            return
        loop.default_exception_handler(context)
        if is_callback:
            self._finish(PoolError(f"internal error: {error!r}"))

    # ---------------------------------------------------------------------------------------------- from phase to phase

    def stop(self, timeout_s: float | None = None) -> None:
        """Stop the pool: refuse new work, wait up to `timeout_s` for what is in flight, end everything."""
        self._phase = Phase.STOPPING
        self._tell_manager()
        self._staff.hire_no_more()
        self._workers.drain(self._workers.settings.pool.stop_timeout_s if timeout_s is None else timeout_s)

    def _reached(self, milestone: Milestone) -> None:
        match milestone:
            case moves.AllReady():
                self._workers_ready = True
            case moves.GiveUp():
                self._error = PoolStartError(milestone.reason)
                self._phase = Phase.STOPPING
                self._staff.stop_all()
            case moves.AllDrained():
                self._staff.stop_all()
            case moves.AllGone():
                self._finish()
            case _:
                assert_never(milestone)

    def _check(self) -> None:
        """What may have become true: the pool is ready, or its instances are all gone."""
        if self._phase is Phase.STARTING and self._workers_ready and self._staff.settled(time.monotonic()):
            self._phase = Phase.READY
            pool = to_plain(self._premises.describe(self._bus.endpoints))
            self._announce({key: pool[key] for key in _READY_LINE} | {"warnings": self._report.warnings()})
        if self._phase is Phase.STOPPING and self._staff.all_gone and self._workers.drained:
            self._workers.leave(LEAVE_S)

    def _finish(self, error: SpearpoolError | None = None) -> None:
        """Have `serve` end; of several errors the first counts."""
        if not self._over.done():
            self._error = self._error or error
            self._over.set_result(None)

    def _end_everybody(self) -> None:
        """Nobody may outlive the files: whatever is left after an orderly end, or after none, dies here."""
        signals.hold()
        self._next_tick.cancel()
        kill_descendants(os.getpid())

    # ------------------------------------------------------------------------------------------------------------ time

    def _tick(self) -> None:
        """Everything that depends on the clock, every 50 ms and when an heir or a rescue is due before that."""
        now = time.monotonic()
        if now >= self._token_at:
            self._token_at = now + self._premises.renew_client_token()
        self._workers.tick()
        due_s = self._workers.next_deadline() - now
        self._next_tick = self._loop.call_later(min(TICK_S, max(MIN_TICK_S, due_s)), self._tick)
        self._staff.tick()
        self._follow_change()
        self._warden.flush()
        if now >= self._usage_at:
            self._usage_at = now + USAGE_S
            self._staff.sample_usage()
            self._workers.measure()
        self._check()
        self._tell_manager()

    def _follow_change(self) -> None:
        """A reload goes on to its instances; who looks for the pool finds what it is after a change."""
        if self._task_reload is not None:
            self._task_reload.follow()
            if self._task_reload.over:
                self._task_reload = None
        change = self._workers.change
        if change.over and change.number != self._change_told:
            self._change_told = change.number
            self._runtime_dir.write_pool(self._premises.describe(self._bus.endpoints))

    def _tell_manager(self) -> None:
        change = self._workers.change
        state = _SERVICE_STATES[self._phase]
        if state is ServiceState.READY and change.kind == "reload" and not change.over:
            state = ServiceState.RELOADING
        self._manager.tell(state, self._report.summary(), time.monotonic())

    # -------------------------------------------------------------------------------------------- commands of the bus

    def _status(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return self._report.status(self._phase.value)

    def _stop_command(self, arguments: dict[str, Any]) -> dict[str, Any]:
        given = seconds_of(arguments, "timeout_s")
        wait_s = self._workers.settings.pool.stop_timeout_s if given is None else given
        self._loop.call_soon(self.stop, wait_s)
        return {"deadline_s": wait_s + self._staff.longest_stop_s() + LEAVE_S}

    def _token_issue(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return issue_token(arguments, self._premises.keys, self._staff.tasks, time.time())

    def _reload_command(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return self._reload().document()

    def _reload(self) -> Change:
        """Raises `ConfigError` when the configuration is wrong now, `PoolError` when this is not the time."""
        settings = self._reread()
        check_tasks(settings)
        check_budget(settings)
        change = self._workers.announce_reload(settings)
        try:
            self._task_reload = TaskReload(
                change, settings, self._staff, self._premises.segment, lambda: self._workers.reload(settings)
            )
        except ConfigError as error:
            change.fail(str(error))
            raise
        self._log.info("reloading", workers=change.workers)
        self._tell_manager()  # it may be over before the next tick
        return change

    def _scale_command(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if "task" in arguments:
            return self._scale_task(arguments)
        change = self._workers.scale(number_of(arguments, "workers"))
        self._log.info("scaling", workers=change.workers)
        return change.document()

    def _scale_task(self, arguments: dict[str, Any]) -> dict[str, Any]:
        task, bounds = str(arguments["task"]), (number_of(arguments, "minimum"), number_of(arguments, "maximum"))
        self._staff.scale(task, *bounds)
        self._log.info("scaling", task=task, minimum=bounds[0], maximum=bounds[1])
        return asdict(self._staff.staff_of(task))

    def _task_command(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The staff of one task."""
        return asdict(self._staff.staff_of(str(arguments.get("task"))))

    def _change_command(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """How far it has got, asked again and again by whoever has begun it."""
        if self._workers.change.number != number_of(arguments, "change"):
            raise PoolError("another change has been begun since; that one was done before")
        return self._workers.change.document()
