from __future__ import annotations

from typing import get_args

from spearpool.worker.executions import CLIENT, Action, Agent, Execution, Place

from .boards import new_agent, new_execution


def test_agents_and_executions_are_themselves_only() -> None:
    assert new_agent() != new_agent()
    assert new_execution() != new_execution()
    assert len({new_agent(), new_agent()}) == 2


def test_a_new_execution_is_nowhere_and_has_no_limit() -> None:
    execution = new_execution()
    assert (execution.place, execution.agent, execution.who) == (Place.NEW, None, None)
    assert execution.deadline == float("inf")
    assert execution.source == CLIENT < 0


def test_agents_do_not_share_their_books() -> None:
    one, other = new_agent(), new_agent()
    one.running["x"] = None
    one.sent[1] = "x"
    assert (other.running, other.sent) == ({}, {})


def test_instructions_are_values() -> None:
    for kind in get_args(Action):
        arguments = ["value"] * len(kind.__struct_fields__)
        assert kind(*arguments) == kind(*arguments)
        assert kind(*arguments) != "value"


def test_no_field_is_added_by_accident() -> None:
    for value in (new_agent(), new_execution()):
        assert isinstance(value, Agent | Execution)
        assert not hasattr(value, "__dict__")
