from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.worker.lane import Lane

from .boards import new_agent, new_execution


def test_the_idlest_agent_comes_first() -> None:
    lane = Lane("a", 0)
    busy, idle = new_agent(capacity=3), new_agent(capacity=3)
    lane.join(busy)
    lane.join(idle)
    lane.hold(busy, "1", new_execution())
    assert lane.idlest() is idle
    lane.hold(idle, "2", new_execution())
    lane.hold(idle, "3", new_execution())
    assert lane.idlest() is busy


def test_of_equals_the_one_used_last() -> None:
    lane = Lane("a", 0)
    agents = [new_agent() for _ in range(3)]
    for agent in agents:
        lane.join(agent)
    lane.hold(agents[0], "1", new_execution())
    lane.release(agents[0], "1")
    assert lane.idlest() is agents[0]


def test_full_agents_are_not_offered() -> None:
    lane = Lane("a", 0)
    agent = new_agent(capacity=1)
    lane.join(agent)
    lane.hold(agent, "1", None)
    assert (lane.idlest(), lane.free) == (None, 0)


def test_an_agent_may_bring_more_than_its_capacity() -> None:
    lane = Lane("a", 0)
    agent = new_agent(capacity=1)
    lane.join(agent)
    for name in ("1", "2", "3"):
        lane.hold(agent, name, None)
    lane.release(agent, "1")
    lane.release(agent, "2")
    assert (lane.idlest(), lane.free) == (None, 0)
    lane.release(agent, "3")
    assert (lane.idlest(), lane.free) == (agent, 1)


def test_who_is_suspended_for_two_reasons_goes_on_when_both_are_gone() -> None:
    lane = Lane("a", 0)
    agent = new_agent(capacity=2)
    lane.join(agent)
    agent.paused = agent.parked = True
    lane.suspend(agent)
    lane.suspend(agent)
    assert (lane.places, lane.free, lane.idlest()) == (0, 0, None)
    agent.parked = False
    lane.resume(agent)
    assert (lane.free, lane.idlest()) == (0, None)
    agent.paused = False
    lane.resume(agent)
    assert (lane.places, lane.free, lane.idlest()) == (2, 2, agent)


def test_one_that_comes_paused_gets_nothing_until_it_goes_on() -> None:
    lane = Lane("a", 0)
    agent = new_agent(capacity=2)
    agent.paused, agent.held, agent.capacity = True, 2, 0
    lane.join(agent)
    lane.hold(agent, "1", None)
    assert (lane.places, lane.free, lane.idlest()) == (0, 0, None)
    lane.release(agent, "1")
    assert (lane.free, lane.idlest()) == (0, None)
    lane.hold(agent, "2", None)
    agent.paused = False
    lane.resume(agent)
    assert (lane.places, lane.free, lane.idlest()) == (2, 1, agent)


def test_retired_keeps_what_it_has() -> None:
    lane = Lane("a", 0)
    agent, execution = new_agent(capacity=2), new_execution()
    lane.join(agent)
    lane.hold(agent, "1", execution)
    lane.retire(agent)
    assert (lane.idlest(), lane.free) == (None, 0)
    assert lane.release(agent, "1") is execution
    assert (lane.idlest(), lane.free) == (None, 0)
    lane.leave(agent)
    assert not lane.agents


def test_suspended_gets_nothing_until_it_goes_on() -> None:
    lane = Lane("a", 0)
    agent = new_agent(capacity=2)
    lane.join(agent)
    lane.hold(agent, "1", None)
    for _ in range(2):
        lane.suspend(agent)
        assert (lane.idlest(), lane.free, lane.places, agent.held) == (None, 0, 0, 2)
    lane.release(agent, "1")
    lane.resume(agent)
    assert (lane.idlest(), lane.free, lane.places, agent.held) == (agent, 2, 2, 0)
    lane.suspend(agent)
    lane.leave(agent)
    lane.resume(agent)
    assert (lane.idlest(), lane.free, lane.agents) == (None, 0, {})


def test_who_is_retired_while_it_is_suspended_does_not_go_on() -> None:
    lane = Lane("a", 0)
    agent = new_agent(capacity=2)
    lane.join(agent)
    lane.suspend(agent)
    lane.retire(agent)
    lane.resume(agent)
    assert (lane.idlest(), lane.free, agent.capacity, agent.held) == (None, 0, 0, 0)


def test_unknown_ids_are_an_error() -> None:
    lane = Lane("a", 0)
    agent = new_agent()
    lane.join(agent)
    with pytest.raises(KeyError):
        lane.release(agent, "never held")


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["hold", "release", "retire", "leave"]))))
def test_free_is_the_sum_over_agents(steps: list[tuple[int, str]]) -> None:
    lane = Lane("a", 0)
    agents = [new_agent(capacity=number) for number in range(1, 5)]
    for agent in agents:
        lane.join(agent)
    for count, (number, step) in enumerate(steps):
        agent = agents[number]
        match step:
            case "hold":
                lane.hold(agent, str(count), None)
            case "release" if agent.running:
                lane.release(agent, next(iter(agent.running)))
            case "retire":
                lane.retire(agent)
            case "leave":
                lane.leave(agent)
        open_agents = [a for a in lane.agents if len(a.running) < a.capacity]
        assert lane.free == sum(a.capacity - len(a.running) for a in open_agents)
        idlest = lane.idlest()
        if open_agents:
            assert idlest is not None
            assert len(idlest.running) == min(len(a.running) for a in open_agents)
        else:
            assert idlest is None


def test_suspended_twice_it_resumes_with_what_it_had() -> None:
    lane = Lane("a", 0)
    agent = new_agent(capacity=3)
    lane.join(agent)
    lane.hold(agent, "1", None)
    lane.suspend(agent)
    lane.suspend(agent)
    assert (lane.places, lane.free, lane.idlest()) == (0, 0, None)
    lane.resume(agent)
    assert (lane.places, lane.free, lane.idlest()) == (3, 2, agent)
    lane.resume(agent)
    assert (lane.places, lane.free) == (3, 2)


def test_who_has_left_does_not_resume() -> None:
    lane = Lane("a", 0)
    agent = new_agent(capacity=3)
    lane.join(agent)
    lane.suspend(agent)
    lane.leave(agent)
    lane.resume(agent)
    assert (lane.places, lane.free, lane.idlest()) == (0, 0, None)


def test_places_are_what_all_can_have() -> None:
    lane = Lane("a", 0)
    one, other = new_agent(capacity=2), new_agent(capacity=3)
    lane.join(one)
    lane.join(other)
    lane.hold(one, "1", None)
    assert (lane.places, lane.free) == (5, 4)
    lane.retire(one)
    assert (lane.places, lane.free) == (3, 3)
    lane.leave(one)
    lane.leave(other)
    assert (lane.places, lane.free) == (0, 0)
