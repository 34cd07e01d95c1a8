"""Clocks of agents, at times that the test chooses."""

from __future__ import annotations

from math import inf

import pytest

from spearpool.worker.executions import Agent
from spearpool.worker.stuck import STUCK_GRACE_S, Overrun, Stopwatch, Stuck

from .boards import new_agent

LIMIT_S = 5.0


@pytest.fixture
def watch() -> Stopwatch:
    return Stopwatch({"a": LIMIT_S})


def give(watch: Stopwatch, agent: Agent, now: float, *names: str) -> None:
    for name in names:
        agent.running[name] = None
        watch.look(agent, now)


def take(watch: Stopwatch, agent: Agent, now: float, name: str) -> None:
    """The agent answers."""
    del agent.running[name]
    watch.look(agent, now)


def test_only_tasks_with_a_limit_are_timed(watch: Stopwatch) -> None:
    assert watch.times("a")
    assert not watch.times("b")
    assert watch.next_deadline() == inf


def test_who_answers_in_time_is_left_alone(watch: Stopwatch) -> None:
    agent = new_agent()
    give(watch, agent, 10.0, "1")
    assert watch.next_deadline() == 15.0
    assert watch.expire(14.9) == []
    take(watch, agent, 14.9, "1")
    assert watch.expire(100.0) == []


def test_overrun_is_said_once_and_then_stuck_once(watch: Stopwatch) -> None:
    agent = new_agent()
    give(watch, agent, 10.0, "1")
    assert watch.expire(15.5) == [Overrun(agent, "1", LIMIT_S)]
    assert watch.expire(15.6) == []
    assert watch.next_deadline() == 15.5 + STUCK_GRACE_S
    assert watch.expire(17.5) == [Stuck(agent, "1", LIMIT_S, 2.0)]
    assert watch.expire(100.0) == []


def test_who_lets_go_within_the_grace_is_not_stuck(watch: Stopwatch) -> None:
    agent = new_agent()
    give(watch, agent, 0.0, "1")
    assert watch.expire(5.0) == [Overrun(agent, "1", LIMIT_S)]
    take(watch, agent, 5.5, "1")
    assert watch.expire(100.0) == []


def test_what_waits_inside_the_instance_is_not_timed(watch: Stopwatch) -> None:
    agent = new_agent(capacity=3)  # concurrency 1
    give(watch, agent, 0.0, "1", "2", "3")
    take(watch, agent, 4.0, "1")
    assert watch.next_deadline() <= 9.0
    assert watch.expire(8.9) == []
    assert watch.expire(9.0) == [Overrun(agent, "2", LIMIT_S)]
    take(watch, agent, 9.5, "2")
    assert watch.expire(14.4) == []
    assert watch.expire(14.5) == [Overrun(agent, "3", LIMIT_S)]


def test_as_many_clocks_run_as_the_agent_has_concurrency(watch: Stopwatch) -> None:
    agent = new_agent(capacity=3)
    agent.concurrency = 2
    give(watch, agent, 0.0, "1", "2", "3")
    assert watch.expire(5.0) == [Overrun(agent, "1", LIMIT_S), Overrun(agent, "2", LIMIT_S)]
    take(watch, agent, 5.0, "2")
    assert watch.expire(9.5) == [Stuck(agent, "1", LIMIT_S, 4.5)]
    assert watch.expire(10.0) == [Overrun(agent, "3", LIMIT_S)]


def test_an_agent_that_comes_back_goes_on_where_it_stood(watch: Stopwatch) -> None:
    before, after = new_agent(who="x"), new_agent(who="x")
    give(watch, before, 0.0, "1")
    watch.left(before, 3.0)
    assert watch.expire(20.0) == []
    give(watch, after, 20.0, "1")
    assert watch.expire(21.9) == []
    assert watch.expire(22.0) == [Overrun(after, "1", LIMIT_S)]


def test_an_agent_that_is_gone_or_away_too_long_is_forgotten(watch: Stopwatch) -> None:
    for who, again_at in (("x", 20.0), ("y", 1000.0)):
        agent = new_agent(who=who)
        give(watch, agent, 0.0, who)
        watch.left(agent, 3.0)
        if who == "x":
            watch.gone("x")
        other = new_agent(who="z")
        give(watch, other, again_at, "z")
        watch.left(other, again_at)  # somebody else's leaving clears what is old
        watch.gone("z")
        again = new_agent(who=who)
        give(watch, again, again_at, who)
        assert watch.expire(again_at + 4.9) == []
        assert watch.expire(again_at + 5.0) == [Overrun(again, who, LIMIT_S)]
        take(watch, again, again_at + 5.0, who)


def test_clocks_stand_still_while_the_process_does(watch: Stopwatch) -> None:
    agent = new_agent()
    give(watch, agent, 0.0, "1")
    watch.freeze(agent, 3.0)
    watch.freeze(agent, 4.0)
    assert watch.expire(50.0) == []
    watch.thaw(agent, 100.0)
    assert watch.expire(101.9) == []
    assert watch.expire(102.0) == [Overrun(agent, "1", LIMIT_S)]
    watch.freeze(agent, 102.5)
    assert watch.expire(200.0) == []
    watch.thaw(agent, 200.0)
    assert watch.expire(200.4) == []
    (stuck,) = watch.expire(200.5)
    assert isinstance(stuck, Stuck)


def test_what_comes_while_the_process_stands_still_has_its_whole_time(watch: Stopwatch) -> None:
    agent = new_agent()
    watch.freeze(agent, 0.0)
    give(watch, agent, 10.0, "1")
    watch.thaw(agent, 20.0)
    assert watch.expire(24.9) == []
    assert watch.expire(25.0) == [Overrun(agent, "1", LIMIT_S)]
