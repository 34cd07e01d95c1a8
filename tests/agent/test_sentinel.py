"""The sentinel: it reads while a handler takes long, and only then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from spearpool.agent import sentinel as sentinel_module
from spearpool.agent.conversation import Conversation, Work
from spearpool.agent.line import Watch
from spearpool.agent.sentinel import Sentinel
from spearpool.protocol.environment import InstanceEnvironment
from spearpool.protocol.messages import ExecuteRequest, Heartbeat, Signal, SignalName
from tests.conftest import eventually
from tests.stub_worker import SECRET, Peer, StubWorker

T = TypeVar("T")


class Instance:
    """A conversation with its sentinel; this thread is the one that runs handlers."""

    def __init__(self, port: int) -> None:
        self.work: list[Work] = []
        self.conversation = Conversation(InstanceEnvironment(port, "me-1", SECRET), self.work.append)
        self.main = Watch(self.conversation.wake_fd)
        self.conversation.take_over(self.main)
        self.sentinel = Sentinel(self.conversation, self.main)
        self.sentinel.start()

    def turn(self) -> None:
        self.conversation.turn(self.main, 0.05)

    def until(self, condition: Callable[[], T]) -> T:
        """Read until it is true."""

        def look() -> T:
            self.turn()
            return condition()

        return eventually(look)

    @property
    def is_read_by_the_sentinel(self) -> bool:
        return self.conversation._reader is not self.main


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    with StubWorker() as worker:
        yield worker


@pytest.fixture
def instance(worker: StubWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    monkeypatch.setattr(sentinel_module, "_LOOK_UP_S", 0.05)
    instance = Instance(worker.port)
    yield instance
    instance.conversation.close()
    instance.sentinel.stop()
    assert not instance.sentinel._thread.is_alive()


@pytest.fixture
def peer(worker: StubWorker, instance: Instance) -> Peer:
    peers: list[Peer] = []
    server = threading.Thread(target=lambda: peers.append(worker.accept()))
    server.start()
    instance.until(lambda: peers)
    server.join()
    return peers[0]


def test_while_a_handler_runs_heartbeats_are_answered_and_requests_taken(instance: Instance, peer: Peer) -> None:
    instance.sentinel.handler_begins()
    peer.ping(sequence=5)
    assert peer.expect(Heartbeat)[1].sequence == 5
    peer.send(ExecuteRequest("t", "", [], {}, execution_id="0-a-1-1"))
    eventually(lambda: instance.work)
    peer.send(Signal(SignalName.TERMINATE, execution_id="0-a-1-1"))
    assert instance.work[0].request.cancelled.wait(5)
    instance.sentinel.handler_ended()
    assert not instance.is_read_by_the_sentinel


def test_afterwards_the_main_thread_reads_again(instance: Instance, peer: Peer) -> None:
    for _ in range(3):
        instance.sentinel.handler_begins()
        eventually(lambda: instance.is_read_by_the_sentinel)
        instance.sentinel.handler_ended()
        peer.send(ExecuteRequest("t", "", [], {}))
        instance.until(lambda: instance.work)
        instance.work.clear()


def test_it_leaves_short_handlers_alone(instance: Instance, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel_module, "TAKE_OVER_S", 0.5)
    instance.sentinel.handler_begins()
    peer.ping()
    with pytest.raises(AssertionError, match="nothing came"):
        peer.next_event(0.1)
    instance.sentinel.handler_ended()


def test_it_reconnects_while_a_handler_runs(worker: StubWorker, instance: Instance, peer: Peer) -> None:
    peer.send(ExecuteRequest("t", "", [], {}, execution_id="0-a-1-1"))
    instance.until(lambda: instance.work)
    instance.sentinel.handler_begins()
    peer.close()
    again = worker.accept()
    assert again.asked is not None
    assert again.asked.extra_params["running"] == "0-a-1-1"
    instance.sentinel.handler_ended()


def test_it_parks_when_idle_and_comes_back(instance: Instance, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel_module, "_PARK_AFTER_S", 0.05)
    for _ in range(3):
        eventually(lambda: instance.sentinel._parked)
        instance.sentinel.handler_begins()
        peer.ping()
        peer.expect(Heartbeat)
        instance.sentinel.handler_ended()


def test_handlers_at_the_limit_never_leave_two_readers_or_none(
    instance: Instance, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel_module, "TAKE_OVER_S", 0.001)
    for number in range(300):
        instance.sentinel.handler_begins()
        time.sleep(0.0005 + 0.001 * (number % 3) / 2)
        instance.sentinel.handler_ended()
        assert not instance.is_read_by_the_sentinel
    peer.send(ExecuteRequest("t", "", [], {}))
    instance.until(lambda: instance.work)
