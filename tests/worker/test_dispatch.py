"""The rules of the dispatcher, one by one. `tests/stateful/test_dispatch.py` drives several of them at random."""

from __future__ import annotations

import pytest

from spearpool.errors import ErrorCode
from spearpool.worker.books import REATTACH_GRACE_S
from spearpool.worker.dispatch import REREAD_S, Dispatcher
from spearpool.worker.executions import (
    Action,
    Agent,
    Answer,
    Dispatch,
    Ending,
    Execution,
    Finish,
    Forward,
    Located,
    Mislaid,
    Nudge,
    Place,
    Refuse,
    Relay,
    Terminate,
    TerminateRemote,
    Unused,
)
from spearpool.worker.lane import Lane

from .boards import ME, WHEN, PlainBoard, new_agent, new_execution

TASK_A = 0


@pytest.fixture
def board() -> PlainBoard:
    return PlainBoard()


@pytest.fixture
def dispatcher(board: PlainBoard) -> Dispatcher:
    return Dispatcher(ME, ("a", "b"), board, max_queued=3, max_queued_bytes=100)


def kinds(actions: list[Action]) -> list[type]:
    return [type(action) for action in actions]


# --------------------------------------------------------------------------------------------------------------- here


def test_takes_a_local_agent_and_answers(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent, execution = new_agent(), new_execution()
    assert dispatcher.agent_joined(agent) == []
    assert board.rows[ME, TASK_A] == (1, 0)
    assert dispatcher.submit(execution, 0.0) == [Dispatch(execution, agent)]
    assert board.rows[ME, TASK_A] == (0, 0)
    assert dispatcher.live == 1
    assert dispatcher.answered(agent, execution.execution_id, "done") == [Answer(execution, "done")]
    assert board.rows[ME, TASK_A] == (1, 0)
    assert (execution.place, dispatcher.live) == (Place.ENDED, 0)


def test_queues_in_order_and_serves_as_places_become_free(dispatcher: Dispatcher) -> None:
    agent = new_agent()
    dispatcher.agent_joined(agent)
    first, second, third = new_execution(), new_execution(), new_execution()
    assert [kinds(dispatcher.submit(e, 0.0)) for e in (first, second, third)] == [[Dispatch], [], []]
    assert dispatcher.answered(agent, first.execution_id, 1) == [Answer(first, 1), Dispatch(second, agent)]
    assert dispatcher.answered(agent, second.execution_id, 2) == [Answer(second, 2), Dispatch(third, agent)]


def test_serves_the_queue_when_an_agent_joins(dispatcher: Dispatcher) -> None:
    waiting = [new_execution(), new_execution()]
    for execution in waiting:
        dispatcher.submit(execution, 0.0)
    agent = new_agent(capacity=5)
    assert dispatcher.agent_joined(agent) == [Dispatch(execution, agent) for execution in waiting]


def test_tasks_do_not_share_agents(dispatcher: Dispatcher) -> None:
    dispatcher.agent_joined(new_agent("b"))
    assert dispatcher.submit(new_execution("a"), 0.0) == []


@pytest.mark.parametrize(
    ("sizes", "words"),
    [([10, 10, 10, 10], "3 executions"), ([60, 60], "100 bytes")],
    ids=["count", "bytes"],
)
def test_a_full_queue_refuses_at_once(dispatcher: Dispatcher, sizes: list[int], words: str) -> None:
    *_, refusals = [dispatcher.submit(new_execution(size_bytes=size), now=0.0) for size in sizes]
    (refusal,) = refusals
    assert isinstance(refusal, Refuse)
    assert refusal.code is ErrorCode.OVERLOADED
    assert words in refusal.message
    assert refusal.details == "50"
    assert dispatcher.live == len(sizes) - 1


def test_retry_after_is_how_long_the_head_has_waited(dispatcher: Dispatcher) -> None:
    for _ in range(3):
        dispatcher.submit(new_execution(), now=10.0)
    (refusal,) = dispatcher.submit(new_execution(), now=12.5)
    assert isinstance(refusal, Refuse)
    assert refusal.details == "2500"


def test_refuses_an_unknown_task(dispatcher: Dispatcher) -> None:
    (refusal,) = dispatcher.submit(new_execution("zebra"), 0.0)
    assert isinstance(refusal, Refuse)
    assert refusal.code is ErrorCode.UNKNOWN
    assert "'zebra'" in refusal.message


def test_an_unavailable_task_does_not_wait_but_uses_what_is_there(dispatcher: Dispatcher) -> None:
    waiting = new_execution()
    dispatcher.submit(waiting, 0.0)
    assert dispatcher.set_task("a", available=False, reason="it crashes") == [
        Refuse(waiting, ErrorCode.DRAINING, "it crashes")
    ]
    assert dispatcher.submit(refused := new_execution(), 0.0) == [Refuse(refused, ErrorCode.DRAINING, "it crashes")]
    dispatcher.agent_joined(new_agent())
    assert kinds(dispatcher.submit(new_execution(), 0.0)) == [Dispatch]
    dispatcher.set_task("a", available=True)
    assert dispatcher.submit(new_execution(), 0.0) == []


def test_drains(dispatcher: Dispatcher) -> None:
    agent, running, waiting = new_agent(), new_execution(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(running, 0.0)
    dispatcher.submit(waiting, 0.0)
    dispatcher.drain()
    assert kinds(dispatcher.submit(new_execution(), 0.0)) == [Refuse]
    assert kinds(dispatcher.answered(agent, running.execution_id, 1)) == [Answer, Dispatch]
    assert kinds(dispatcher.answered(agent, waiting.execution_id, 1)) == [Answer]
    assert dispatcher.live == 0


def test_abort_ends_all_and_says_what_is_known(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent, running, waiting, away = new_agent(), new_execution(), new_execution(), new_execution("b")
    board.rows[1, 1] = (1, 0)
    dispatcher.link_up(1, 0.0)
    dispatcher.agent_joined(agent)
    for execution in (running, waiting, away):
        dispatcher.submit(execution, 0.0)
    assert dispatcher.abort() == [
        Terminate(agent, running.execution_id),
        Finish(running, Ending.OUTCOME_UNKNOWN),
        Refuse(waiting, ErrorCode.DRAINING, "the pool is stopping"),
        TerminateRemote(1, away.execution_id),
        Finish(away, Ending.OUTCOME_UNKNOWN),
    ]
    assert dispatcher.live == 0


# ------------------------------------------------------------------------------------------------ time-outs and cancels


def test_times_out_in_the_queue(dispatcher: Dispatcher) -> None:
    execution = new_execution(deadline=5.0)
    dispatcher.submit(execution, 0.0)
    assert dispatcher.next_deadline() == 5.0
    assert dispatcher.expire(4.9) == []
    assert dispatcher.expire(5.0) == [Finish(execution, Ending.TIMED_OUT)]
    assert dispatcher.snapshot().queued == 0


def test_times_out_at_an_agent_whose_place_stays_taken_until_it_answers(dispatcher: Dispatcher) -> None:
    agent, late, waiting = new_agent(), new_execution(deadline=5.0), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(late, 0.0)
    assert dispatcher.expire(5.0) == [Terminate(agent, late.execution_id), Finish(late, Ending.TIMED_OUT)]
    assert dispatcher.submit(waiting, 6.0) == []
    assert dispatcher.answered(agent, late.execution_id, "too late") == [Dispatch(waiting, agent)]


def test_times_out_at_a_neighbour(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    execution = new_execution(deadline=5.0)
    assert dispatcher.submit(execution, 0.0) == [Forward(execution, 1)]
    name = execution.execution_id
    assert dispatcher.expire(5.0) == [TerminateRemote(1, name), Finish(execution, Ending.TIMED_OUT)]
    assert dispatcher.neighbour_answered(1, name, "too late") == []
    assert dispatcher.bounced(1, name, 5.1) == []


def test_overran_is_answered_and_its_place_stays_taken_until_the_agent_lets_go(dispatcher: Dispatcher) -> None:
    agent, execution, behind = new_agent(), new_execution(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.submit(behind, 0.0)
    name = execution.execution_id
    assert dispatcher.overran(agent, name, "late") == [Terminate(agent, name), Answer(execution, "late")]
    assert (execution.place, behind.place, dispatcher.live) == (Place.ENDED, Place.QUEUED, 1)
    assert dispatcher.overran(agent, name, "late") == [Terminate(agent, name)]
    assert dispatcher.answered(agent, name, "too late") == [Dispatch(behind, agent)]


def test_overran_reaches_the_worker_that_accepted_it(dispatcher: Dispatcher) -> None:
    dispatcher.link_up(1, 0.0)
    agent = new_agent()
    dispatcher.agent_joined(agent, ["1-7-1-5"])
    expected = [Terminate(agent, "1-7-1-5"), Relay(1, "1-7-1-5", "late")]
    assert dispatcher.overran(agent, "1-7-1-5", "late") == expected


def test_only_the_origin_cancels(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution(origin="me")
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    assert dispatcher.cancel(execution.execution_id, "somebody else") == []
    assert dispatcher.cancel(execution.execution_id, "me") == [
        Terminate(agent, execution.execution_id),
        Finish(execution, Ending.CANCELLED),
    ]
    assert dispatcher.cancel(execution.execution_id, "me") == []


def test_abandon_drops_what_waits_and_lets_the_rest_run(dispatcher: Dispatcher) -> None:
    agent, running, waiting = new_agent(), new_execution(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(running, 0.0)
    dispatcher.submit(waiting, 0.0)
    assert dispatcher.abandon([running, waiting]) == [Finish(waiting, Ending.CANCELLED)]
    assert dispatcher.answered(agent, running.execution_id, "x") == [Answer(running, "x")]


# ------------------------------------------------------------------------------------------------------- lost agents


def test_a_lost_agent_that_comes_back_goes_on(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    assert dispatcher.agent_left(agent, 1.0) == []
    assert dispatcher.next_deadline() == 1.0 + REATTACH_GRACE_S
    again = new_agent()
    assert dispatcher.agent_joined(again, [execution.execution_id]) == []
    assert dispatcher.expire(10.0) == []
    assert dispatcher.snapshot().tasks["a"].free == 0
    assert dispatcher.answered(again, execution.execution_id, "x") == [Answer(execution, "x")]


def test_a_lost_agent_that_does_not_name_it_makes_the_outcome_unknown(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_left(agent, 1.0)
    dispatcher.agent_joined(new_agent())
    assert dispatcher.expire(1.0 + REATTACH_GRACE_S) == [Finish(execution, Ending.OUTCOME_UNKNOWN)]


def test_another_agent_cannot_name_it(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_left(agent, 1.0)
    impostor = new_agent(who="somebody else")
    dispatcher.agent_joined(impostor, [execution.execution_id])
    assert dispatcher.answered(impostor, execution.execution_id, "false") == []
    assert dispatcher.answered_late(impostor, execution.execution_id, "false") == []
    assert dispatcher.live == 1


def test_what_the_agent_finished_meanwhile_is_answered(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_left(agent, 1.0)
    again = new_agent()
    dispatcher.agent_joined(again)
    assert dispatcher.answered_late(again, execution.execution_id, "x") == [Answer(execution, "x")]


def test_a_dead_instance_is_not_waited_for(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(who="dead"), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_left(agent, 1.0)
    assert dispatcher.agent_gone("another") == []
    assert dispatcher.agent_gone("dead") == [Finish(execution, Ending.OUTCOME_UNKNOWN)]


def test_named_ids_use_capacity(dispatcher: Dispatcher) -> None:
    agent = new_agent(capacity=2)
    dispatcher.agent_joined(agent, ["0-9-9-1", "0-9-9-2", "0-9-9-2"])
    assert dispatcher.submit(execution := new_execution(), 0.0) == []
    assert dispatcher.answered(agent, "0-9-9-1", "x") == [Dispatch(execution, agent)]


def test_declined_is_given_to_another(dispatcher: Dispatcher) -> None:
    leaving, execution = new_agent(), new_execution()
    dispatcher.agent_joined(leaving)
    dispatcher.submit(execution, 0.0)
    assert dispatcher.declined(leaving, execution.execution_id, "no", 1.0) == []
    assert dispatcher.snapshot().queued == 1
    agent = new_agent()
    assert dispatcher.agent_joined(agent) == [Dispatch(execution, agent)]
    assert dispatcher.submit(new_execution(), 1.0) == []


def test_a_retired_agent_gets_nothing_more(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(capacity=2), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_retired(agent)
    assert dispatcher.submit(new_execution(), 0.0) == []
    assert kinds(dispatcher.answered(agent, execution.execution_id, "x")) == [Answer]
    assert dispatcher.snapshot().queued == 1


# -------------------------------------------------------------------------------------------------------- neighbours


def test_forwards_to_the_freest_that_stays(dispatcher: Dispatcher, board: PlainBoard) -> None:
    for slot, free in ((1, 1), (2, 5), (3, 9)):
        board.rows[slot, TASK_A] = (free, 0)
        dispatcher.link_up(slot, 0.0)
    board.left.add(3)
    execution = new_execution()
    assert dispatcher.submit(execution, 0.0) == [Forward(execution, 2)]


def test_a_draining_worker_forwards_to_draining_ones(dispatcher: Dispatcher, board: PlainBoard) -> None:
    waiting = new_execution()
    dispatcher.link_up(3, 0.0)
    dispatcher.submit(waiting, 0.0)
    board.left.add(3)
    board.rows[3, TASK_A] = (1, 0)
    assert dispatcher.nudged(3, "a") == [Unused(3, "a")]
    dispatcher.drain()
    assert dispatcher.nudged(3, "a") == [Forward(waiting, 3)]


def test_own_row_is_written_before_others_are_read(dispatcher: Dispatcher, board: PlainBoard) -> None:
    dispatcher.link_up(1, 0.0)
    board.log.clear()
    dispatcher.submit(new_execution(), 0.0)
    dispatcher.agent_joined(new_agent(capacity=2))
    assert board.log == ["free", "publish", "free", "publish", "waiting"]


def test_what_is_on_its_way_is_not_free_any_more(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (2, 0)
    dispatcher.link_up(1, 0.0)
    assert [kinds(dispatcher.submit(new_execution(), 0.0)) for _ in range(3)] == [[Forward], [Forward], []]


def test_an_answer_gives_the_place_back(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    first, second = new_execution(), new_execution()
    dispatcher.submit(first, 0.0)
    dispatcher.submit(second, 0.0)
    assert dispatcher.neighbour_answered(1, first.execution_id, "x") == [Answer(first, "x"), Forward(second, 1)]


def test_an_answer_gives_the_place_back_also_when_nothing_waits(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    for _ in range(3):  # the word was 0 in between, but nobody looked
        execution = new_execution()
        assert dispatcher.submit(execution, 0.0) == [Forward(execution, 1)]
        dispatcher.neighbour_answered(1, execution.execution_id, "x")


def test_the_longer_wait_gets_the_place(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    board.rows[2, TASK_A] = (0, 7)
    board.heads[2, TASK_A] = WHEN - 1
    dispatcher.link_up(1, 0.0)
    dispatcher.link_up(2, 0.0)
    first, second = new_execution(), new_execution()
    dispatcher.submit(first, 0.0)
    dispatcher.submit(second, 0.0)
    board.took[1] = 1
    assert dispatcher.neighbour_answered(1, first.execution_id, "x") == [Answer(first, "x")]


def test_a_second_hop_is_refused(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[2, TASK_A] = (5, 0)
    dispatcher.link_up(2, 0.0)
    execution = new_execution(source=1)
    (refusal,) = dispatcher.submit(execution, 0.0)
    assert isinstance(refusal, Refuse)
    assert refusal.code is ErrorCode.OVERLOADED
    assert dispatcher.live == 0


def test_bounced_waits_here_and_does_not_knock_again_at_once(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (5, 0)
    dispatcher.link_up(1, 0.0)
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    assert dispatcher.bounced(1, execution.execution_id, 1.0) == []
    assert execution.place is Place.QUEUED
    assert dispatcher.next_deadline() == 1.0 + REREAD_S
    assert dispatcher.expire(1.0 + REREAD_S) == [Forward(execution, 1)]


def test_bounced_goes_to_the_head(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    first, second = new_execution(), new_execution()
    dispatcher.submit(first, 0.0)
    dispatcher.submit(second, 0.0)
    dispatcher.bounced(1, first.execution_id, 0.0)
    agent = new_agent(capacity=2)
    assert dispatcher.agent_joined(agent) == [Dispatch(first, agent), Dispatch(second, agent)]


def test_the_board_is_read_again_while_something_waits(dispatcher: Dispatcher, board: PlainBoard) -> None:
    dispatcher.link_up(1, 0.0)
    execution = new_execution()
    assert dispatcher.submit(execution, 0.0) == []
    assert dispatcher.expire(REREAD_S) == []
    board.rows[1, TASK_A] = (1, 0)
    assert dispatcher.next_deadline() == 2 * REREAD_S
    assert dispatcher.expire(2 * REREAD_S) == [Forward(execution, 1)]
    assert dispatcher.expire(3 * REREAD_S) == []
    assert dispatcher.next_deadline() == float("inf")


def test_free_capacity_nudges_the_longest_wait(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (0, 7)
    board.rows[2, TASK_A] = (0, 2)
    board.heads[2, TASK_A] = WHEN - 1
    dispatcher.link_up(1, 0.0)
    dispatcher.link_up(2, 0.0)
    agent = new_agent()
    assert dispatcher.agent_joined(agent) == [Nudge(2, "a")]
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    assert dispatcher.answered(agent, execution.execution_id, "x") == [Answer(execution, "x"), Nudge(2, "a")]


def test_the_answer_itself_is_the_nudge(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = board.rows[2, TASK_A] = (0, 7)
    board.heads[2, TASK_A] = WHEN - 1
    dispatcher.link_up(1, 0.0)
    dispatcher.link_up(2, 0.0)
    agent, execution = new_agent(), new_execution(source=2)
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    assert dispatcher.answered(agent, execution.execution_id, "x") == [Answer(execution, "x")]


def test_a_lost_link_waits_for_the_agents(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    dispatcher.link_up(2, 0.0)
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    assert dispatcher.link_down(1, 1.0) == []
    assert dispatcher.located(2, execution.execution_id) == []
    assert dispatcher.expire(10.0) == []
    assert dispatcher.neighbour_answered(2, execution.execution_id, "x") == [Answer(execution, "x")]


def test_a_lost_link_ends_in_an_unknown_outcome(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    dispatcher.link_down(1, 1.0)
    assert dispatcher.expire(1.0 + REATTACH_GRACE_S) == [Finish(execution, Ending.OUTCOME_UNKNOWN)]


def test_an_agent_that_moved_here_brings_a_neighbours_execution(dispatcher: Dispatcher) -> None:
    dispatcher.link_up(1, 0.0)
    agent, name = new_agent(), "1-7-1-5"
    assert dispatcher.agent_joined(agent, [name]) == [Located(1, name)]
    assert dispatcher.answered(agent, name, "x") == [Relay(1, name, "x")]
    assert dispatcher.answered_late(agent, "1-7-1-6", "y") == [Relay(1, "1-7-1-6", "y")]


def test_and_may_leave_again(dispatcher: Dispatcher) -> None:
    dispatcher.link_up(1, 0.0)
    agent, name = new_agent(), "1-7-1-5"
    dispatcher.agent_joined(agent, [name])
    assert dispatcher.agent_left(agent, 1.0) == [Mislaid(1, name)]


def test_a_new_link_hears_what_is_here_of_its_executions(dispatcher: Dispatcher) -> None:
    dispatcher.agent_joined(new_agent(), ["1-7-1-5"])
    assert dispatcher.link_up(1, 0.0) == [Located(1, "1-7-1-5")]


def test_mislaid_waits_again(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    dispatcher.mislaid(1, execution.execution_id, 1.0)
    assert dispatcher.expire(1.0 + REATTACH_GRACE_S) == [Finish(execution, Ending.OUTCOME_UNKNOWN)]


def test_an_unknown_outcome_is_believed_only_from_where_the_execution_is(
    dispatcher: Dispatcher, board: PlainBoard
) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    dispatcher.link_up(2, 0.0)
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    dispatcher.located(2, execution.execution_id)
    assert dispatcher.neighbour_answered(1, execution.execution_id, "lost", unknown=True) == []
    assert dispatcher.neighbour_answered(1, execution.execution_id, "done") == [Answer(execution, "done")]


def test_a_neighbours_execution_that_was_not_started_goes_back(dispatcher: Dispatcher) -> None:
    dispatcher.link_up(1, 0.0)
    agent, execution = new_agent(), new_execution(source=1)
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    assert kinds(dispatcher.declined(agent, execution.execution_id, "no", 0.0)) == [Refuse]
    assert dispatcher.live == 0


# ------------------------------------------------- what deleting a single line of the dispatcher would break


def test_who_left_gets_nothing_more(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent = new_agent(capacity=2)
    dispatcher.agent_joined(agent)
    dispatcher.submit(new_execution(), 0.0)
    dispatcher.agent_left(agent, 1.0)
    assert agent.running == {}
    assert board.rows[ME, TASK_A] == (0, 0)
    assert dispatcher.submit(new_execution(), 1.0) == []


def test_a_retired_agents_capacity_leaves_the_board(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent = new_agent(capacity=2)
    dispatcher.agent_joined(agent)
    dispatcher.agent_retired(agent)
    assert board.rows[ME, TASK_A] == (0, 0)


def test_a_declining_agents_capacity_leaves_the_board(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent, execution = new_agent(capacity=5), new_execution(source=1)
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.declined(agent, execution.execution_id, "no", 0.0)
    assert board.rows[ME, TASK_A] == (0, 0)


def test_declined_after_it_was_named_is_relayed(dispatcher: Dispatcher) -> None:
    dispatcher.link_up(1, 0.0)
    agent = new_agent()
    dispatcher.agent_joined(agent, ["1-7-1-5", "0-9-9-9"])
    assert dispatcher.declined(agent, "1-7-1-5", "no", 0.0) == [Relay(1, "1-7-1-5", "no")]
    assert dispatcher.declined(agent, "0-9-9-9", "no", 0.0) == []


def test_answered_late_ends_it_once(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_left(agent, 1.0)
    again = new_agent()
    dispatcher.agent_joined(again)
    assert dispatcher.answered_late(again, execution.execution_id, "x") == [Answer(execution, "x")]
    assert (dispatcher.live, dispatcher.snapshot().lost) == (0, 0)
    assert dispatcher.answered_late(again, execution.execution_id, "x") == []
    assert dispatcher.expire(1.0 + REATTACH_GRACE_S) == []


def test_a_neighbours_answer_ends_it_once(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    assert dispatcher.neighbour_answered(1, execution.execution_id, "x") == [Answer(execution, "x")]
    assert dispatcher.live == 0
    assert dispatcher.link_down(1, 1.0) == []
    assert dispatcher.snapshot().lost == 0


def test_a_neighbour_has_no_say_over_what_runs_here(dispatcher: Dispatcher) -> None:
    dispatcher.link_up(1, 0.0)
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    assert dispatcher.neighbour_answered(1, execution.execution_id, "false") == []
    assert dispatcher.answered(agent, execution.execution_id, "x") == [Answer(execution, "x")]


def test_an_unknown_outcome_is_not_believed_of_what_is_lost(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    dispatcher.mislaid(1, execution.execution_id, 1.0)
    assert dispatcher.neighbour_answered(1, execution.execution_id, "lost", unknown=True) == []
    assert dispatcher.snapshot().lost == 1


def test_an_unknown_outcome_is_believed_where_the_execution_is(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    answers = dispatcher.neighbour_answered(1, execution.execution_id, "lost", unknown=True)
    assert answers == [Answer(execution, "lost")]


def test_a_named_id_of_another_task_is_nobodys(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_left(agent, 1.0)
    other = new_agent("b")
    dispatcher.agent_joined(other, [execution.execution_id])
    assert dispatcher.answered(other, execution.execution_id, "false") == []
    assert dispatcher.live == 1


def test_what_runs_at_one_agent_cannot_be_named_by_its_twin(dispatcher: Dispatcher) -> None:
    """Two connections of one agent: the older one's execution is not lost yet."""
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    twin = new_agent()
    dispatcher.agent_joined(twin, [execution.execution_id])
    assert dispatcher.answered(twin, execution.execution_id, "false") == []
    assert dispatcher.answered(agent, execution.execution_id, "x") == [Answer(execution, "x")]


def test_a_draining_worker_still_executes_for_neighbours(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution(source=1)
    dispatcher.agent_joined(agent)
    dispatcher.drain()
    assert dispatcher.submit(execution, 0.0) == [Dispatch(execution, agent)]


def test_nobody_overtakes_the_queue(dispatcher: Dispatcher, board: PlainBoard) -> None:
    dispatcher.link_up(1, 0.0)
    dispatcher.submit(first := new_execution(), 0.0)
    board.rows[1, TASK_A] = (1, 0)
    assert dispatcher.submit(new_execution(), 0.0) == []
    assert dispatcher.expire(REREAD_S) == [Forward(first, 1)]


def test_a_new_link_serves_the_queue_and_the_next_look_is_set(dispatcher: Dispatcher, board: PlainBoard) -> None:
    dispatcher.submit(first := new_execution(), 0.0)
    dispatcher.submit(new_execution(), 0.0)
    board.rows[1, TASK_A] = (1, 0)
    assert dispatcher.link_up(1, 5.0) == [Forward(first, 1)]
    assert dispatcher.next_deadline() == 5.0 + REREAD_S


def test_a_new_link_is_offered_what_is_free(dispatcher: Dispatcher, board: PlainBoard) -> None:
    dispatcher.agent_joined(new_agent())
    board.rows[1, TASK_A] = (0, 2)
    assert dispatcher.link_up(1, 0.0) == [Nudge(1, "a")]


def test_the_relayed_answer_is_the_nudge(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = board.rows[2, TASK_A] = (0, 7)
    board.heads[2, TASK_A] = WHEN - 1
    dispatcher.link_up(1, 0.0)
    dispatcher.link_up(2, 0.0)
    agent = new_agent()
    dispatcher.agent_joined(agent, ["2-7-2-5"])
    assert dispatcher.answered(agent, "2-7-2-5", "x") == [Relay(2, "2-7-2-5", "x")]


def test_two_that_wait_do_not_share_one_place(dispatcher: Dispatcher, board: PlainBoard) -> None:
    dispatcher.link_up(1, 0.0)
    first, second = new_execution(), new_execution()
    dispatcher.submit(first, 0.0)
    dispatcher.submit(second, 0.0)
    board.rows[1, TASK_A] = (1, 0)
    assert dispatcher.expire(REREAD_S) == [Forward(first, 1)]
    assert dispatcher.link_down(1, 1.0) == []
    assert dispatcher.snapshot().lost == 1


def test_retired_is_still_a_member_and_a_stranger_does_not_become_one() -> None:
    lane = Lane("a", 0)
    agent, stranger = new_agent(), new_agent()
    lane.join(agent)
    lane.retire(agent)
    lane.retire(stranger)
    assert list(lane.agents) == [agent]


def test_a_mislaid_id_of_ours_is_told_to_nobody(dispatcher: Dispatcher) -> None:
    dispatcher.link_up(1, 0.0)
    agent = new_agent(capacity=2)
    dispatcher.agent_joined(agent, ["0-9-9-9", "1-7-1-5"])
    assert dispatcher.agent_left(agent, 1.0) == [Mislaid(1, "1-7-1-5")]


def test_cancelled_out_of_the_middle_of_the_queue(dispatcher: Dispatcher) -> None:
    first, second, third = (new_execution(origin=number) for number in range(3))
    for execution in (first, second, third):
        dispatcher.submit(execution, 0.0)
    dispatcher.cancel(second.execution_id, 1)
    agent = new_agent(capacity=3)
    assert dispatcher.agent_joined(agent) == [Dispatch(first, agent), Dispatch(third, agent)]


def test_the_last_byte_still_fits(dispatcher: Dispatcher) -> None:
    dispatcher.submit(new_execution(size_bytes=60), 0.0)
    assert dispatcher.submit(new_execution(size_bytes=40), 0.0) == []
    assert dispatcher.snapshot().queued_bytes == 100


def test_declined_goes_to_another_agent_at_once(dispatcher: Dispatcher) -> None:
    leaving, other, execution = new_agent(), new_agent(), new_execution()
    dispatcher.agent_joined(leaving)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_joined(other)
    assert dispatcher.declined(leaving, execution.execution_id, "no", 1.0) == [Dispatch(execution, other)]


def test_declined_is_refused_when_its_task_is_not_served_any_more(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.set_task("a", available=False, reason="it crashes")
    assert dispatcher.declined(agent, execution.execution_id, "no", 1.0) == [
        Refuse(execution, ErrorCode.DRAINING, "it crashes")
    ]
    assert (dispatcher.live, dispatcher.snapshot().queued) == (0, 0)


@pytest.mark.parametrize("end", ["cancel", "deadline", "unavailable", "abort"])
def test_what_stops_waiting_leaves_the_board(dispatcher: Dispatcher, board: PlainBoard, end: str) -> None:
    execution = new_execution(origin="me", deadline=5.0)
    dispatcher.submit(execution, 0.0)
    assert board.rows[ME, TASK_A] == (0, 1)
    match end:
        case "cancel":
            dispatcher.cancel(execution.execution_id, "me")
        case "deadline":
            dispatcher.expire(5.0)
        case "unavailable":
            dispatcher.set_task("a", available=False, reason="it crashes")
        case _:
            dispatcher.abort()
    assert board.rows[ME, TASK_A] == (0, 0)


def test_a_nudge_undoes_an_earlier_refusal(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    execution = new_execution()
    dispatcher.submit(execution, 0.0)
    dispatcher.bounced(1, execution.execution_id, 0.0)
    other = new_execution()
    dispatcher.submit(other, 0.0)
    board.rows[1, TASK_A] = (2, 0)
    assert dispatcher.nudged(1, "a") == [Forward(execution, 1), Forward(other, 1)]


def test_an_answer_undoes_an_earlier_refusal(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (2, 0)
    dispatcher.link_up(1, 0.0)
    first, second = new_execution(), new_execution()
    dispatcher.submit(first, 0.0)
    dispatcher.submit(second, 0.0)
    assert dispatcher.bounced(1, second.execution_id, 0.0) == []
    board.took[1] = 2
    assert dispatcher.neighbour_answered(1, first.execution_id, "x") == [Answer(first, "x"), Forward(second, 1)]


def test_messages_about_nothing_are_passed_over(dispatcher: Dispatcher) -> None:
    dispatcher.submit(execution := new_execution(), 0.0)
    assert dispatcher.nudged(1, "a") == []  # no such neighbour
    dispatcher.link_up(1, 0.0)
    assert dispatcher.nudged(1, "zebra") == []
    assert dispatcher.bounced(1, "0-9-9-9", 0.0) == []
    assert dispatcher.bounced(2, execution.execution_id, 0.0) == []
    assert dispatcher.located(1, "0-9-9-9") == []
    assert dispatcher.located(2, execution.execution_id) == []
    assert dispatcher.located(1, execution.execution_id) == []  # it waits here: nobody else can have it
    assert dispatcher.snapshot().queued == 1


def test_what_waits_is_left_alone_when_the_task_is_said_to_be_available(dispatcher: Dispatcher) -> None:
    dispatcher.submit(new_execution(), 0.0)
    assert dispatcher.set_task("a", available=True) == []
    assert dispatcher.snapshot().queued == 1


def test_declined_goes_to_another_agent_also_when_nothing_may_wait(dispatcher: Dispatcher) -> None:
    leaving, other, execution = new_agent(), new_agent(), new_execution()
    dispatcher.agent_joined(leaving)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_joined(other)
    dispatcher.set_task("a", available=False, reason="it crashes")
    assert dispatcher.declined(leaving, execution.execution_id, "no", 1.0) == [Dispatch(execution, other)]


def test_word_of_a_lost_one_over_no_link_is_passed_over(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(execution, 0.0)
    dispatcher.agent_left(agent, 1.0)
    assert dispatcher.located(2, execution.execution_id) == []
    assert dispatcher.snapshot().lost == 1


# ---------------------------------------------------------------------------------------- sharing what is not enough


def overloaded(dispatcher: Dispatcher, board: PlainBoard, *, needy: int = 1) -> tuple[Agent, Execution, Execution]:
    """One agent, what runs there, what waits here; and a neighbour that has waited much longer."""
    agent, running, waiting = new_agent(), new_execution(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(running, 0.0)
    dispatcher.submit(waiting, 0.0)
    for slot in (1, 2):
        dispatcher.link_up(slot, 0.0)
        board.rows[slot, TASK_A] = (0, 5)
    board.heads[needy, TASK_A] = WHEN - 1
    return agent, running, waiting


def test_a_place_is_offered_to_who_waits_longer_and_not_kept_for_it(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent, running, waiting = overloaded(dispatcher, board)
    assert dispatcher.answered(agent, running.execution_id, "x") == [
        Answer(running, "x"),
        Dispatch(waiting, agent),
        Nudge(1, "a"),
    ]


def test_who_was_asked_to_come_gets_the_next_place(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent, running, waiting = overloaded(dispatcher, board)
    ours, guest = new_execution(), new_execution(source=1)
    dispatcher.submit(ours, 0.0)
    dispatcher.answered(agent, running.execution_id, "x")
    assert dispatcher.submit(guest, 0.0) == []
    assert board.rows[ME, TASK_A] == (0, 2)
    board.rows[1, TASK_A] = board.rows[2, TASK_A] = (0, 0)
    assert dispatcher.answered(agent, waiting.execution_id, "x") == [Answer(waiting, "x"), Dispatch(guest, agent)]
    assert dispatcher.answered(agent, guest.execution_id, "x") == [Answer(guest, "x"), Dispatch(ours, agent)]


def test_a_place_that_is_not_free_is_not_offered(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent, running, _ = overloaded(dispatcher, board)
    dispatcher.agent_retired(agent)
    assert dispatcher.answered(agent, running.execution_id, "x") == [Answer(running, "x")]
    full = new_agent()
    assert dispatcher.agent_joined(full, ["1-7-1-5"]) == [Located(1, "1-7-1-5")]


def test_an_answer_with_a_place_that_a_guest_took_is_no_nudge(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (0, 5)
    dispatcher.link_up(1, 0.0)
    agent, first, second = new_agent(), new_execution(source=1), new_execution(source=1)
    dispatcher.agent_joined(agent)
    dispatcher.submit(first, 0.0)
    dispatcher.submit(second, 0.0)
    answer = dispatcher.answered(agent, first.execution_id, "x")
    assert answer == [Answer(first, "x"), Dispatch(second, agent), Nudge(1, "a")]


def test_a_nudge_for_nothing_is_answered(dispatcher: Dispatcher) -> None:
    dispatcher.link_up(1, 0.0)
    assert dispatcher.nudged(1, "a") == [Unused(1, "a")]


def test_a_nudge_is_obeyed_though_the_board_shows_no_place(dispatcher: Dispatcher) -> None:
    dispatcher.link_up(1, 0.0)
    first, second = new_execution(), new_execution()
    dispatcher.submit(first, 0.0)
    dispatcher.submit(second, 0.0)
    assert dispatcher.nudged(1, "a") == [Forward(first, 1)]


def test_a_nudge_is_followed_by_what_the_board_shows_beside(dispatcher: Dispatcher, board: PlainBoard) -> None:
    dispatcher.link_up(1, 0.0)
    executions = [new_execution() for _ in range(4)]
    for execution in executions[:3]:
        dispatcher.submit(execution, 0.0)
    board.rows[1, TASK_A] = (2, 0)
    assert dispatcher.nudged(1, "a") == [Forward(executions[0], 1), Forward(executions[1], 1)]


def test_an_unused_place_is_offered_to_the_next(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A], board.rows[2, TASK_A] = (0, 5), (0, 5)
    board.heads[1, TASK_A] = WHEN - 1
    agent = new_agent()
    for slot in (1, 2):
        dispatcher.link_up(slot, 0.0)
    assert dispatcher.agent_joined(agent) == [Nudge(1, "a")]
    assert dispatcher.unused(1, "a") == []  # its row says still that it waits: it has a reason not to come
    board.rows[1, TASK_A] = (0, 0)
    assert dispatcher.nudged(2, "a") == [Unused(2, "a")]
    dispatcher.submit(execution := new_execution(), 0.0)
    assert dispatcher.answered(agent, execution.execution_id, "x") == [Answer(execution, "x"), Nudge(2, "a")]
    board.rows[1, TASK_A] = (0, 5)
    assert dispatcher.unused(2, "a") == [Nudge(1, "a")]
    dispatcher.submit(new_execution(), 0.0)
    board.heads[2, TASK_A] = WHEN - 2
    assert dispatcher.unused(1, "a") == []  # there is no place any more


def test_unused_makes_room_for_another_invitation(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent, running, waiting = overloaded(dispatcher, board)
    board.rows[1, TASK_A] = (0, 1)
    board.rows[2, TASK_A] = (0, 0)
    third = new_execution()
    dispatcher.submit(third, 0.0)
    assert Nudge(1, "a") in dispatcher.answered(agent, running.execution_id, "x")
    assert Nudge(1, "a") not in dispatcher.answered(agent, waiting.execution_id, "x")
    dispatcher.unused(1, "a")
    dispatcher.submit(new_execution(), 0.0)
    assert Nudge(1, "a") in dispatcher.answered(agent, third.execution_id, "x")


def test_word_of_unused_nudges_about_nothing_is_passed_over(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (0, 5)
    assert dispatcher.unused(1, "a") == []
    dispatcher.link_up(1, 0.0)
    assert dispatcher.unused(1, "zebra") == []
    dispatcher.agent_joined(new_agent())
    dispatcher.unused(1, "a")
    assert dispatcher.unused(1, "a") == []


def test_what_came_is_counted_after_the_row_that_shows_it(dispatcher: Dispatcher, board: PlainBoard) -> None:
    dispatcher.link_up(1, 0.0)
    dispatcher.agent_joined(new_agent())
    board.log.clear()
    dispatcher.submit(new_execution(source=1), 0.0)
    assert board.log == ["publish", "publish_arrived"]
    assert kinds(dispatcher.submit(new_execution("b", source=1), 0.0)) == [Refuse]
    assert kinds(dispatcher.submit(new_execution("zebra", source=1), 0.0)) == [Refuse]
    assert board.counted_in == {1: 3}


def test_a_guest_whose_origin_is_dead_is_dropped(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent, running, _ = overloaded(dispatcher, board)
    theirs, others = new_execution(source=1), new_execution(source=2)
    dispatcher.submit(theirs, 0.0)
    dispatcher.submit(others, 0.0)
    assert dispatcher.link_down(1, 0.0) == [Finish(theirs, Ending.CANCELLED)]
    assert dispatcher.answered(agent, running.execution_id, "x")[:2] == [Answer(running, "x"), Dispatch(others, agent)]


@pytest.mark.parametrize("end", ["cancel", "deadline", "abort"])
def test_guests_end_as_others_do(dispatcher: Dispatcher, board: PlainBoard, end: str) -> None:
    overloaded(dispatcher, board)
    guest = new_execution(source=1, origin="link", deadline=5.0)
    dispatcher.submit(guest, 0.0)
    match end:
        case "cancel":
            assert dispatcher.cancel(guest.execution_id, "link") == [Finish(guest, Ending.CANCELLED)]
        case "deadline":
            assert Finish(guest, Ending.TIMED_OUT) in dispatcher.expire(5.0)
        case _:
            assert Refuse(guest, ErrorCode.DRAINING, "the pool is stopping") in dispatcher.abort()
    assert guest.place is Place.ENDED


def test_guests_that_wait_in_vain_go_home_and_wait_there(dispatcher: Dispatcher, board: PlainBoard) -> None:
    dispatcher.link_up(1, 0.0)
    agent, guest = new_agent(), new_execution(source=1)
    dispatcher.agent_joined(agent)
    dispatcher.submit(new_execution(), 0.0)
    dispatcher.submit(guest, 0.0)
    dispatcher.agent_left(agent, 0.0)
    assert dispatcher.next_deadline() == REREAD_S
    assert dispatcher.expire(REREAD_S) == [Refuse(guest, ErrorCode.OVERLOADED, "no free capacity here")]
    assert board.rows[ME, TASK_A] == (0, 0)


def test_what_has_not_arrived_yet_is_deducted_at_each_look(dispatcher: Dispatcher, board: PlainBoard) -> None:
    board.rows[1, TASK_A] = (1, 0)
    dispatcher.link_up(1, 0.0)
    first, second = new_execution(), new_execution()
    assert dispatcher.submit(first, 0.0) == [Forward(first, 1)]
    dispatcher.submit(second, 0.0)
    for look in range(1, 4):
        assert dispatcher.expire(look * REREAD_S) == []
    board.took[1] = 1
    assert dispatcher.expire(4 * REREAD_S) == [Forward(second, 1)]


def test_a_suspended_agent_gets_nothing_until_it_resumes(dispatcher: Dispatcher, board: PlainBoard) -> None:
    agent, running, first, second = new_agent(capacity=2), new_execution(), new_execution(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.submit(running, 0.0)
    dispatcher.agent_retired(agent, for_good=False)
    assert board.rows[ME, TASK_A] == (0, 0)
    assert dispatcher.submit(first, 0.0) == []
    assert dispatcher.submit(second, 0.0) == []
    assert dispatcher.agent_resumed(agent) == [Dispatch(first, agent)]
    assert dispatcher.answered(agent, running.execution_id, "x") == [Answer(running, "x"), Dispatch(second, agent)]


def test_who_is_retired_while_it_is_suspended_does_not_resume(dispatcher: Dispatcher) -> None:
    agent, execution = new_agent(), new_execution()
    dispatcher.agent_joined(agent)
    dispatcher.agent_retired(agent, for_good=False)
    dispatcher.agent_retired(agent)
    dispatcher.submit(execution, 0.0)
    assert dispatcher.agent_resumed(agent) == []
