"""How many instances there are, when, and which of them go: every rule, and whatever happens in whatever order."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.backoff import Backoff
from spearpool.supervisor.budget import Budget, Need
from spearpool.supervisor.demand import PATIENCE_S
from spearpool.supervisor.scaling import JITTER, Scaling
from spearpool.supervisor.scaling_moves import (
    Action,
    Availability,
    Event,
    InstanceEnded,
    InstanceReady,
    Load,
    Observed,
    Pause,
    Recycle,
    Replan,
    Retire,
    ScalingPolicy,
    StartInstance,
    Stop,
    TaskPlan,
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
START = "start t"


class Play:
    """A pool's staffing with a clock that the test sets. `random` is 0.5: a delay is half of its cap.

    Instances are named by the test in the order of their starts; `tell` returns what is said in short words.
    """

    def __init__(
        self, plans: Mapping[str, int | TaskPlan], policy: ScalingPolicy = POLICY, budget: Budget | None = None
    ) -> None:
        self.now = 1000.0
        full = {name: TaskPlan(plan, plan) if isinstance(plan, int) else plan for name, plan in plans.items()}
        self.scaling = Scaling(full, budget or Budget(), policy, self.now)
        self.starting: dict[str, list[int]] = {name: [] for name in plans}
        self.serving: dict[str, list[int]] = {name: [] for name in plans}
        self.given: Counter[int] = Counter()
        self.causes: dict[int, str] = {}

    def tell(self, event: Event) -> list[Any]:
        return [self._note(action) for action in self.scaling.handle(event, self.now, 0.5)]

    def _note(self, action: Action) -> object:
        match action:
            case StartInstance(task, number):
                self.starting.setdefault(task, []).append(number)
                return f"start {task}"
            case Retire(number, cause):
                self.causes[number] = cause
                return f"retire {number}"
            case Availability():
                return action

    def pass_time(self, seconds: float) -> list[Any]:
        self.now += seconds
        return self.tell(Tick())

    def until_start(self) -> list[Any]:
        """Let time pass until something is started."""
        answer: list[Any] = []
        while not answer:
            self.now = self.scaling.next_deadline()
            answer = self.tell(Tick())
        return answer

    def ready(self, task: str = "t") -> list[Any]:
        """The one that was started first is ready."""
        number = self.starting[task].pop(0)
        self.serving.setdefault(task, []).append(number)
        return self.tell(InstanceReady(number))

    def all_ready(self) -> None:
        while any(self.starting.values()):
            for task in list(self.starting):
                while self.starting[task]:
                    self.ready(task)

    def fail(self, was_ready: bool = False, reason: str = "exited with code 1") -> list[Any]:
        number = (self.serving if was_ready else self.starting)["t"].pop(0)
        return self.tell(InstanceEnded(number, failed=True, reason=reason))

    def end(self, number: int) -> list[Any]:
        for serving in self.serving.values():
            if number in serving:
                serving.remove(number)
        return self.tell(InstanceEnded(number, failed=False, reason="stopped"))

    def see(self, busy: Mapping[int, int] | None = None, queued: int = 0, task: str = "t", **more: Any) -> list[Any]:
        """A look: these instances have so much in flight, and each was given one more execution."""
        busy = busy or {}
        self.given.update(dict.fromkeys(busy, 1))
        in_use = {number: self.given[number] for number in busy}
        return self.tell(Observed({task: Load(queued, sum(busy.values()))}, in_use, **more))

    def staff(self) -> TaskStaff:
        return self.scaling.snapshot()[0]

    def brief(self) -> tuple[int, int, int, int, bool, str]:
        staff = self.staff()
        return (staff.wanted, staff.starting, staff.ready, staff.failures, staff.available, staff.reason)


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
        assert play.ready() == []
    assert play.brief() == (3, 0, 3, 0, True, "")


def test_a_task_that_wants_none_is_left_alone() -> None:
    play = Play({"t": 0})
    assert play.tell(Tick()) == []
    assert play.scaling.next_deadline() == math.inf
    assert play.staff().available


def test_starts_in_parallel_are_bounded_and_shared_fairly() -> None:
    play = Play({"t": 10, "u": 1, "v": 1})
    assert Counter(play.tell(Tick())) == {START: 2, "start u": 1, "start v": 1}
    assert play.scaling.next_deadline() == math.inf, "all four places are taken"
    assert play.ready("u") == [START]
    assert play.ready() == [START]


def test_an_end_that_is_no_failure_is_replaced_at_once() -> None:
    play = Play({"t": 1})
    play.tell(Tick())
    for _ in range(20):
        play.ready()
        assert play.end(play.serving["t"][0]) == [START]
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
    assert play.ready() == [Availability("t", True, ""), START]
    assert play.pass_time(2.0) == [], "still one at a time: it is not proven yet"
    assert play.ready() == [START]
    assert play.fail(was_ready=True) == []
    assert play.brief() == (3, 1, 1, 6, True, "exited with code 1")


def test_a_task_is_available_while_one_instance_is_ready() -> None:
    play = Play({"t": 2})
    play.tell(Tick())
    play.ready()
    assert play.fail() == [START]
    for _ in range(3):
        assert play.fail() == []
        assert play.staff().available
        if play.staff().failures < POLICY.breaker_limit:
            play.until_start()
    assert play.end(play.serving["t"][0]) == [unavailable()]


def test_ready_and_then_dead_again_still_counts() -> None:
    play = Play({"t": 1})
    play.tell(Tick())
    changes: list[Any] = []
    for _ in range(4):
        play.ready()
        changes += play.fail(was_ready=True)
        if not play.staff().starting:
            changes += play.until_start()
    assert unavailable() in changes


def test_recovery() -> None:
    play = tripped(wanted=3)
    play.until_start()
    play.ready()
    assert play.pass_time(9.9) == []
    assert play.brief() == (3, 1, 1, 4, True, "exited with code 1")
    assert play.scaling.next_deadline() == pytest.approx(play.now + 0.1)
    assert play.pass_time(0.2) == [START], "no longer one at a time"
    assert play.brief() == (3, 2, 1, 0, True, "")
    assert play.scaling.next_deadline() == math.inf


def test_stop_starts_nothing_more() -> None:
    play = Play({"t": 2})
    play.tell(Tick())
    play.ready()
    assert play.tell(Stop()) == []
    assert play.end(play.serving["t"][0]) == []
    assert play.fail() == []
    assert play.pass_time(100.0) == []
    assert play.scaling.next_deadline() == math.inf


# As much as there is work for

ELASTIC = TaskPlan(0, 4, idle_timeout_s=60.0)


def test_from_zero_at_once_and_back_after_the_idle_time() -> None:
    play = Play({"t": ELASTIC})
    assert play.tell(Tick()) == []
    assert play.see(queued=1) == [START]
    assert play.see(queued=1) == [], "one need is answered once"
    assert play.ready() == []
    assert play.see({1: 1}) == []
    play.now += 59.0
    assert play.see() == []
    play.now += 1.5
    assert play.see() == ["retire 1"]
    assert play.causes[1] == "it is not needed any more"
    assert play.see() == [], "told once"
    assert play.end(1) == []
    assert play.see(queued=1) == [START]


def test_a_queue_that_stands_has_more_started_up_to_the_maximum() -> None:
    play = Play({"t": TaskPlan(1, 4)})
    play.tell(Tick())
    play.all_ready()
    assert play.see({1: 1}, queued=9) == []
    play.now += PATIENCE_S / 2
    assert play.see({1: 1}, queued=0) == [], "it has passed"
    assert play.see({1: 1}, queued=2) == []
    play.now += 1.1 * PATIENCE_S
    assert play.see({1: 1}, queued=2) == [START] * 2
    assert play.see({1: 1}, queued=9) == [START], "as many as the maximum allows"
    assert play.see({1: 1}, queued=99) == []


def test_concurrency_counts() -> None:
    play = Play({"t": TaskPlan(0, 9, concurrency=4)})
    assert play.see(queued=9) == [START] * 3


def test_a_warm_spare_is_kept_beside_those_in_use() -> None:
    play = Play({"t": TaskPlan(0, 5, warm_spare=2, idle_timeout_s=10.0)})
    assert play.tell(Tick()) == [START] * 2
    play.all_ready()
    assert play.see({1: 1, 2: 1}) == [START] * 2
    play.now += 1.0
    play.all_ready()
    play.now += 11.0
    assert play.see({1: 1}) == ["retire 2"], "the one that was idle longest; one in use, two spare"


def test_the_coldest_goes_first_and_none_that_works() -> None:
    play = Play({"t": TaskPlan(1, 4, idle_timeout_s=10.0)})
    play.see(queued=4)
    play.all_ready()
    for number in (3, 1, 4):
        play.now += 1.0
        play.see({number: 1})
    play.now += 10.0
    assert play.see({3: 1, 2: 1}) == ["retire 1", "retire 4"]
    play.now += 10.5
    assert play.see({3: 1}) == ["retire 2"]


def test_load_that_comes_and_goes_starts_and_stops_nothing() -> None:
    """Random waves shorter than the idle time: after the first ones, the number of instances stays as it is."""
    chance = random.Random(11)
    play = Play({"t": TaskPlan(1, 8, idle_timeout_s=30.0)})
    play.tell(Tick())
    said: list[Any] = []
    for second in range(600):
        play.all_ready()
        instances = play.serving["t"]
        work = chance.choice([0, 0, 1, 3, 6])
        busy = dict.fromkeys(instances[:work], 1)
        for step in (0.0, 0.05):
            play.now += step
            actions = play.see(busy, queued=max(0, work - len(instances)))
            said += [action for action in actions if second > 30]
        play.now += 0.95
    assert said == []
    assert play.staff().ready == 6


def test_a_recorded_day_is_followed_up_and_down() -> None:
    """Load up, long plateau, down: every number is reached once, in order, without turning back."""
    play = Play({"t": TaskPlan(0, 6, idle_timeout_s=5.0)})
    sizes: list[int] = []
    for load in [*[0] * 10, *[2] * 20, *[5] * 40, *[1] * 40, *[0] * 40]:
        for _ in range(5):
            play.all_ready()
            instances = play.serving["t"]
            actions = play.see(dict.fromkeys(instances[:load], 1), queued=max(0, load - len(instances)))
            for action in actions:
                if action.startswith("retire"):
                    play.end(int(action.split()[1]))
            play.now += 0.1
        if not sizes or sizes[-1] != len(play.serving["t"]):
            sizes.append(len(play.serving["t"]))
    assert sizes == [0, 2, 5, 1, 0]


def test_bounds_can_be_moved_while_it_runs() -> None:
    play = Play({"t": 2})
    play.tell(Tick())
    play.all_ready()
    play.see({1: 1, 2: 1})
    assert play.tell(Replan({"t": TaskPlan(1, 1)})) == ["retire 1"], "even one that works: it finishes that"
    assert play.causes[1] == "there are to be at most 1"
    assert play.tell(Replan({"t": TaskPlan(3, 3)})) == [START] * 2
    assert play.tell(Replan({"u": TaskPlan(1, 1)})) == ["start u"]
    play.all_ready()
    assert sorted(play.tell(Replan({"t": None}))) == ["retire 2", "retire 3", "retire 4"]
    assert {play.causes[number] for number in (2, 3, 4)} == {"its task was removed"}
    for number in (1, 2, 3, 4):
        play.end(number)
    assert [staff.task for staff in play.scaling.snapshot()] == ["u"]
    assert play.see(queued=3) == [], "nobody knows it any more"


def test_a_task_may_come_back_while_its_instances_go() -> None:
    play = Play({"t": 1})
    play.tell(Tick())
    play.all_ready()
    assert play.tell(Replan({"t": None})) == ["retire 1"]
    assert play.tell(Replan({"t": TaskPlan(1, 1)})) == [START]
    assert play.end(1) == []
    assert play.staff().starting == 1


# Replaced


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (TaskPlan(2, 2, max_executions=100), "it was given 95 executions (max_executions = 100)"),
        (TaskPlan(2, 2, max_age_s=100.0), "it has lived for 95 s (max_age_s = 100)"),
        (TaskPlan(2, 2, max_memory_bytes=100), "it holds 95 bytes (max_memory_bytes = 100)"),
    ],
)
def test_an_instance_that_has_done_its_part_goes_when_its_heir_is_ready(plan: TaskPlan, words: str) -> None:
    play = Play({"t": plan})
    play.tell(Tick())
    play.all_ready()
    assert JITTER * 0.5 == 0.05, "each of them at 95 of 100"
    if plan.max_age_s:
        play.now += 95.0
    given = {1: 95, 2: 95} if plan.max_executions else {}
    held = {1: 95, 2: 95} if plan.max_memory_bytes else {}
    assert play.tell(Observed({"t": Load(0, 0)}, given, held)) == [START], "one at a time"
    assert play.staff().ready == 2
    assert play.ready() == ["retire 1", START]
    assert play.causes[1] == words
    assert play.end(1) == []
    assert play.ready() == ["retire 2"]


def test_a_limit_that_is_not_reached_is_none() -> None:
    play = Play({"t": TaskPlan(1, 1, max_executions=100, max_age_s=100.0, max_memory_bytes=100)})
    play.tell(Tick())
    play.all_ready()
    play.now += 94.0
    assert play.tell(Observed({"t": Load(0, 1)}, {1: 94}, {1: 94})) == []


def test_an_heir_that_fails_leaves_its_predecessor_at_work() -> None:
    play = Play({"t": 1})
    play.tell(Tick())
    play.all_ready()
    assert play.tell(Recycle(1, "asked for")) == [START]
    assert play.tell(Recycle(1, "again")) == []
    assert play.tell(Recycle(77, "nobody")) == []
    assert play.fail() == [START]
    assert play.staff().available
    assert play.ready() == ["retire 1"]
    assert play.causes[1] == "asked for"


def test_another_version_of_a_task_replaces_its_instances_one_by_one() -> None:
    play = Play({"t": 3})
    play.tell(Tick())
    play.all_ready()
    assert play.tell(Replan({"t": TaskPlan(3, 3, version=1)})) == [START]
    assert play.staff().outdated == 3
    assert play.ready() == ["retire 1", START]
    play.end(1)
    assert play.ready() == ["retire 2", START]
    play.end(2)
    assert play.ready() == ["retire 3"]
    play.end(3)
    assert (play.staff().outdated, play.staff().ready) == (0, 3)


def test_another_version_is_another_chance() -> None:
    play = tripped()
    answer = play.tell(Replan({"t": TaskPlan(1, 1, version=1)}))
    assert answer == [Availability("t", True, ""), START]


# Paused


def test_who_is_paused_does_not_count_and_is_left_alone() -> None:
    play = Play({"t": TaskPlan(1, 2, idle_timeout_s=10.0)})
    play.tell(Tick())
    play.all_ready()
    assert play.tell(Pause(1, True)) == [START], "the minimum is of those that serve"
    assert play.ready() == []
    assert play.pass_time(500.0) == [], "it is not idle for too long"
    assert play.tell(Pause(1, False)) == ["retire 2"], "one too many now, which was started for it"


def test_work_that_waits_behind_a_pause_gets_another_instance_within_the_maximum() -> None:
    play = Play({"t": TaskPlan(0, 2, idle_timeout_s=10.0)})
    play.see(queued=1)
    play.all_ready()
    play.now += 5.0
    assert play.see() == []
    assert play.tell(Pause(1, True)) == [START], "as long as its work is remembered"
    play.all_ready()
    assert play.see(queued=5) == [], "the maximum is of all"
    play.now += 11.0
    assert play.see() == ["retire 2"], "the one that serves, and not the paused one, which was idle longest"
    play.end(2)
    assert play.see(queued=1) == [START], "at once: nobody is there who would serve it"
    play.all_ready()
    play.now += 1.0
    assert play.tell(Pause(1, False)) == ["retire 3"]
    play.end(3)
    play.now += 11.0
    assert play.see() == ["retire 1"]


def test_a_pause_keeps_nobody_from_a_reload_or_the_end_of_a_task() -> None:
    play = Play({"t": TaskPlan(1, 1)})
    play.tell(Tick())
    play.all_ready()
    play.tell(Pause(1, True))
    assert play.tell(Replan({"t": TaskPlan(1, 1, version=1)})) == [START]
    assert play.ready() == ["retire 1"]
    play.end(1)
    play.tell(Pause(2, True))
    assert play.tell(Replan({"t": None})) == ["retire 2"]
    play.end(2)
    assert play.scaling.snapshot() == ()
    assert play.tell(Pause(2, True)) == [], "it is gone"


# Within the budget


def test_what_does_not_fit_waits_and_says_for_what() -> None:
    play = Play({"t": TaskPlan(3, 3, need=Need(memory_bytes=40))}, budget=Budget(memory_bytes=100))
    assert play.tell(Tick()) == [START] * 2
    play.all_ready()
    assert play.staff().waits_for.startswith("memory: 40 bytes are wanted, and 80 of 100 are reserved")
    assert play.scaling.next_deadline() == math.inf, "no time helps"
    assert play.end(1) == [START]
    assert play.tell(Replan({"t": TaskPlan(2, 2, need=Need(memory_bytes=40))})) == []
    assert play.staff().waits_for == ""


def test_a_host_without_memory_starts_nothing() -> None:
    play = Play({"t": 0, "u": 0})
    plan = TaskPlan(0, 2)
    play.tell(Replan({"t": plan}))
    assert play.see(queued=1, host_free_bytes=1000) == []
    assert "the host has only 1000 bytes free" in play.staff().waits_for
    assert play.see(queued=1) == [START]


def test_an_idle_instance_makes_room_for_a_task_that_has_none() -> None:
    play = Play({"t": TaskPlan(0, 2), "u": TaskPlan(1, 3)}, budget=Budget(instances=3))
    play.see(queued=3, task="u")
    play.all_ready()
    assert play.staff().waits_for == ""
    loads = Observed({"t": Load(1, 0), "u": Load(0, 0)}, {})
    answer = play.tell(loads)
    assert len(answer) == 1
    assert "task 't' needs its room" in play.causes.values()
    assert play.tell(loads) == [], "one at a time"
    assert play.end(int(answer[0].split()[1])) == [START]


def test_nobody_below_a_minimum_and_nobody_who_works_makes_room() -> None:
    play = Play({"t": TaskPlan(0, 2), "u": TaskPlan(1, 3)}, budget=Budget(instances=2))
    play.tell(Observed({"u": Load(2, 0)}, {}))
    play.all_ready()
    one, two = play.serving["u"]
    assert play.tell(Observed({"t": Load(1, 0), "u": Load(0, 2)}, {one: 1, two: 1})) == []
    assert "instances: all 2 places" in play.staff().waits_for
    assert play.tell(Observed({"t": Load(1, 0), "u": Load(0, 1)}, {one: 1})) == [f"retire {two}"]
    play.end(two)
    play.all_ready()
    play.now += 1.0
    assert play.tell(Observed({"t": Load(5, 0), "u": Load(0, 0)}, {})) == []


def test_where_there_is_no_room_for_both_the_old_one_goes_first() -> None:
    play = Play({"t": 1}, budget=Budget(instances=1))
    play.tell(Tick())
    play.all_ready()
    assert play.tell(Recycle(1, "asked for")) == ["retire 1"]
    assert play.end(1) == [START]


# Whatever happens

STEPS = ["ready", "fail", "end", "time", "look", "recycle", "replan", "pause"]


@given(
    wanted=st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=1),
    places=st.sampled_from([3, 6, math.inf]),
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 50)), max_size=80),
)
def test_whatever_happens(wanted: dict[str, tuple[int, int]], places: float, steps: list[tuple[str, int]]) -> None:
    """The bounds hold, what is said is what is, and in the end every task has its instances."""
    now = 0.0
    plans = {
        name: TaskPlan(low, max(low, high), idle_timeout_s=5.0, max_executions=50)
        for name, (low, high) in wanted.items()
    }
    scaling = Scaling(plans, Budget(instances=places), POLICY, now)
    task_of: dict[int, str] = {}
    starting: set[int] = set()
    ready: set[int] = set()
    retiring: set[int] = set()
    available = dict.fromkeys(wanted, True)
    most = {name: plan.maximum for name, plan in plans.items()}  # who is starting when a maximum is lowered may finish

    def tell(event: Event) -> None:
        for action in scaling.handle(event, now, 0.9):
            match action:
                case StartInstance(task, number):
                    assert number not in task_of
                    task_of[number] = task
                    starting.add(number)
                case Retire(number):
                    ready.remove(number)
                    retiring.add(number)
                case Availability(task, is_now):
                    assert available[task] != is_now
                    available[task] = is_now
        assert len(starting) <= POLICY.max_starting
        assert len(starting) + len(ready) + len(retiring) <= places
        for staff in scaling.snapshot():
            count = Counter(task_of[number] for number in ready)[staff.task]
            assert staff.ready == count
            assert staff.starting == Counter(task_of[number] for number in starting)[staff.task]
            assert staff.ready + staff.starting <= most[staff.task] + 1
            assert staff.minimum <= staff.wanted <= staff.maximum
            assert staff.available == available[staff.task]
            assert staff.available or not staff.ready
        assert scaling.next_deadline() > now

    def end(crowd: set[int], number: int, *, failed: bool) -> None:
        crowd.remove(number)
        tell(InstanceEnded(number, failed=failed, reason="x"))

    def pick(crowd: set[int], number: int) -> int | None:
        return sorted(crowd)[number % len(crowd)] if crowd else None

    tell(Tick())
    for what, number in steps:
        now += 0.01
        chosen = pick(starting if what in {"ready", "fail"} else ready | retiring, number)
        if what == "time":
            now += number / 4
            tell(Tick())
        elif what == "look":
            busy = dict.fromkeys(sorted(ready)[: number % 4], number)
            tell(Observed({name: Load(number % 7, 1) for name in wanted}, busy))
        elif what == "replan":
            name = sorted(wanted)[number % len(wanted)]
            plans[name] = TaskPlan(number % 3, 3, idle_timeout_s=5.0, version=number % 2)
            most[name] = max(most[name], plans[name].maximum)
            tell(Replan({name: plans[name]}))
        elif chosen is None:
            continue
        elif what == "ready":
            starting.remove(chosen)
            ready.add(chosen)
            tell(InstanceReady(chosen))
        elif what == "recycle":
            tell(Recycle(chosen, "asked for"))
        elif what == "pause":
            tell(Pause(chosen, number % 3 > 0))
        else:
            crowd = next(crowd for crowd in (starting, ready, retiring) if chosen in crowd)
            end(crowd, chosen, failed=what == "fail")
    for number in sorted(ready | retiring):
        tell(Pause(number, False))
    for _ in range(300):
        for number in sorted(retiring):
            end(retiring, number, failed=False)
        for number in sorted(starting):
            starting.remove(number)
            ready.add(number)
            tell(InstanceReady(number))
        now = min(max(now, scaling.next_deadline()), now + 10.0)
        tell(Observed({name: Load(0, 0) for name in wanted}, {}))
    least = {staff.task: (staff.minimum, staff.ready, staff.outdated) for staff in scaling.snapshot()}
    if sum(low for low, _, _ in least.values()) <= places:
        assert all(low == there and not old for low, there, old in least.values()), least
    assert all(staff.available and not staff.failures for staff in scaling.snapshot() if staff.ready)
