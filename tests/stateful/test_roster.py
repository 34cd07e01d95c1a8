"""Any order of events: the roster against a model that holds the processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spearpool.supervisor.roster import PoolState, Roster
from spearpool.supervisor.roster_moves import (
    Action,
    AllDrained,
    AllGone,
    AllReady,
    Drain,
    Drained,
    Emptied,
    Empty,
    Event,
    GiveUp,
    Hung,
    Kill,
    Leave,
    LeaveRequested,
    QueuesSeen,
    ReloadRequested,
    RenewalFailed,
    Renewed,
    Renewing,
    RenewRequested,
    ScaleRequested,
    SlotRemoved,
    Spawn,
    SpawnFailed,
    Started,
    StartFailed,
    StopRequested,
    Tick,
    WorkerExited,
    WorkerReady,
)
from spearpool.supervisor.slot import WorkerPolicy
from spearpool.worker.control import EXIT_CANNOT_START


@dataclass
class Process:
    slot: int
    seat: int
    incarnation: int
    started: bool = False
    ready: bool = False
    draining: bool = False
    emptying: bool = False
    renewing: bool = False
    leaving: bool = False
    killed: bool = False


class RosterMachine(RuleBasedStateMachine):
    @initialize(slots=st.integers(1, 3), running=st.booleans())
    def begin(self, slots: int, running: bool) -> None:
        self.now = 50.0
        self.slots = self.wanted = slots
        self.roster = Roster(slots, WorkerPolicy(), self.now)
        self.processes: dict[int, Process] = {}
        self.last_incarnation = 0
        self.last_seat: dict[int, int] = {}
        self.said: list[type[Action]] = []
        self.stopping = False
        self.tell(Tick())
        assert len(self.processes) == slots
        for process in self.processes.values() if running else ():
            process.ready = True
            self.tell(WorkerReady(process.slot, process.incarnation))

    def tell(self, event: Event, random: float = 0.9) -> None:
        for action in self.roster.handle(event, self.now, random):
            self.perform(action)

    def perform(self, action: Action) -> None:
        match action:
            case Spawn():
                assert not self.stopping
                assert GiveUp not in self.said
                assert action.seat // 2 == action.slot
                held = {process.seat for process in self.processes.values()}
                assert action.seat not in held, "a seat passes on only after its occupant's exit"
                other = action.seat ^ 1
                last = self.last_seat.get(action.slot, other)
                assert last != action.seat or other in held, "the heir takes its predecessor's other seat"
                assert action.incarnation > self.last_incarnation
                self.last_incarnation = action.incarnation
                self.last_seat[action.slot] = action.seat
                self.processes[action.incarnation] = Process(action.slot, action.seat, action.incarnation)
            case Drain():
                process = self.processes[action.incarnation]
                assert process.ready
                assert not process.killed
                assert action.deadline_s >= 0
                process.draining = True
            case Renewing():
                self.processes[action.incarnation].renewing = True
            case Renewed():
                assert action.incarnation not in self.processes
            case RenewalFailed():
                if action.incarnation in self.processes:
                    self.processes[action.incarnation].renewing = False
            case SlotRemoved():
                self.slots -= 1
                assert action.slot == self.slots, "only the highest"
                assert self.slots >= self.wanted
                assert not [process for process in self.processes.values() if process.slot == action.slot]
                del self.last_seat[action.slot]
            case Empty():
                process = self.processes[action.incarnation]
                assert process.ready
                assert not process.killed
                assert not process.emptying
                heirs = [p for p in self.processes.values() if p.slot == process.slot and p is not process]
                assert action.slot >= self.wanted or any(heir.ready for heir in heirs), "nobody leaves without an heir"
                process.emptying = True
            case Leave():
                process = self.processes[action.incarnation]
                assert not process.leaving
                assert not process.killed
                process.leaving = True
            case Kill():
                process = self.processes[action.incarnation]
                assert not process.killed, "killed once"
                process.killed = True
            case AllReady():
                assert all(any(p.ready for p in self.processes.values() if p.slot == n) for n in range(self.slots))
                assert not self.stopping
            case AllDrained():
                assert self.stopping
            case AllGone():
                assert not self.processes
            case GiveUp():
                assert AllReady not in self.said, "only a start is given up"
                assert not self.stopping
                assert action.reason
        if isinstance(action, AllReady | AllDrained | AllGone | GiveUp):
            assert type(action) not in self.said, "said once"
            self.said.append(type(action))

    def some(self, data: st.DataObject) -> Process:
        return self.processes[data.draw(st.sampled_from(sorted(self.processes)))]

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        process = self.some(data)
        process.started = True
        self.tell(Started(process.slot, process.incarnation, 1000 + process.incarnation))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def get_ready(self, data: st.DataObject) -> None:
        process = self.some(data)
        process.ready = process.ready or not process.killed
        self.tell(WorkerReady(process.slot, process.incarnation))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), random=st.floats(0, 0.99))
    def fail_to_fork(self, data: st.DataObject, random: float) -> None:
        process = self.some(data)
        if not process.started and not process.ready:
            del self.processes[process.incarnation]
            self.tell(SpawnFailed(process.slot, process.incarnation, "no more processes"), random)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def say_why_not(self, data: st.DataObject) -> None:
        process = self.some(data)
        if not process.ready:
            self.tell(StartFailed(process.slot, process.incarnation, "cannot"))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), code=st.sampled_from([0, 1, EXIT_CANNOT_START, None]), random=st.floats(0, 0.99))
    def exit(self, data: st.DataObject, code: int | None, random: float) -> None:
        process = self.some(data)
        del self.processes[process.incarnation]
        self.tell(WorkerExited(process.slot, process.incarnation, code, 9 if code is None else None), random)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def hang(self, data: st.DataObject) -> None:
        process = self.some(data)
        self.tell(Hung(process.slot, process.incarnation, "did not answer"))
        assert process.killed

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def drained(self, data: st.DataObject) -> None:
        process = self.some(data)
        self.tell(Drained(process.slot, process.incarnation))

    @rule(data=st.data())
    def last_words(self, data: st.DataObject) -> None:
        """An event of a worker that is gone changes nothing."""
        incarnation = data.draw(st.integers(1, 5).filter(lambda n: n not in self.processes))
        before = self.roster.snapshot()
        events: list[Event] = [WorkerReady(0, incarnation), Drained(0, incarnation)]
        self.tell(data.draw(st.sampled_from(events)))
        assert self.roster.snapshot() == before

    @rule(seconds=st.sampled_from([0.001, 0.5, 5.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due = self.roster.next_deadline() <= self.now
        before = self.roster.snapshot()
        self.tell(Tick())
        assert due or self.roster.snapshot() == before, "nothing is due before next_deadline"

    @rule()
    def long_silence(self) -> None:
        """Long enough for heir after heir to be killed while no exit is reported."""
        for _ in range(4):
            self.pass_time(40.0)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        process = self.some(data)
        self.tell(RenewRequested(process.slot, process.incarnation, "asked"))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def emptied(self, data: st.DataObject) -> None:
        process = self.some(data)
        if process.emptying:
            self.tell(Emptied(process.slot, process.incarnation))

    @precondition(lambda self: self.roster.snapshot().state is PoolState.RUNNING)
    @rule()
    def reload(self) -> None:
        self.tell(ReloadRequested())

    @precondition(lambda self: self.roster.snapshot().state is PoolState.RUNNING and self.slots == self.wanted)
    @rule(slots=st.integers(1, 4))
    def scale(self, slots: int) -> None:
        self.wanted = slots
        self.slots = max(self.slots, slots)
        self.tell(ScaleRequested(slots))

    @rule(waiting=st.sampled_from([0, 0, 1]))
    def look_at_queues(self, waiting: int) -> None:
        self.tell(QueuesSeen(dict.fromkeys(self.roster.retiring(), waiting)))

    @rule(seconds=st.sampled_from([0.0, 3.0]))
    def stop(self, seconds: float) -> None:
        self.stopping = True
        self.tell(StopRequested(self.now + seconds))

    @precondition(lambda self: AllDrained in self.said)
    @rule()
    def leave(self) -> None:
        self.tell(LeaveRequested(self.now + 2.0))

    @invariant()
    def what_always_holds(self) -> None:
        assert self.roster.next_deadline() > self.now, "everything due was done"
        for number, view in enumerate(self.roster.snapshot().slots):
            mine = [process for process in self.processes.values() if process.slot == number]
            assert len(mine) <= 2
            staying = [p for p in mine if not (p.killed or p.emptying or p.renewing)]
            assert len(staying) <= 1, "one worker that serves and shall go on, at most"
            assert (view.incarnation is None) == (not mine)

    def teardown(self) -> None:
        """Left alone with well-behaved workers, every pool either serves or is gone."""
        if not hasattr(self, "roster"):
            return
        for _ in range(200):
            state = self.roster.snapshot().state
            if state is PoolState.GONE or (state is PoolState.RUNNING and self.serves()):
                return
            self.behave(state)
        raise AssertionError(f"no end: {self.roster.snapshot()}")

    def serves(self) -> bool:
        views = self.roster.snapshot().slots
        return len(views) == self.wanted and all(view.state == "ready" for view in views)

    def behave(self, state: PoolState) -> None:
        if state is PoolState.DRAINED:
            self.tell(LeaveRequested(self.now + 2.0))
        for process in list(self.processes.values()):
            if process.emptying and not process.leaving and not process.killed:
                self.tell(Emptied(process.slot, process.incarnation))
            elif process.killed or process.leaving:
                del self.processes[process.incarnation]
                self.tell(WorkerExited(process.slot, process.incarnation, 0, None))
            elif not process.ready:
                process.ready = True
                self.tell(WorkerReady(process.slot, process.incarnation))
        deadline = self.roster.next_deadline()
        if deadline < math.inf:
            self.now = deadline
            self.tell(Tick())
        self.tell(QueuesSeen(dict.fromkeys(self.roster.retiring(), 0)))


RosterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRoster = RosterMachine.TestCase
