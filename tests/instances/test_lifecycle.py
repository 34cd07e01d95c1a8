from __future__ import annotations

import math
import signal

import pytest

from spearpool.config import TaskConfig
from spearpool.instances.lifecycle import SETTLED_S, TERMINATE_S, Lifecycle, Order, Phase, describe_exit, longest_stop_s

CONFIG = TaskConfig(target="exec:true", start_timeout_s=10.0, stop_timeout_s=5.0)
BEGIN = 1000.0


def waiting() -> Lifecycle:
    return Lifecycle(CONFIG, BEGIN)


def launching() -> Lifecycle:
    life = waiting()
    life.launching()
    return life


def connecting() -> Lifecycle:
    life = launching()
    life.launched()
    return life


def ready() -> Lifecycle:
    life = connecting()
    assert life.claimed(BEGIN)
    return life


def away() -> Lifecycle:
    life = ready()
    life.released(BEGIN + 50.0)
    return life


@pytest.mark.parametrize(
    ("life", "after_s", "clean", "crashed"),
    [
        (ready(), SETTLED_S + 1, False, True),
        (ready(), SETTLED_S + 1, True, False),
        (ready(), SETTLED_S - 1, True, True),
        (connecting(), 1.0, True, True),
        (away(), SETTLED_S + 60, True, False),
    ],
    ids=["settled, killed", "settled, done", "soon after it was ready", "before it was ready", "away, done"],
)
def test_an_end_that_nobody_wanted(life: Lifecycle, after_s: float, clean: bool, crashed: bool) -> None:
    assert life.crashed(BEGIN + after_s, clean=clean) is crashed
    assert life.cause("exited with code 0") == "exited with code 0"
    life.stop(BEGIN + 1)
    assert not life.crashed(BEGIN + after_s, clean=clean), "it was asked to"


def test_one_that_was_ended_because_it_was_too_slow_has_crashed_however_it_went() -> None:
    life = away()
    life.expire(BEGIN + 60)
    assert not life.failed(BEGIN + 61), "its task has served long enough"
    assert life.crashed(BEGIN + 61, clean=True)
    assert life.cause("exited with code 0") == "it lost its connection and did not come back within 10 s"


def phase(life: Lifecycle) -> Phase:
    return life.phase


def test_a_start() -> None:
    life = waiting()
    assert (phase(life), life.deadline, life.starting, life.stopping) == (Phase.WAITING, BEGIN + 10, True, False)
    life.launching()
    assert (phase(life), life.deadline) == (Phase.LAUNCHING, BEGIN + 10)
    life.launched()
    assert (phase(life), life.deadline) == (Phase.CONNECTING, BEGIN + 10)
    assert life.claimed(BEGIN + 3)
    assert (phase(life), life.deadline, life.ready_at) == (Phase.READY, math.inf, BEGIN + 3)
    assert (life.starting, life.stopping) == (False, False)


def test_an_agent_may_be_quicker_than_the_report_of_its_launch() -> None:
    life = launching()
    assert life.claimed(BEGIN + 1)
    life.launched()
    assert phase(life) is Phase.READY


def test_a_connection_may_come_and_go() -> None:
    life = ready()
    life.released(BEGIN + 50)
    assert (phase(life), life.deadline) == (Phase.AWAY, BEGIN + 60)
    life.released(BEGIN + 55)
    assert life.deadline == BEGIN + 60
    assert not life.claimed(BEGIN + 59), "not for the first time"
    assert (phase(life), life.deadline, life.ready_at) == (Phase.READY, math.inf, BEGIN)


@pytest.mark.parametrize(
    ("begin", "order", "after", "words"),
    [
        (waiting, Order.ABANDON, Phase.WAITING, "its code was not imported within 10 s"),
        (launching, Order.KILL, Phase.KILLED, "it was not launched within 10 s"),
        (connecting, Order.TERMINATE, Phase.TERMINATED, "it runs, but did not connect and authenticate within 10 s"),
        (away, Order.TERMINATE, Phase.TERMINATED, "it lost its connection and did not come back within 10 s"),
    ],
)
def test_every_phase_of_waiting_has_a_deadline(begin: object, order: Order, after: Phase, words: str) -> None:
    assert callable(begin)
    life: Lifecycle = begin()
    now = life.deadline
    assert life.expire(now - 0.001) is None
    assert life.expire(now) is order
    assert life.phase is after
    assert life.expire(now) is None
    assert life.explain(describe_exit(None, signal.SIGTERM), now) == words
    assert life.failed(now) is (begin is not away), "late by itself: a failure, unless it had settled"
    assert life.stopping is (order is not Order.ABANDON)


