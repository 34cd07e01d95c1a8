from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.backoff import Backoff
from spearpool.supervisor.scaling import (
    Action,
    Availability,
    Event,
    InstanceEnded,
    InstanceReady,
    Scaling,
    ScalingPolicy,
    StartInstance,
    Stop,
    TaskStaff,
    Tick,
)

POLICY = ScalingPolicy(
    max_starting=4,
    settled_s=10.0,
    backoff=Backoff(base_s=1.0, cap_s=4.0),
    breaker_limit=4,
    breaker_window_s=60.0,
    breaker_open_s=20.0,
)
START = StartInstance("t")


class Play:
    """A pool's staffing with a clock that the test sets. `random` is 0.5: a delay is half of its cap."""

    def __init__(self, wanted: Mapping[str, int], policy: ScalingPolicy = POLICY) -> None:
        self.now = 1000.0
        self.scaling = Scaling(wanted, policy, self.now)

    def tell(self, event: Event) -> list[Action]:
        return self.scaling.handle(event, self.now, 0.5)

    def pass_time(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.tell(Tick())

    def until_start(self) -> list[Action]:
        """Let time pass until something is started."""
        answer: list[Action] = []
        while not answer:
            self.now = self.scaling.next_deadline()
            answer = self.tell(Tick())
        return answer

    def fail(self, was_ready: bool = False, reason: str = "exited with code 1") -> list[Action]:
        return self.tell(InstanceEnded("t", was_ready, failed=True, reason=reason))

    def staff(self) -> TaskStaff:
        return self.scaling.snapshot()[0]


def unavailable(reason: str = "exited with code 1") -> Availability:
    return Availability("t", False, f"instances of task 't' fail again and again: {reason}")


def tripped(wanted: int = 1) -> Play:
    """A task whose breaker has just opened; nothing of it runs."""
    play = Play({"t": wanted})
    play.tell(Tick())
    while play.staff().available:
        while play.staff().starting:
            play.fail()
        if play.staff().available:
            play.until_start()
    return play


def test_the_missing_ones_are_started_at_once_and_only_once() -> None:
    play = Play({"t": 3})
    assert play.scaling.next_deadline() == play.now
    assert play.tell(Tick()) == [START] * 3
    assert play.tell(Tick()) == []
    assert play.scaling.next_deadline() == math.inf
    for _ in range(3):
        assert play.tell(InstanceReady("t")) == []
    assert play.staff() == TaskStaff("t", 3, 0, 3, 0, True, "")


def test_a_task_that_wants_none_is_left_alone() -> None:
    play = Play({"t": 0})
    assert play.tell(Tick()) == []
    assert play.scaling.next_deadline() == math.inf
    assert play.staff().available


def test_starts_in_parallel_are_bounded_and_shared_fairly() -> None:
    play = Play({"t": 10, "u": 1, "v": 1})
    assert Counter(play.tell(Tick())) == {START: 2, StartInstance("u"): 1, StartInstance("v"): 1}
    assert play.scaling.next_deadline() == math.inf, "all four places are taken"
    assert play.tell(InstanceReady("u")) == [START]
    assert play.tell(InstanceReady("t")) == [START]


def test_an_end_that_is_no_failure_is_replaced_at_once() -> None:
    play = Play({"t": 1})
    play.tell(Tick())
    for _ in range(20):
        play.tell(InstanceReady("t"))
        assert play.tell(InstanceEnded("t", was_ready=True, failed=False, reason="stopped")) == [START]
    assert play.staff().failures == 0


def test_failures_delay_the_next_start_and_the_breaker_opens() -> None:
    play = Play({"t": 1})
    play.tell(Tick())
    assert play.fail() == [START], "the first retry is free"
    assert play.fail() == []
    assert play.scaling.next_deadline() == play.now + 0.5
    assert play.pass_time(0.49) == []
    assert play.pass_time(0.01) == [START]
    assert play.fail() == []
    assert play.pass_time(1.0) == [START]
    assert play.fail(reason="no module named 'shop'") == [unavailable("no module named 'shop'")]
    assert play.scaling.next_deadline() == play.now + 20.0
    assert play.pass_time(19.9) == []
    assert play.pass_time(0.1) == [START], "one trial"
    assert play.staff().available is False, "a trial is no promise"


def test_after_the_breaker_opened_there_is_one_trial_at_a_time() -> None:
    play = tripped(wanted=3)
    assert play.until_start() == [START]
    assert play.pass_time(5.0) == []
    assert play.fail() == []
    assert play.until_start() == [START]
    assert play.tell(InstanceReady("t")) == [Availability("t", True, ""), START]
    assert play.pass_time(2.0) == [], "still one at a time: it is not proven yet"
    assert play.tell(InstanceReady("t")) == [START]
    assert play.fail(was_ready=True) == []
    assert play.staff() == TaskStaff("t", 3, 1, 1, 6, True, "exited with code 1")


def test_a_task_is_available_while_one_instance_is_ready() -> None:
    play = Play({"t": 2})
    play.tell(Tick())
    play.tell(InstanceReady("t"))
    assert play.fail() == [START]
    for _ in range(3):
        assert play.fail() == []
        assert play.staff().available
        if play.staff().failures < POLICY.breaker_limit:
            play.until_start()
    assert play.tell(InstanceEnded("t", was_ready=True, failed=False, reason="killed")) == [unavailable()]


def test_ready_and_then_dead_again_still_counts() -> None:
    play = Play({"t": 1})
    play.tell(Tick())
    changes: list[Action] = []
    for _ in range(4):
        play.tell(InstanceReady("t"))
        changes += play.fail(was_ready=True)
        if not play.staff().starting:
            changes += play.until_start()
    assert unavailable() in changes


def test_recovery() -> None:
    play = tripped(wanted=3)
    play.until_start()
    play.tell(InstanceReady("t"))
    assert play.pass_time(9.9) == []
    assert play.staff() == TaskStaff("t", 3, 1, 1, 4, True, "exited with code 1")
    assert play.scaling.next_deadline() == pytest.approx(play.now + 0.1)
    assert play.pass_time(0.2) == [START], "no longer one at a time"
    assert play.staff() == TaskStaff("t", 3, 2, 1, 0, True, "")
    assert play.scaling.next_deadline() == math.inf


def test_stop_starts_nothing_more() -> None:
    play = Play({"t": 2})
    play.tell(Tick())
    play.tell(InstanceReady("t"))
    assert play.tell(Stop()) == []
    assert play.tell(InstanceEnded("t", was_ready=True, failed=False, reason="stopped")) == []
    assert play.fail() == []
    assert play.pass_time(100.0) == []
    assert play.scaling.next_deadline() == math.inf


@given(
    wanted=st.dictionaries(st.sampled_from("abc"), st.integers(0, 6), min_size=1),
    steps=st.lists(st.tuples(st.sampled_from(["ready", "fail", "end", "time"]), st.integers(0, 50)), max_size=60),
)
def test_whatever_happens(wanted: dict[str, int], steps: list[tuple[str, int]]) -> None:
    """The bounds hold, what is said is what is, and in the end every task gets its instances."""
    now = 0.0
    scaling = Scaling(wanted, POLICY, now)
    starting: Counter[str] = Counter()
    ready: Counter[str] = Counter()
    available = dict.fromkeys(wanted, True)

    def tell(event: Event) -> None:
        for action in scaling.handle(event, now, 0.9):
            if isinstance(action, StartInstance):
                starting[action.task] += 1
            else:
                assert available[action.task] != action.available
                available[action.task] = action.available
        assert starting.total() <= POLICY.max_starting
        for staff in scaling.snapshot():
            assert (staff.starting, staff.ready) == (starting[staff.task], ready[staff.task])
            assert staff.starting + staff.ready <= staff.wanted
            assert staff.available == available[staff.task]
            assert staff.available or not staff.ready
        assert scaling.next_deadline() > now

    tell(Tick())
    for what, number in steps:
        crowd = sorted((ready if what == "end" else starting).elements())
        if what == "time":
            now += number / 4
            tell(Tick())
        elif crowd:
            task = crowd[number % len(crowd)]
            (ready if what == "end" else starting)[task] -= 1
            if what == "ready":
                ready[task] += 1
                tell(InstanceReady(task))
            else:
                tell(InstanceEnded(task, was_ready=what == "end", failed=what == "fail", reason="x"))
    for _ in range(200):
        for task in sorted(starting.elements()):
            starting[task] -= 1
            ready[task] += 1
            tell(InstanceReady(task))
        if not starting.total() and scaling.next_deadline() < math.inf:
            now = scaling.next_deadline()
            tell(Tick())
    assert {staff.task: staff.ready for staff in scaling.snapshot()} == wanted
    assert all(staff.available and not staff.failures for staff in scaling.snapshot() if staff.wanted)
