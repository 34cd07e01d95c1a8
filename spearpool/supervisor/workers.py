"""The workers' side of the supervisor: `roster` decides who sits where, the warden forks, the crew talks.

What a worker says, and what the warden says of its process, become events of the roster; what the roster orders is done
here. New connections are steered to the slots that serve before anything else follows from a change of them. A worker
that died is booked before its heir can count anything. What has become true of all workers together is told on as a
`Milestone`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import assert_never

from spearpool.config import Settings
from spearpool.errors import ConfigError, PoolError
from spearpool.instances.launch import Exited, Launched, LaunchFailed, ZygoteReady
from spearpool.instances.lifecycle import describe_exit
from spearpool.log import get_logger
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.seat import Seat
from spearpool.metrics.vocabulary import COUNTER, SeatState, WorkerStage
from spearpool.processes import ProcessIdentity, private_bytes
from spearpool.worker import control

from . import roster_moves as moves
from .change import Change
from .crew import Crew, Member, worker_launch
from .hang import Dump, End, HangWatch
from .owners import Owners
from .premises import Premises
from .reload import check_reload, worker_policy
from .rescue import Lend, Rescues, TakeBack
from .roster import PoolState, Roster
from .staff import Staff
from .warden import Warden

__all__ = ["Milestone", "Workers"]

Milestone = moves.AllReady | moves.GiveUp | moves.AllDrained | moves.AllGone


class Workers:
    """All workers of a pool. `on_milestone` is called as soon as one is reached."""

    def __init__(
        self,
        settings: Settings,
        warden: Warden,
        premises: Premises,
        roster: Roster,
        crew: Crew,
        owners: Owners,
        staff: Staff,
        monitoring: MonitoringService,
        on_milestone: Callable[[Milestone], None],
    ) -> None:
        self._settings = settings
        self._warden = warden
        self._premises = premises
        self._roster = roster
        self._crew = crew
        self._owners = owners
        self._staff = staff
        self._monitoring = monitoring
        self._on_milestone = on_milestone
        self._log = get_logger("workers")
        self._rescues = Rescues()
        self._hangs = HangWatch(settings.pool.worker_hang_timeout_s)
        self._seats: dict[int, Seat] = {}
        self._opened_before: dict[int, int] = {}  # by incarnation: what its seat had counted when it sat down
        self._change = Change(0, "none", 0, ())
        self._settings_before = settings

    @property
    def settings(self) -> Settings:
        """What the next worker will run with."""
        return self._settings

    # What is asked of all

    def tick(self) -> None:
        """The first one spawns them."""
        retiring = self._roster.retiring()
        if retiring:
            listeners = self._premises.listeners
            self._decide(moves.QueuesSeen({slot: listeners.accept_queue(slot) for slot in retiring}))
        self._decide(moves.Tick())
        self._look_for_hangs()

    def drain(self, wait_s: float) -> None:
        """Refuse new work, and wait up to `wait_s` for what is in flight; then `AllDrained`."""
        self._change.fail("the pool is being stopped")
        self._decide(moves.StopRequested(time.monotonic() + wait_s))

    def leave(self, wait_s: float) -> None:
        """Go, or be killed after `wait_s`; then `AllGone`."""
        self._decide(moves.LeaveRequested(time.monotonic() + wait_s))

    def next_deadline(self) -> float:
        """Monotonic time at which `tick` has something to do that should not wait."""
        return min(self._roster.next_deadline(), self._rescues.next_deadline())

    def announce_reload(self, settings: Settings) -> Change:
        """Every worker is going to be replaced, as soon as `reload` is called. Raises `PoolError` or `ConfigError`."""
        number = self._next_change()
        check_reload(self._settings, settings)
        self._change = Change.reload(number, self._roster.snapshot().slots)
        return self._change

    def reload(self, settings: Settings) -> None:
        """Replace every worker, one by one, by one with these settings."""
        self._settings_before = self._settings
        self._adopt(settings)
        self._change.begin(self._roster.snapshot().slots)
        self._decide(moves.ReloadRequested())

    def scale(self, workers: int) -> Change:
        """Have so many slots. Raises `PoolError` or `ConfigError`."""
        number = self._next_change()
        most = self._settings.pool.slots
        if not 1 <= workers <= most:
            raise ConfigError("workers", workers, f"1 to {most} (pool.max_workers)")
        self._premises.listeners.grow(workers, self._settings.connections.backlog)
        self._change = Change.scale(number, self._roster.snapshot().slots, workers)
        self._decide(moves.ScaleRequested(workers))
        return self._change

    @property
    def change(self) -> Change:
        """The last reload or scaling."""
        return self._change

    def _next_change(self) -> int:
        """The number of a new change, which there can be none of while another one is under way."""
        if not self._change.over:
            raise PoolError(f"a {self._change.kind} is under way: wait until it is done")
        if self._roster.snapshot().state is not PoolState.RUNNING:
            raise PoolError("the pool is starting or stopping: its workers stay as they are")
        return self._change.number + 1

    def _adopt(self, settings: Settings) -> None:
        self._settings = settings
        self._roster.adopt(worker_policy(settings.pool))
        self._hangs = HangWatch(settings.pool.worker_hang_timeout_s)

    @property
    def drained(self) -> bool:
        return self._roster.snapshot().state is PoolState.DRAINED

    # What is heard

    def handle(self, record: Launched | LaunchFailed | ZygoteReady | Exited) -> None:
        """What the warden says of a worker's process."""
        incarnation = worker_launch(record.launch)
        member = self._crew.get(incarnation)
        if member is None:
            return
        match record:
            case Launched():
                self._crew.launched(incarnation, ProcessIdentity(record.pid, record.start_ticks))
                self._monitoring.record_worker(WorkerStage.SPAWNED, member.slot, incarnation)
                self._decide(moves.Started(member.slot, incarnation, record.pid))
            case LaunchFailed():
                self._crew.exited(incarnation)
                self._change.failed(member.slot, f"could not be forked: {record.reason}")
                self._decide(moves.SpawnFailed(member.slot, incarnation, record.reason))
            case Exited():
                self._book(member)
                stage = WorkerStage.EXITED if record.signal is None else WorkerStage.KILLED
                self._monitoring.record_worker(stage, member.slot, incarnation, record.signal or record.code or 0)
                self._crew.exited(incarnation)
                self._opened_before.pop(incarnation, None)
                if not member.ready:
                    self._change.failed(member.slot, describe_exit(record.code, record.signal))
                self._decide(moves.WorkerExited(member.slot, incarnation, record.code, record.signal))
            case ZygoteReady():
                raise AssertionError("a worker is no zygote")
            case _:
                assert_never(record)

    def hear(self, member: Member, record: control.FromWorker) -> None:
        """What a worker says."""
        match record:
            case control.Ready():
                self._crew.connect(member)
                self._opened_before[member.incarnation] = self._opened(member)
                self._change.ready(member.slot, member.incarnation, record.pid)
                self._monitoring.record_worker(WorkerStage.READY, member.slot, member.incarnation)
                self._staff.tell_states(member)
                self._decide(moves.WorkerReady(member.slot, member.incarnation))
            case control.StartFailed():
                self._decide(moves.StartFailed(member.slot, member.incarnation, record.reason))
            case control.Drained():
                self._decide(moves.Drained(member.slot, member.incarnation))
            case control.Emptied():
                self._change.emptied(member.slot, record.handed_over, record.closed, record.awaited)
                self._log.info(
                    "a worker is empty",
                    slot=member.slot,
                    handed_over=record.handed_over,
                    closed=record.closed,
                    awaited=record.awaited,
                )
                self._decide(moves.Emptied(member.slot, member.incarnation))
            case control.LeaveWanted():
                self._decide(moves.RenewRequested(member.slot, member.incarnation, "it was asked to end (SIGTERM)"))
            case control.WorkWaits():
                self._staff.look()
            case control.Claim():
                if self._owners.claim(record, member):
                    self._staff.claimed(record)
            case control.Released():
                if self._owners.release(record):
                    self._staff.released(record)
            case control.Overran():
                self._staff.overran(record)
            case control.ExternalAgent():
                self._owners.admit(member, record, self._premises.segment.task_index(record.task))
            case _:
                assert_never(record)

    def _book(self, member: Member) -> None:
        """A worker is dead: its seat, and what it had open, before its heir can count anything."""
        seat = self._seat(member)
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

    # What is seen

    def measure(self) -> None:
        """How much of what they may have in their lives the workers have had; and what was booked to the dead late."""
        for seat in self._seats.values():
            if seat.state is SeatState.GONE:
                seat.book_crash()  # who hands a connection over counts it before it sees that the other has just died
        pool = self._settings.pool
        for member in self._crew:
            if member.ready and member.process and (pool.max_worker_connections or pool.max_worker_memory_bytes):
                connections = self._opened(member) - self._opened_before[member.incarnation]
                memory = private_bytes(member.process.pid)
                self._decide(moves.Measured(member.slot, member.incarnation, connections, memory))

    def _opened(self, member: Member) -> int:
        """How many connections have ever been accepted in its seat."""
        return self._seat(member).counters[COUNTER["connections_opened"]]

    def _look_for_hangs(self) -> None:
        """Who is ready, and has not left its seat, must beat. A start has a deadline of its own."""
        beating = {
            member.incarnation: self._seat(member).heartbeat_ns
            for member in self._crew
            if member.ready and self._sits(member)
        }
        for found in self._hangs.look(beating, time.monotonic()):
            member = self._crew.get(found.incarnation)
            if member is None:  # its end followed from that of one before it
                continue
            match found:
                case Dump():
                    self._log.warning(
                        "a worker does not answer: its stacks follow, if it can still write them",
                        slot=member.slot,
                        pid=self._seat(member).pid,
                    )
                    self._crew.signal(member, control.STACKS_SIGNAL)
                case End():
                    limit_s = self._settings.pool.worker_hang_timeout_s
                    self._log.error("a worker hangs: it is killed", slot=member.slot, pid=self._seat(member).pid)
                    reason = f"did not answer for {limit_s:g} s and was killed"
                    self._decide(moves.Hung(member.slot, member.incarnation, reason))
                case _:
                    assert_never(found)

    def _sits(self, member: Member) -> bool:
        seat = self._seat(member)
        return seat.incarnation == member.incarnation and seat.state is not SeatState.GONE

    def _seat(self, member: Member) -> Seat:
        """Its seat, read or booked again and again."""
        if member.seat not in self._seats:
            self._seats[member.seat] = Seat(self._premises.segment, member.seat)
        return self._seats[member.seat]

    # What is done

    def _decide(self, event: moves.Event) -> None:
        """Tell the roster what happened and do what it says."""
        actions = self._roster.handle(event, time.monotonic(), random.random())
        self._premises.listeners.steering.steer(self._roster.serving())
        for action in actions:
            self._change.follow(action)
            self._perform(action)
        self._rescue()

    def _rescue(self) -> None:
        """Have neighbours accept for slots without a worker."""
        for change in self._rescues.look(self._roster.attendants(), time.monotonic()):
            match change:
                case Lend():
                    listener = self._premises.listeners.sockets[change.slot]
                    self._tell(change.incarnation, control.Rescue(change.slot), [listener.fileno()])
                case TakeBack():
                    self._tell(change.incarnation, control.RescueOver(change.slot))
                case _:
                    assert_never(change)

    def _perform(self, action: moves.Action) -> None:
        match action:
            case moves.Spawn():
                self._spawn(action)
            case moves.Drain():
                self._tell(action.incarnation, control.Drain(action.deadline_s))
            case moves.Empty():
                self._tell(action.incarnation, control.Empty(action.deadline_s))
            case moves.Leave():
                self._tell(action.incarnation, control.Leave())
            case moves.Kill():
                self._warden.kill_tree(worker_launch(action.incarnation))
            case moves.Renewing():
                self._log.info("a worker is to be replaced", slot=action.slot, cause=action.cause)
            case moves.Renewed():
                pass
            case moves.RenewalFailed():
                self._log.error("a worker stays, because its heir failed", slot=action.slot, reason=action.reason)
                if self._change.kind == "reload" and not self._change.begun:
                    self._adopt(self._settings_before)
            case moves.SlotRemoved():
                self._premises.listeners.remove_last()
            case moves.AllReady() | moves.GiveUp() | moves.AllDrained() | moves.AllGone():
                self._on_milestone(action)
            case _:
                assert_never(action)

    def _spawn(self, action: moves.Spawn) -> None:
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
        listener = premises.listeners.sockets[action.slot]
        self._crew.spawn(setup, [listener.fileno(), premises.segment.fd, premises.agents.fileno()])

    def _tell(self, incarnation: int, record: control.ToWorker, fds: Sequence[int] = ()) -> None:
        member = self._crew.get(incarnation)
        if member is not None:
            self._crew.send(member, record, fds)