@pytest.mark.parametrize(
    ("begin", "orders"),
    [
        (waiting, [Order.ABANDON]),
        (launching, [Order.KILL]),
        (connecting, [Order.TERMINATE, Order.KILL]),
        (ready, [Order.ASK, Order.TERMINATE, Order.KILL]),
        (away, [Order.TERMINATE, Order.KILL]),
    ],
)
def test_a_stop_escalates(begin: object, orders: list[Order]) -> None:
    assert callable(begin)
    life: Lifecycle = begin()
    now = BEGIN + 100
    given = [life.stop(now)]
    waits = []
    while life.deadline < math.inf and given[-1] is not Order.ABANDON:
        waits.append(life.deadline - now)
        now = life.deadline
        given.append(life.expire(now))
    assert given == orders
    assert waits == {1: [], 2: [TERMINATE_S], 3: [5.0, TERMINATE_S]}[len(orders)]
    assert sum(waits) <= longest_stop_s(CONFIG)
    assert not life.failed(now)
    if given != [Order.ABANDON]:
        assert life.stop(now) is None, "it is on its way already"


def test_a_stop_can_be_hurried() -> None:
    life = ready()
    assert life.stop(BEGIN) is Order.ASK
    assert life.hurry(BEGIN) is Order.TERMINATE
    assert life.deadline == BEGIN + TERMINATE_S
    assert life.hurry(BEGIN) is Order.KILL
    assert life.deadline == math.inf


def test_nothing_brings_back_what_is_stopping() -> None:
    life = ready()
    life.stop(BEGIN)
    assert not life.claimed(BEGIN)
    life.released(BEGIN)
    life.launched()
    assert phase(life) is Phase.ASKED


@pytest.mark.parametrize(
    ("life", "after_s", "failed", "words"),
    [
        (connecting(), 1.0, True, "it exited with code 3 before it connected and authenticated"),
        (ready(), SETTLED_S - 0.1, True, "it exited with code 3, 9.9 s after it was ready"),
        (ready(), SETTLED_S, False, "it exited with code 3, 10.0 s after it was ready"),
        (away(), 51.0, False, "it exited with code 3, 51.0 s after it was ready"),
    ],
)
def test_what_an_end_means(life: Lifecycle, after_s: float, failed: bool, words: str) -> None:
    assert life.failed(BEGIN + after_s) is failed
    assert life.explain(describe_exit(3, None), BEGIN + after_s) == words


def test_an_end_that_was_asked_for_is_no_failure() -> None:
    life = connecting()
    life.stop(BEGIN)
    assert not life.failed(BEGIN)
    assert life.explain(describe_exit(None, 15), BEGIN) == "it was stopped and was killed by signal SIGTERM"


def test_when_there_never_was_a_process() -> None:
    assert launching().explain_no_process("cannot fork") == "it could not be launched: cannot fork"
    late = launching()
    late.expire(late.deadline)
    assert late.explain_no_process("cannot fork") == "it was not launched within 10 s"
    stopped = waiting()
    stopped.stop(BEGIN)
    assert stopped.explain_no_process("") == "it was stopped before it was launched"


@pytest.mark.parametrize(
    ("code", "signum", "words"),
    [
        (0, None, "exited with code 0"),
        (None, 11, "was killed by signal SIGSEGV"),
        (None, signal.SIGRTMIN + 3, f"was killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_how_a_process_ended(code: int | None, signum: int | None, words: str) -> None:
    assert describe_exit(code, signum) == words


def test_condemned() -> None:
    life = ready()
    assert life.condemn("it did wrong", BEGIN + 100.0) is Order.KILL
    assert (life.phase, life.deadline) == (Phase.KILLED, math.inf)
    assert life.crashed(BEGIN + 100.0, clean=False)
    assert life.explain("was killed by signal SIGKILL", BEGIN + 100.0) == "it did wrong"
    assert life.condemn("it did wrong again", BEGIN + 101.0) is None


def test_one_that_is_ending_is_not_condemned() -> None:
    life = connecting()
    life.stop(BEGIN)
    assert life.condemn("it did wrong", BEGIN) is None
    assert not life.crashed(BEGIN, clean=False)
