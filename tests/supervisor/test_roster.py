from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from spearpool.backoff import Backoff
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
    Measured,
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
from spearpool.supervisor.slot import SlotView, WorkerPolicy
from spearpool.worker.control import EXIT_CANNOT_START

POLICY = WorkerPolicy(
    ready_timeout_s=30.0,
    settled_s=10.0,
    drain_grace_s=1.0,
    backoff=Backoff(base_s=1.0, cap_s=4.0),
    breaker_limit=5,
    breaker_window_s=60.0,
    breaker_open_s=20.0,
)


class Play:
    """A roster with a clock that the test sets. `random` is 0.5 throughout, so a delay is half of its cap."""

    def __init__(self, slots: int = 1, policy: WorkerPolicy = POLICY) -> None:
        self.now = 1000.0
        self.roster = Roster(slots, policy, self.now)

    def tell(self, event: Event) -> list[Action]:
        return self.roster.handle(event, self.now, 0.5)

    def pass_time(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.tell(Tick())

    def serve(self, *spawns: Action) -> list[Action]:
        """Let each spawned worker start and get ready; the last answer."""
        answer: list[Action] = []
        for spawn in spawns:
            assert isinstance(spawn, Spawn)
            assert self.tell(Started(spawn.slot, spawn.incarnation, 5000 + spawn.incarnation)) == []
            answer = self.tell(WorkerReady(spawn.slot, spawn.incarnation))
        return answer

    def kill(self, spawn: Action, code: int | None = None) -> list[Action]:
        assert isinstance(spawn, Spawn)
        return self.tell(WorkerExited(spawn.slot, spawn.incarnation, code, 9 if code is None else None))

    def slot(self, number: int = 0) -> SlotView:
        return self.roster.snapshot().slots[number]

    def state(self) -> PoolState:
        return self.roster.snapshot().state


def running(slots: int = 1) -> tuple[Play, list[Action]]:
    play = Play(slots)
    spawns = play.tell(Tick())
    assert play.serve(*spawns) == [AllReady()]
    return play, spawns


def test_a_start() -> None:
    play = Play(slots=3)
    assert play.roster.next_deadline() == play.now
    spawns = play.tell(Tick())
    assert spawns == [Spawn(0, 0, 1), Spawn(1, 2, 2), Spawn(2, 4, 3)]
    assert play.tell(Tick()) == []
    assert play.serve(spawns[0]) == play.serve(spawns[2]) == []
    assert play.state() is PoolState.STARTING
    assert play.serve(spawns[1]) == [AllReady()]
    assert play.state() is PoolState.RUNNING
    assert play.slot(1) == SlotView(1, "ready", 2, 2, 5002, 0, "")
    assert play.roster.next_deadline() == math.inf


def test_the_heir_of_a_settled_worker_comes_at_once_in_the_other_seat() -> None:
    play, (first, _) = running(slots=2)
    play.pass_time(10.0)
    assert play.kill(first) == [Spawn(0, 1, 3)]
    assert play.slot() == SlotView(0, "starting", 1, 3, None, 1, "was killed by signal SIGKILL")
    assert play.serve(Spawn(0, 1, 3)) == [], "AllReady is said once"
    play.pass_time(10.0)
    assert play.kill(Spawn(0, 1, 3)) == [Spawn(0, 0, 4)]


def test_incarnations_rise_over_the_whole_pool() -> None:
    play, spawns = running(slots=3)
    play.pass_time(10.0)
    heirs = [play.kill(spawn)[0] for spawn in reversed(spawns)]
    assert [heir.incarnation for heir in heirs if isinstance(heir, Spawn)] == [4, 5, 6]


def test_quick_ends_are_delayed_longer_and_longer_and_then_the_breaker_opens() -> None:
    play, (spawn,) = running()
    waits = []
    for _ in range(7):
        begin = play.now
        answer = play.kill(spawn, code=1)
        while not answer:
            assert play.slot().state == "waiting"
            play.now = play.roster.next_deadline()
            answer = play.tell(Tick())
        (spawn,) = answer
        play.serve(spawn)
        waits.append(play.now - begin)
    assert waits == [0.0, 0.5, 1.0, 2.0, 20.0, 20.0, 20.0]
    assert play.slot().restarts == 7


def test_nothing_happens_before_the_delay_is_over() -> None:
    play, (spawn,) = running()
    (heir,) = play.kill(spawn)
    assert play.kill(heir) == []
    assert play.roster.next_deadline() == play.now + 0.5
    assert play.pass_time(0.49) == []
    assert play.pass_time(0.01) == [Spawn(0, 0, 3)]


def test_an_end_before_ready_counts_however_late_and_one_after_settling_forgives() -> None:
    play, (spawn,) = running()
    (spawn,) = play.kill(spawn)  # first failure: free
    play.pass_time(29.0)
    assert play.kill(spawn) == [], "never ready: the second failure in a row"
    (spawn,) = play.pass_time(0.5)
    play.serve(spawn)
    play.pass_time(9.9)
    assert play.kill(spawn) == [], "ready for less than 10 s: the third"
    (spawn,) = play.pass_time(1.0)
    play.serve(spawn)
    play.pass_time(10.0)
    (spawn,) = play.kill(spawn)  # settled: no failure, and all forgiven
    assert [type(action) for action in play.kill(spawn)] == [Spawn], "the first failure again"


def test_slots_fail_apart() -> None:
    play, (first, second) = running(slots=2)
    (heir,) = play.kill(first)
    assert play.kill(heir) == []
    assert play.kill(second) == [Spawn(1, 3, 4)], "not delayed by the neighbour's failures"


@pytest.mark.parametrize("told", [True, False])
def test_a_worker_that_cannot_start_fails_the_start(told: bool) -> None:
    play = Play(slots=2)
    first, second = play.tell(Tick())
    assert isinstance(first, Spawn)
    play.serve(second)
    if told:
        answer = play.tell(StartFailed(0, first.incarnation, "the segment is not one that this version can read"))
        assert answer[0] == GiveUp("worker 0 cannot serve: the segment is not one that this version can read")
    else:
        answer = play.kill(first, EXIT_CANNOT_START)
        assert answer[0] == GiveUp("worker 0 cannot serve; its log says why")
    assert answer[1:] == [Kill(0, 1), Kill(1, 2)][0 if told else 1 :]
    assert play.state() is PoolState.FAILED
    if told:
        assert play.kill(first, EXIT_CANNOT_START) == []
    assert play.kill(second) == [AllGone()]
    assert play.tell(Tick()) == []
    assert play.slot(0).state == "empty"


def test_a_start_gives_up_when_a_worker_dies_again_and_again() -> None:
    play = Play()
    answer = play.tell(Tick())
    for _ in range(4):
        while not answer:
            play.now = play.roster.next_deadline()
            answer = play.tell(Tick())
        answer = play.tell(WorkerExited(0, answer[0].incarnation, None, 11))  # type: ignore[union-attr]
    (spawn,) = play.pass_time(10.0)
    reason = "worker 0 failed 5 times in a row; the last one was killed by signal SIGSEGV"
    assert isinstance(spawn, Spawn)
    assert play.tell(WorkerExited(0, spawn.incarnation, None, 11)) == [GiveUp(reason), AllGone()]


def test_a_start_gives_up_when_a_worker_is_not_ready_in_time() -> None:
    play = Play(slots=2)
    first, second = play.tell(Tick())
    play.serve(first)
    assert play.roster.next_deadline() == play.now + 30.0
    assert play.pass_time(30.0) == [GiveUp("worker 1 was not ready within 30 s"), Kill(0, 1), Kill(1, 2)]
    assert play.kill(first) == []
    assert play.kill(second) == [AllGone()]


def test_a_failed_fork_is_tried_again_in_any_free_seat() -> None:
    play = Play()
    play.tell(Tick())
    assert play.tell(SpawnFailed(0, 1, "Resource temporarily unavailable")) == [Spawn(0, 1, 2)]
    assert play.slot().last_end == "could not be forked: Resource temporarily unavailable"


def test_a_running_pool_does_not_give_up() -> None:
    play, (spawn,) = running()
    (heir,) = play.kill(spawn)
    assert isinstance(heir, Spawn)
    assert play.tell(StartFailed(0, heir.incarnation, "out of memory")) == []
    assert play.kill(heir, EXIT_CANNOT_START) == []
    assert play.slot().last_end == f"exited with code {EXIT_CANNOT_START} (out of memory)"
    assert play.pass_time(0.5) == [Spawn(0, 0, 3)]


def test_an_heir_does_not_wait_for_the_exit_of_a_killed_predecessor_but_for_a_seat() -> None:
    play, (spawn,) = running()
    (stuck,) = play.kill(spawn)
    assert stuck == Spawn(0, 1, 2)
    assert play.pass_time(30.0) == [Kill(0, 2)]
    assert play.slot().last_end == "was not ready within 30 s"
    assert play.pass_time(0.5) == [Spawn(0, 0, 3)], "seat 1 is still held by the killed one"
    assert play.pass_time(30.0) == [Kill(0, 3)]
    assert play.roster.next_deadline() == math.inf, "both seats are held"
    assert play.pass_time(100.0) == []
    restarts = play.slot().restarts
    assert play.kill(Spawn(0, 0, 3)) == [Spawn(0, 0, 4)], "the first seat that is free"
    assert play.slot().restarts == restarts, "booked when it was ordered killed"
    assert play.kill(stuck) == []
    play.serve(Spawn(0, 0, 4))
    assert play.slot().state == "ready"


def test_last_words_after_an_exit_are_ignored() -> None:
    play, (spawn,) = running()
    play.pass_time(20.0)
    (heir,) = play.kill(spawn)
    for event in (
        WorkerReady(0, 1),
        Started(0, 1, 77),
        Drained(0, 1),
        StartFailed(0, 1, "late"),
        WorkerExited(0, 1, 0, None),
    ):
        assert play.tell(event) == []
    assert play.slot() == SlotView(0, "starting", 1, 2, None, 1, "was killed by signal SIGKILL")
    assert heir == Spawn(0, 1, 2)


def test_a_stop() -> None:
    play, (first, second) = running(slots=2)
    play.pass_time(20.0)
    assert play.tell(StopRequested(play.now + 5.0)) == [Drain(0, 1, 5.0), Drain(1, 2, 5.0)]
    assert play.slot().state == "draining"
    assert play.tell(Drained(0, 1)) == []
    assert play.tell(Drained(1, 2)) == [AllDrained()]
    assert play.state() is PoolState.DRAINED
    assert play.tell(LeaveRequested(play.now + 2.0)) == [Leave(0, 1), Leave(1, 2)]
    assert play.kill(first, code=0) == []
    assert play.kill(second, code=0) == [AllGone()]
    assert play.state() is PoolState.GONE
    assert play.slot() == SlotView(0, "empty", None, None, None, 0, "exited with code 0")
    assert play.roster.next_deadline() == math.inf


def test_who_does_not_drain_or_leave_in_time_is_killed() -> None:
    play, (first, second) = running(slots=2)
    play.tell(StopRequested(play.now + 5.0))
    play.tell(Drained(1, 2))
    assert play.pass_time(5.9) == []
    assert play.pass_time(0.1) == [Kill(0, 1), AllDrained()]
    assert play.tell(LeaveRequested(play.now + 2.0)) == [Leave(1, 2)]
    assert play.pass_time(2.0) == [Kill(1, 2)]
    assert play.kill(second) == []
    assert play.kill(first) == [AllGone()]


def test_a_second_stop_request_shortens_the_deadline_and_never_lengthens_it() -> None:
    play, _ = running()
    assert play.tell(StopRequested(play.now + 5.0)) == [Drain(0, 1, 5.0)]
    assert play.tell(StopRequested(play.now + 9.0)) == []
    assert play.tell(StopRequested(play.now - 1.0)) == [Drain(0, 1, 0.0), Kill(0, 1), AllDrained()]


def test_a_stop_ends_what_has_not_started_and_brings_no_heirs() -> None:
    play, (first, second) = running(slots=2)
    (heir,) = play.kill(first)
    assert play.tell(StopRequested(play.now + 5.0)) == [Kill(0, 3), Drain(1, 2, 5.0)]
    assert play.kill(heir) == []
    assert play.kill(second) == [AllDrained()], "its death drained it, too"
    assert play.tell(LeaveRequested(play.now)) == [AllGone()]
    assert play.pass_time(100.0) == []
    assert play.slot(1).restarts == 0


def test_a_stop_while_the_pool_starts() -> None:
    play = Play(slots=2)
    first, second = play.tell(Tick())
    play.serve(first)
    assert play.tell(StopRequested(play.now + 5.0)) == [Drain(0, 1, 5.0), Kill(1, 2)]
    assert play.tell(Drained(0, 1)) == [AllDrained()]
    assert play.kill(second) == []
    assert play.tell(LeaveRequested(play.now + 1.0)) == [Leave(0, 1)]
    assert play.tell(StopRequested(play.now)) == [], "it is leaving already"
    assert play.kill(first, code=0) == [AllGone()]


def test_a_worker_that_hangs_is_killed_and_its_heir_does_not_wait_for_its_exit() -> None:
    play, (first, _) = running(slots=2)
    play.pass_time(10.0)
    assert play.tell(Hung(0, 1, "did not answer")) == [Kill(0, 1), Spawn(0, 1, 3)]
    assert play.slot() == SlotView(0, "starting", 1, 3, None, 1, "did not answer")
    assert play.tell(Hung(0, 1, "did not answer")) == [], "killed once"
    assert play.kill(first) == []
    assert play.slot().restarts == 1, "booked once"


def test_a_worker_that_hangs_while_the_pool_drains_is_killed_without_an_heir() -> None:
    play, (first,) = running()
    play.tell(StopRequested(play.now + 60.0))
    assert Kill(0, 1) in play.tell(Hung(0, 1, "did not answer"))
    play.kill(first)
    assert play.tell(LeaveRequested(play.now + 1.0)) == [AllGone()]


# Planned changes

RELOADED = "the pool is reloaded"


def test_a_renewal_is_heir_first_then_the_old_one_empties_and_leaves() -> None:
    play, (old,) = running()
    assert play.tell(RenewRequested(0, 1, "asked")) == [Renewing(0, 1, "asked"), Spawn(0, 1, 2)]
    assert play.roster.serving() == (0,), "the old one serves until its heir does"
    assert play.slot().incarnation == 1
    assert play.serve(Spawn(0, 1, 2)) == [Empty(0, 1, 30.0)]
    assert (play.roster.serving(), play.slot().incarnation) == ((0,), 2)
    assert play.tell(Emptied(0, 1)) == [Leave(0, 1)]
    assert play.kill(old, code=0) == [Renewed(0, 1)]
    assert play.slot() == SlotView(0, "ready", 1, 2, 5002, 0, "exited with code 0")
    assert play.pass_time(100.0) == []


def test_a_reload_renews_one_after_the_other() -> None:
    play, (first, second) = running(slots=2)
    assert play.tell(ReloadRequested()) == [Renewing(0, 1, RELOADED), Spawn(0, 1, 3)]
    assert play.serve(Spawn(0, 1, 3)) == [Empty(0, 1, 30.0)]
    assert play.tell(Emptied(0, 1)) == [Leave(0, 1)]
    assert play.kill(first, 0) == [Renewed(0, 1), Renewing(1, 2, RELOADED), Spawn(1, 3, 4)]
    assert play.serve(Spawn(1, 3, 4)) == [Empty(1, 2, 30.0)]
    play.tell(Emptied(1, 2))
    assert play.kill(second, 0) == [Renewed(1, 2)]


def test_who_does_not_empty_or_leave_in_time_is_killed_and_the_renewal_goes_on() -> None:
    play, (first, second) = running(slots=2)
    play.tell(ReloadRequested())
    play.serve(Spawn(0, 1, 3))
    assert play.pass_time(30.9) == []
    assert play.pass_time(0.1) == [Kill(0, 1)]
    assert play.kill(first)[0] == Renewed(0, 1)
    play.serve(Spawn(1, 3, 4))
    play.tell(Emptied(1, 2))
    assert play.pass_time(5.0) == [Kill(1, 2)]
    assert play.kill(second) == [Renewed(1, 2)]


def test_an_heir_that_fails_leaves_everything_as_it_was() -> None:
    play, _ = running(slots=2)
    play.tell(ReloadRequested())
    reason = "the heir of worker 0 exited with code 1"
    failed = [RenewalFailed(0, 1, reason), RenewalFailed(1, 2, reason)]
    assert play.kill(Spawn(0, 1, 3), code=1) == failed
    assert play.pass_time(100.0) == []
    assert [view.incarnation for view in play.roster.snapshot().slots] == [1, 2]
    assert play.tell(RenewRequested(0, 1, "again"))[0] == Renewing(0, 1, "again")


def test_an_heir_that_is_not_ready_in_time_is_killed_and_the_old_one_stays() -> None:
    play, _ = running()
    play.tell(ReloadRequested())
    reason = "the heir of worker 0 was not ready within 30 s"
    assert play.pass_time(30.0) == [RenewalFailed(0, 1, reason), Kill(0, 2)]
    assert play.roster.serving() == (0,)


def test_one_that_dies_before_its_turn_or_during_it_counts_as_renewed_when_its_heir_serves() -> None:
    play, (first, second) = running(slots=2)
    play.pass_time(10.0)
    play.tell(ReloadRequested())
    assert play.kill(second) == [Spawn(1, 3, 4)], "before its turn"
    assert play.kill(first) == [], "during its turn: the heir is on its way"
    assert play.serve(Spawn(0, 1, 3)) == [Renewed(0, 1)]
    assert play.serve(Spawn(1, 3, 4)) == [Renewed(1, 2)]


def test_asking_twice_for_the_same_worker_is_asking_once() -> None:
    play, (old,) = running()
    play.tell(RenewRequested(0, 1, "asked"))
    assert play.tell(RenewRequested(0, 1, "asked")) == []
    play.serve(Spawn(0, 1, 2))
    play.tell(Emptied(0, 1))
    assert play.kill(old, 0) == [Renewed(0, 1)]


def test_a_stop_ends_what_is_planned() -> None:
    play, _ = running(slots=2)
    play.tell(ReloadRequested())
    play.serve(Spawn(0, 1, 3))
    drains = [Drain(0, 1, 5.0), Drain(0, 3, 5.0), Drain(1, 2, 5.0)]
    assert play.tell(StopRequested(play.now + 5.0)) == drains
    assert play.tell(Emptied(0, 1)) == []
    assert [play.tell(Drained(0, 1)), play.tell(Drained(0, 3))] == [[], []]
    assert play.tell(Drained(1, 2)) == [AllDrained()]


def test_slots_are_added_at_the_top() -> None:
    play, _ = running()
    assert play.tell(ScaleRequested(3)) == [Spawn(1, 2, 2), Spawn(2, 4, 3)]
    assert play.serve(Spawn(2, 4, 3)) == [], "AllReady is said once"
    assert play.roster.serving() == (0, 2)


def test_a_slot_is_emptied_once_nobody_comes_to_it_and_removed_once_nobody_is_left() -> None:
    play, (_, _, third) = running(slots=3)
    assert play.tell(ScaleRequested(2)) == []
    assert (play.roster.serving(), play.roster.retiring()) == ((0, 1), (2,))
    play.pass_time(0.4)
    assert play.tell(QueuesSeen({2: 1})) == []
    assert play.pass_time(0.4) == [], "somebody came meanwhile"
    assert play.pass_time(0.1) == [Empty(2, 3, 30.0)]
    assert play.tell(Emptied(2, 3)) == [Leave(2, 3)]
    assert play.kill(third, 0) == []
    assert play.tell(QueuesSeen({2: 0})) == [SlotRemoved(2)]
    assert len(play.roster.snapshot().slots) == 2
    assert play.tell(WorkerReady(2, 3)) == [], "last words"


def test_slots_are_removed_from_the_top_only() -> None:
    play, (_, second, third) = running(slots=3)
    play.tell(ScaleRequested(1))
    play.pass_time(0.5)
    play.tell(Emptied(1, 2))
    play.kill(second, 0)
    assert play.tell(QueuesSeen({1: 0, 2: 0})) == []
    play.tell(Emptied(2, 3))
    play.kill(third, 0)
    assert play.tell(QueuesSeen({1: 0, 2: 0})) == [SlotRemoved(2), SlotRemoved(1)]


def test_who_comes_last_to_a_slot_that_is_to_be_removed_still_gets_a_worker() -> None:
    play, (_, second) = running(slots=2)
    play.tell(ScaleRequested(1))
    play.pass_time(0.5)
    play.tell(Emptied(1, 2))
    play.kill(second, 0)
    assert play.tell(QueuesSeen({1: 1})) == [Spawn(1, 3, 3)]
    play.serve(Spawn(1, 3, 3))
    assert play.pass_time(0.5) == [Empty(1, 3, 30.0)]


def _ageing(**limits: Any) -> tuple[Play, list[Action]]:
    play = Play(3, replace(POLICY, **limits))
    spawns = play.tell(Tick())
    play.serve(*spawns)
    return play, spawns


def test_workers_of_one_age_are_renewed_one_at_a_time_and_not_at_the_same_age() -> None:
    play, spawns = _ageing(max_age_s=100.0)
    ages = []
    for number in range(3):
        play.now = play.roster.next_deadline()
        renewing, spawn = play.tell(Tick())
        assert isinstance(renewing, Renewing)
        assert "max_worker_age_s" in renewing.cause
        assert play.roster.next_deadline() > play.now, "nobody else meanwhile"
        ages.append(play.now - 1000.0)
        play.serve(spawn)
        play.tell(Emptied(renewing.slot, renewing.incarnation))
        assert play.kill(spawns[renewing.slot], 0)[0] == Renewed(renewing.slot, renewing.incarnation), number
    assert 80.0 <= min(ages) < max(ages) <= 100.0
    assert len(set(ages)) == 3


def test_connections_and_memory_are_limited_too_and_memory_only_of_settled_workers() -> None:
    play, _ = _ageing(max_connections=100, max_memory_bytes=1000)
    assert play.tell(Measured(1, 2, 79, 1000)) == [], "not settled yet"
    assert play.tell(Measured(1, 2, 79, 799)) == []
    assert play.pass_time(10.0) == []
    assert isinstance(play.tell(Measured(0, 1, 100, 0))[0], Renewing)
    play, _ = _ageing(max_memory_bytes=1000)
    play.pass_time(10.0)
    (renewing, _) = play.tell(Measured(1, 2, 0, 1000))
    assert renewing == Renewing(1, 2, "holds 1000 bytes (max_worker_memory_bytes)")


def test_without_limits_workers_live_for_ever() -> None:
    play, _ = running()
    play.tell(Measured(0, 1, 10**9, 10**12))
    assert play.pass_time(10**9) == []


def test_other_limits_can_be_adopted() -> None:
    play, _ = running()
    play.roster.adopt(replace(POLICY, max_age_s=50.0))
    assert isinstance(play.pass_time(50.0)[0], Renewing)


def test_nobody_is_renewed_for_its_age_while_a_slot_is_removed() -> None:
    play, (_, _, third) = _ageing(max_age_s=100.0)
    play.pass_time(79.9)
    play.tell(ScaleRequested(2))
    play.tell(QueuesSeen({2: 1}))
    play.now += 30.0
    play.tell(QueuesSeen({2: 1}))
    assert play.pass_time(0.5) == [Empty(2, 3, 30.0)]
    play.tell(Emptied(2, 3))
    play.kill(third, 0)
    assert [type(action) for action in play.tell(QueuesSeen({2: 0}))] == [SlotRemoved, Renewing, Spawn]
