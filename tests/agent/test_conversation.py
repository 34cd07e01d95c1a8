"""Conversations step by step: the test is the reader and the handler, a stub plays the worker in the same thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from spearpool.agent import notices
from spearpool.agent.conversation import Conversation, Work
from spearpool.agent.dial import MAX_MESSAGE_BYTES
from spearpool.agent.line import Watch
from spearpool.agent.request import Request, answer
from spearpool.protocol.environment import InstanceEnvironment
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import (
    AuthRequest,
    Custom,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Signal,
    SignalName,
)
from tests.conftest import deadline, eventually
from tests.stub_worker import SECRET, Peer, StubWorker

T = TypeVar("T")


class Agent:
    """A conversation whose reader is this thread."""

    def __init__(self, worker: StubWorker, secret: str = SECRET) -> None:
        self.worker = worker
        self.work: list[Work] = []
        me = InstanceEnvironment(worker.port, "me-1", secret, concurrency=2)
        self.conversation = Conversation(me, self.work.append)
        self.watch = Watch(self.conversation.wake_fd)
        self.conversation.take_over(self.watch)

    def connect(self) -> Peer:
        peers: list[Peer] = []
        server = threading.Thread(target=lambda: peers.append(self.worker.accept()))
        server.start()
        end = deadline(5)
        while not peers and time.monotonic() < end:
            self.turn()
        server.join()
        return peers[0]

    def turn(self) -> None:
        self.conversation.turn(self.watch, 0.05)

    def until(self, condition: Callable[[], T]) -> T:
        """Read until it is true."""

        def look() -> T:
            self.turn()
            return condition()

        return eventually(look)

    def receives(self, count: int) -> list[Work]:
        self.until(lambda: len(self.work) >= count)
        return self.work

    def finish(self, work: Work, output: str = "done") -> None:
        self.conversation.deliver(work, answer(lambda _: output, work.request))


@pytest.fixture
def agent() -> Iterator[Agent]:
    with StubWorker() as worker:
        agent = Agent(worker)
        yield agent
        agent.conversation.close()


def execute(number: int) -> ExecuteRequest:
    return ExecuteRequest("t", "", [], {}, execution_id=f"0-a-1-{number}")


def test_it_introduces_itself(agent: Agent) -> None:
    asked = agent.connect().asked
    assert asked == AuthRequest("me-1", SECRET, "0.1.0", "agent", {"concurrency": "2", "encodings": "msgpack"})


def test_answers_go_back_under_the_requests_id_in_any_order(agent: Agent) -> None:
    peer = agent.connect()
    numbers = peer.send_all(execute(1), execute(2), execute(3))
    first, second, third = agent.receives(3)
    for work, output in ((third, "c"), (first, "a"), (second, "b")):
        agent.finish(work, output)
    answers = [peer.expect(ExecuteResponse) for _ in range(3)]
    assert [(number, response.output) for number, response in answers] == [
        (numbers[2], "c"),
        (numbers[0], "a"),
        (numbers[1], "b"),
    ]
    assert [response.execution_id for _, response in answers] == ["0-a-1-3", "0-a-1-1", "0-a-1-2"]


def test_what_is_in_hand_survives_the_connection(agent: Agent) -> None:
    peer = agent.connect()
    peer.send_all(execute(1), execute(2), ExecuteRequest("t", "", [], {}))
    running, ended, nameless = agent.receives(3)
    peer.close()
    agent.until(lambda: ended.line.closed)
    agent.finish(ended, "ended while disconnected")
    agent.finish(nameless)
    peer = agent.connect()
    assert peer.asked is not None
    assert sorted(peer.asked.extra_params["running"].split(",")) == ["0-a-1-1", "0-a-1-2"]
    assert peer.expect(ExecuteResponse)[1].output == "ended while disconnected"
    agent.finish(running, "ended after it")
    number, response = peer.expect(ExecuteResponse)
    assert (number, response.execution_id, response.output) == (0, "0-a-1-1", "ended after it")
    peer.send(execute(4))
    assert agent.receives(4)
    agent.finish(agent.work[3])
    assert peer.expect(ExecuteResponse)[1].execution_id == "0-a-1-4"  # the nameless one was never sent


def test_a_cancel_reaches_the_execution_that_it_names(agent: Agent) -> None:
    peer = agent.connect()
    peer.send_all(execute(1), execute(2))
    one, two = agent.receives(2)
    peer.send(Signal(SignalName.TERMINATE, execution_id="0-a-1-2"))
    agent.until(lambda: two.request.cancelled.is_set())
    assert not one.request.cancelled.is_set()
    assert not agent.conversation.stopping
    agent.finish(two)
    assert peer.expect(ExecuteResponse)[1].status is ExecutionStatus.CANCELLED


@pytest.mark.parametrize("signal", [SignalName.TERMINATE, SignalName.RESTART])
def test_terminate_finishes_what_runs_and_refuses_what_is_new(agent: Agent, signal: SignalName) -> None:
    peer = agent.connect()
    peer.send(execute(1))
    (running,) = agent.receives(1)
    refused = peer.send_all(Signal(signal), execute(2))[1]
    agent.until(lambda: agent.conversation.stopping)
    number, error = peer.expect(ErrorMessage)
    assert (number, error.error_code, error.message) == (refused, 503, "this instance is stopping")
    over_before = agent.conversation.over
    agent.finish(running)
    assert (over_before, agent.conversation.over) == (False, True)
    assert peer.expect(ExecuteResponse)[1].output == "done"


@pytest.mark.parametrize("signal", [SignalName.PAUSE, SignalName.RESUME, Custom("@nudge:t"), Custom("reload")])
def test_other_signals_change_nothing(agent: Agent, signal: SignalName | Custom) -> None:
    peer = agent.connect()
    peer.send_all(Signal(signal), execute(1))
    agent.receives(1)
    assert not agent.conversation.stopping


def test_a_name_of_its_own_is_told_to_who_listens_and_cancels_nothing(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(notices, "_listeners", [heard.append])
    peer = agent.connect()
    peer.send_all(execute(1), Signal(Custom("reload"), execution_id="1-1-1-1"), Signal(Custom("again")))
    agent.until(lambda: heard == ["reload", "again"])
    (work,) = agent.work
    assert not work.request.is_cancelled


@pytest.mark.parametrize("reason", [CloseReason.REPLACED, CloseReason.REVOKED])
def test_nobody_comes_back_who_is_not_wanted(agent: Agent, reason: CloseReason) -> None:
    agent.connect().leave(reason)
    agent.until(lambda: agent.conversation.refused)
    assert agent.conversation.over
    assert str(agent.conversation.refused) == f"the pool does not want this instance any more: {reason.value}"


def test_a_planned_close_is_followed_by_a_new_connection(agent: Agent) -> None:
    agent.connect().leave(CloseReason.DRAIN)
    peer = agent.connect()
    peer.send(execute(1))
    agent.receives(1)


def test_connections_that_do_not_last_are_tried_again_ever_later(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda count: b"\xff" * count)
    waits = []
    for _ in range(4):
        agent.connect().close()
        began = time.monotonic()
        agent.until(lambda: agent.conversation._line is None)
        waits.append(agent.conversation._next_dial - began)
    assert waits[0] < 0.05 < waits[2] < waits[3]


def test_a_wrong_secret_is_the_end() -> None:
    with StubWorker() as worker:
        agent = Agent(worker, secret="not the secret")
        agent.connect()
        assert agent.conversation.over
        assert "refused us: authentication failed" in str(agent.conversation.refused)
        agent.conversation.close()


def test_a_result_that_cannot_be_sent_is_a_failure(agent: Agent) -> None:
    peer = agent.connect()
    peer.send_all(execute(1), execute(2))
    large, broken = agent.receives(2)
    agent.finish(large, "x" * MAX_MESSAGE_BYTES)
    _, response = peer.expect(ExecuteResponse, timeout_s=20)
    assert response.status is ExecutionStatus.FAILED
    assert response.error is not None
    assert response.error.startswith("the result cannot be sent: the message has ")
    agent.finish(broken, "\ud800")
    _, response = peer.expect(ExecuteResponse)
    assert response.status is ExecutionStatus.FAILED
    assert response.execution_id == "0-a-1-2"


def test_only_the_reader_reads(agent: Agent) -> None:
    peer = agent.connect()
    peer.send(execute(1))
    other = Watch()
    agent.conversation.turn(other, 1.0)
    assert agent.work == []
    assert not agent.conversation.take_over(other, lambda: False)
    assert agent.conversation.take_over(other)
    agent.conversation.turn(other, 1.0)
    assert len(agent.work) == 1


def test_an_answer_is_delivered_once(agent: Agent) -> None:
    peer = agent.connect()
    peer.send_all(execute(1), execute(2))
    one, two = agent.receives(2)
    agent.finish(one, "first")
    agent.finish(one, "again")
    agent.finish(two, "other")
    assert [peer.expect(ExecuteResponse)[1].output for _ in range(2)] == ["first", "other"]


def test_a_request_of_the_wire_is_what_the_handler_gets(agent: Agent) -> None:
    peer = agent.connect()
    peer.send(ExecuteRequest("t", "", ["a"], {"K": "v"}, "/tmp", 3, input_data=b"\xff", execution_id="0-a-1-1"))
    (work,) = agent.receives(1)
    request: Request = work.request
    assert (request.task, request.args, request.env, request.input) == ("t", ["a"], {"K": "v"}, b"\xff")
    assert (request.working_dir, request.execution_id) == ("/tmp", "0-a-1-1")
    assert request.deadline is not None
    assert request.deadline - time.monotonic() <= 3
