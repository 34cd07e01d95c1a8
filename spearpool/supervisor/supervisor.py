"""The supervisor: one loop that hears the warden, the workers, the bus and the clock, and has the pure parts decide.

It owns what must survive a worker (`premises`), and it is off the data path: no execution passes through it. Decisions
are made elsewhere (`roster` for workers, `scaling` for instances); here they are carried out. Life of a pool:

    starting ─ all workers and min_instances ready ─► ready ─ stop ─► stopping: drained ─► instances ─► workers ─► gone

Whatever goes wrong on the way ends in `_finish` with an error, and `serve` raises it after everything was taken down.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, assert_never

from spearpool import __version__
from spearpool.channel import ChannelClosed
from spearpool.config import Settings
from spearpool.errors import PoolError, PoolStartError, SpearpoolError
from spearpool.instances.launch import Exited, Launched, LaunchFailed, ZygoteReady
from spearpool.log import get_logger
from spearpool.metrics.bus import Bus
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.metrics.vocabulary import WorkerStage
from spearpool.processes import kill_descendants
from spearpool.runtime_dir import PoolDescription, RuntimeDir, StateDir
from spearpool.worker import control

from . import roster
from .commands import issue_token, seconds_of
from .crew import Crew, Member, worker_launch
from .owners import Owners
from .premises import Premises, open_premises
from .report import Report
from .staff import Staff
from .warden import Warden

__all__ = ["Phase", "Supervisor"]

TICK_S = 0.05
USAGE_S = 1.0
LEAVE_S = 5.0


class Phase(Enum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


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
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._warden = warden
        self._runtime_dir = runtime_dir
        self._state = state
        self._announce = announce
        self._lifeline_fd = lifeline_fd
        self._log = get_logger("supervisor")
        self._phase = Phase.STARTING
        self._started_at = time.monotonic()
        self._workers_ready = False
        self._error: SpearpoolError | None = None

    async def serve(self) -> None:
        """Raises `PoolError` or `SegmentError` when the pool cannot be started or has broken down."""
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        with contextlib.ExitStack() as stack:
            self._premises = stack.enter_context(open_premises(self._settings, self._runtime_dir, self._state))
            self._assemble(stack, self._premises)
            self._listen(stack)
            ticking = self._loop.create_task(self._tick())
            stack.callback(ticking.cancel)
            self._decide(roster.Tick())
            try:
                await self._over
            finally:
                # Nobody may outlive the files: whatever is left after an orderly end, or after none, dies here.
                kill_descendants(os.getpid())
        if self._error is not None:
            raise self._error

    def _assemble(self, stack: contextlib.ExitStack, premises: Premises) -> None:
        settings = self._settings
        self._roster = roster.Roster(
            settings.pool.workers,
            roster.RosterPolicy(ready_timeout_s=settings.pool.start_timeout_s),
            time.monotonic(),
        )
        self._crew = Crew(self._loop, self._warden, settings.pool.name, self._hear_worker)
        stack.callback(self._crew.close)
        self._owners = Owners(premises.table, self._crew)
        self._staff = Staff(settings, self._environ, self._warden, premises, self._crew, self._owners)
        seat = Seat(premises.segment, premises.segment.layout.supervisor_seat)
        seat.occupy(0, premises.identity.pid)
        stack.callback(seat.vacate)
        self._monitoring = MonitoringService(seat, settings.monitoring, settings.connections.enable_monitoring)
        self._rollup = Rollup(premises.segment)
        self._report = Report(settings, premises, self._roster, self._staff, self._rollup, self._started_at)
        self._bus = Bus(
            self._runtime_dir.path,
            self._rollup,
            self._report.workers,
            self._report.instances,
            {"status": self._status, "stop": self._stop_command, "token_issue": self._token_issue},
        )
        stack.callback(self._bus.close)
        self._bus.bind(self._loop)
        self._runtime_dir.write_pool(self._describe())
        self._renew_client_token()

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
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Not removed here but by the loop's end: a signal must not cut the removal of the pool's files short.
            loop.add_signal_handler(number, self._signalled, number)

    def _describe(self) -> PoolDescription:
        identity, premises = self._premises.identity, self._premises
        return PoolDescription(
            name=self._settings.pool.name,
            pid=identity.pid,
            start_ticks=identity.start_ticks,
            host=premises.listeners.host,
            port=premises.listeners.port,
            endpoints=self._bus.endpoints,
            segment=str(premises.segment.path),
            epoch=premises.epoch,
            runtime_dir=str(self._runtime_dir.path),
            version=__version__,
            workers=self._settings.pool.workers,
        )

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
                self._hear_of_worker(record)
        self._check()

    def _hear_of_worker(self, record: Launched | LaunchFailed | ZygoteReady | Exited) -> None:
        """What the warden says of a worker process."""
        incarnation = worker_launch(record.launch)
        member = self._crew.get(incarnation)
        if member is None:
            return
        match record:
            case Launched():
                self._crew.launched(incarnation, record.pid)
                self._monitoring.record_worker(WorkerStage.SPAWNED, member.slot, incarnation)
                self._decide(roster.Started(member.slot, incarnation, record.pid))
            case LaunchFailed():
                self._crew.exited(incarnation)
                self._decide(roster.SpawnFailed(member.slot, incarnation, record.reason))
            case Exited():
                self._book(member)
                stage = WorkerStage.EXITED if record.signal is None else WorkerStage.KILLED
                self._monitoring.record_worker(stage, member.slot, incarnation, record.signal or record.code or 0)
                self._crew.exited(incarnation)
                self._decide(roster.WorkerExited(member.slot, incarnation, record.code, record.signal))
            case ZygoteReady():
                raise AssertionError("a worker is no zygote")
            case _:
                assert_never(record)

    def _book(self, member: Member) -> None:
        """A worker is dead: its seat, and what it had open, before its heir can count anything."""
        seat = Seat(self._premises.segment, member.seat)
        if seat.incarnation == member.incarnation:
            loss = seat.book_crash()
            seat.vacate()
            if loss.connections or loss.executions:
                self._log.warning(
                    "a worker died with work in hand",
                    slot=member.slot,
                    connections=loss.connections,
                    executions=loss.executions,
                )
        self._staff.disconnected(self._owners.died(member))

    def _hear_worker(self, member: Member, record: control.FromWorker) -> None:
        match record:
            case control.Ready():
                self._crew.connect(member)
                self._monitoring.record_worker(WorkerStage.READY, member.slot, member.incarnation)
                self._staff.tell_states(member)
                self._decide(roster.WorkerReady(member.slot, member.incarnation))
            case control.StartFailed():
                self._decide(roster.StartFailed(member.slot, member.incarnation, record.reason))
            case control.Drained():
                self._decide(roster.Drained(member.slot, member.incarnation))
            case control.Claim():
                if self._owners.claim(record):
                    self._staff.claimed(record)
            case control.Released():
                if self._owners.release(record):
                    self._staff.released(record)
            case control.ExternalAgent():
                self._owners.admit(member, record, self._premises.segment.task_index(record.task))
            case _:
                assert_never(record)
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

    def _signalled(self, number: int) -> None:
        if self._phase is Phase.STOPPING:
            self._log.warning(
                "asked again to stop: not waiting for what is in flight", signal=signal.Signals(number).name
            )
            self.stop(0.0)
        else:
            self._log.info("stopping", signal=signal.Signals(number).name)
            self.stop()

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised what nobody foresaw: what it was about is half done, so the pool cannot go on."""
        loop.default_exception_handler(context)
        if "handle" in context:  # else a command of the bus, whose sender has been told
            self._finish(PoolError(f"internal error: {context['exception']!r}"))

    # ---------------------------------------------------------------------------------------------- what is to be done

    def _decide(self, event: roster.Event) -> None:
        """Tell the roster what happened and do what it says."""
        for action in self._roster.handle(event, time.monotonic(), random.random()):
            self._perform(action)

    def _perform(self, action: roster.Action) -> None:
        match action:
            case roster.Spawn():
                self._spawn(action)
            case roster.Drain():
                self._tell(action.incarnation, control.Drain(action.deadline_s))
            case roster.Leave():
                self._tell(action.incarnation, control.Leave())
            case roster.Kill():
                self._warden.kill_tree(worker_launch(action.incarnation))
            case roster.AllReady():
                self._workers_ready = True
            case roster.GiveUp():
                self._error = PoolStartError(action.reason)
                self._phase = Phase.STOPPING
                self._staff.stop_all()
            case roster.AllDrained():
                self._staff.stop_all()
            case roster.AllGone():
                self._finish(self._error)
            case _:
                assert_never(action)

    def _spawn(self, action: roster.Spawn) -> None:
        premises = self._premises
        setup = control.Setup(
            slot=action.slot,
            seat=action.seat,
            incarnation=action.incarnation,
            epoch=premises.epoch,
            settings=self._settings,
            keys=premises.keys.for_workers(),
            revoked=[],
        )
        self._crew.spawn(setup, [premises.listeners.sockets[action.slot].fileno(), premises.segment.fd])

    def _tell(self, incarnation: int, record: control.ToWorker) -> None:
        member = self._crew.get(incarnation)
        if member is not None:
            self._crew.send(member, record)

    def stop(self, timeout_s: float | None = None) -> None:
        """Stop the pool: refuse new work, wait up to `timeout_s` for what is in flight, end everything."""
        self._phase = Phase.STOPPING
        self._staff.hire_no_more()
        wait_s = self._settings.pool.stop_timeout_s if timeout_s is None else timeout_s
        self._decide(roster.StopRequested(time.monotonic() + wait_s))

    def _check(self) -> None:
        """What may have become true: the pool is ready, or its instances are all gone."""
        if self._phase is Phase.STARTING and self._workers_ready and self._staff.settled(time.monotonic()):
            self._phase = Phase.READY
            self._announce(self._ready_line())
        if (
            self._phase is Phase.STOPPING
            and self._staff.all_gone
            and self._roster.snapshot().state is roster.PoolState.DRAINED
        ):
            self._decide(roster.LeaveRequested(time.monotonic() + LEAVE_S))

    def _ready_line(self) -> dict[str, Any]:
        pool = self._describe()
        return {
            "name": pool.name,
            "pid": pool.pid,
            "host": pool.host,
            "port": pool.port,
            "runtime_dir": pool.runtime_dir,
            "segment": pool.segment,
            "endpoints": {"live": pool.endpoints.live, "ask": pool.endpoints.ask},
            "workers": pool.workers,
            "warnings": self._staff.warnings(),
        }

    def _finish(self, error: SpearpoolError | None) -> None:
        if not self._over.done():
            self._error = error
            self._over.set_result(None)

    # ------------------------------------------------------------------------------------------------------------ time

    async def _tick(self) -> None:
        """Everything that depends on the clock, every 50 ms."""
        usage_at = token_at = time.monotonic()
        try:
            while True:
                now = time.monotonic()
                self._decide(roster.Tick())
                self._staff.tick()
                self._warden.flush()
                if now >= usage_at:
                    self._staff.sample_usage()
                    usage_at = now + USAGE_S
                if now >= token_at:
                    token_at = now + self._renew_client_token()
                self._check()
                await asyncio.sleep(TICK_S)
        except Exception as error:
            self._finish(PoolError(f"internal error: {error!r}"))
            raise

    def _renew_client_token(self) -> float:
        """Write a fresh `client.token`; the seconds until the next one (half its life)."""
        now = time.time()
        token, expires = self._premises.keys.for_client("client.token", now)
        self._runtime_dir.write_client_token(token)
        return (expires - now) / 2

    # -------------------------------------------------------------------------------------------- commands of the bus

    def _status(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return self._report.status(self._phase.value)

    def _stop_command(self, arguments: dict[str, Any]) -> dict[str, Any]:
        given = seconds_of(arguments, "timeout_s")
        wait_s = self._settings.pool.stop_timeout_s if given is None else given
        self._loop.call_soon(self.stop, wait_s)
        return {"deadline_s": wait_s + self._staff.longest_stop_s() + LEAVE_S}

    def _token_issue(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return issue_token(arguments, self._premises.keys, self._settings.tasks, time.time())
