"""What `signal` does to whom, and what it says when it cannot; only the workers and the launcher are played."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from spearpool.errors import ConfigError, PoolError
from spearpool.instances.launch import Exited
from spearpool.metrics.vocabulary import Pause
from spearpool.protocol.identifiers import InstanceId
from spearpool.supervisor.signalling import Signalling
from spearpool.worker.control import AgentPaused, Claim, ExternalAgent, ExternalRow, Released, SignalAgent
from tests.conftest import RuntimeEnv
from tests.supervisor.offices import AGENT, Office, office


class Desk:
    """An office with one instance, `a-0-1`, that is ready at worker 0, and the command under test."""

    def __init__(self, bench: Office) -> None:
        self.bench = bench
        self.instance_id = bench.ready()
        self.signalling = Signalling(bench.table, bench.crew, bench.owners, bench.staff)
        ((self.launch, _),) = bench.recorder.launches
        self.listen()

    def listen(self) -> list[list[object]]:
        return [list(self.bench.heard(slot)) for slot in range(2)]

    def signal(self, what: object, instance: object = "a-0-1", **more: object) -> str:
        reply = self.signalling.command({"instance": instance, "signal": what, **more})
        assert sorted(reply) == ["done", "instance_id", "signal", "task"]
        return str(reply["done"])

    def state(self, instance: InstanceId | None = None) -> str:
        row = self.bench.table.snapshot((instance or self.instance_id).row)
        assert row is not None
        return self.bench.staff.state_of(row)


@pytest.fixture
def desk(runtime_env: RuntimeEnv) -> Iterator[Desk]:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        yield Desk(bench)


def told(desk: Desk, name: str) -> SignalAgent:
    return SignalAgent(desk.instance_id.row, desk.instance_id.generation, name)


@pytest.mark.parametrize("what", ["terminate", "Terminate"])
def test_its_agent_is_asked_to_end_and_another_takes_its_place(desk: Desk, what: str) -> None:
    assert desk.signal(what) == "ending"
    assert desk.listen() == [[told(desk, "Terminate")], []]
    assert desk.signal(what) == "ending already"
    assert desk.state() == "stopping"
    desk.bench.staff.handle(Exited(desk.launch, 1, 0, None))
    assert desk.bench.staff.failures("a") == 0
    assert len(desk.bench.recorder.launches) == 2


def test_one_that_restarts_goes_when_its_successor_is_ready(desk: Desk) -> None:
    assert desk.signal("restart").startswith("restarting")
    assert desk.listen() == [[], []]
    launches = desk.bench.recorder.launches
    assert len(launches) == 2
    desk.bench.launched(launches[-1][0])
    (successor,) = [row.instance for row in desk.bench.table.snapshots() if row.instance != desk.instance_id]
    desk.bench.claim(successor, counter=2)
    assert told(desk, "Terminate") in desk.listen()[0]


def test_paused_and_resumed(desk: Desk) -> None:
    place = (desk.instance_id.row, desk.instance_id.generation)
    assert desk.signal("pause") == "paused"
    assert desk.bench.table.pause(desk.instance_id.row) is Pause.DISPATCH
    assert desk.listen() == [[AgentPaused(*place, Pause.DISPATCH)]] * 2
    assert desk.state() == "paused"
    assert desk.signal("resume") == "resumed"
    assert desk.listen() == [[AgentPaused(*place, Pause.NONE)]] * 2
    assert desk.state() == "ready"
    assert desk.signal("resume") == "not paused"
    assert desk.bench.recorder.tree_signals == []


def test_its_processes_are_stopped_and_go_on(desk: Desk) -> None:
    words = "paused, and its processes are stopped"
    assert desk.signal("pause", stop_process=True) == words
    assert desk.bench.recorder.tree_signals == [(desk.launch, signal.SIGSTOP)]
    assert desk.signal("pause", stop_process=True) == words
    assert desk.signal("pause") == "paused already, and its processes are stopped"
    assert len(desk.bench.recorder.tree_signals) == 1
    assert desk.signal("resume") == "resumed"
    assert desk.bench.recorder.tree_signals[1:] == [(desk.launch, signal.SIGCONT)]


def test_one_whose_processes_are_stopped_need_not_come_back_and_goes_on_before_it_ends(desk: Desk) -> None:
    desk.signal("pause", stop_process=True)
    found = desk.bench.staff.find(desk.instance_id)
    assert found is not None
    desk.bench.staff.disconnected([desk.instance_id])
    assert (found.lifecycle.deadline, desk.state()) == (math.inf, "paused")
    desk.signal("terminate")
    assert desk.bench.recorder.tree_signals[1:] == [(desk.launch, signal.SIGCONT)]
    assert desk.bench.recorder.signals == [(desk.launch, signal.SIGTERM)]
    assert desk.state() == "stopping"


def test_a_name_of_its_own_reaches_the_agent(desk: Desk) -> None:
    assert desk.signal("Reload-model.v2") == "told"
    assert desk.listen() == [[told(desk, "Reload-model.v2")], []]


def test_nobody_hears_who_is_not_connected(desk: Desk) -> None:
    desk.bench.owners.died(desk.bench.members[0])
    with pytest.raises(PoolError, match="a-0-1 is not connected now"):
        desk.signal("reload")
    assert desk.signal("pause") == "paused"


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"instance": "a-0-2", "signal": "pause"}, PoolError, r"no instance is named 'a-0-2'; did you mean a-0-1\?"),
    ({"instance": "zzz", "signal": "pause"}, PoolError, "no instance is named 'zzz'; there are: a-0-1$"),
    ({"instance": None, "signal": "pause"}, PoolError, "no instance is named None"),
    ({"signal": "pause", "instance": ["a-0-1"]}, PoolError, "no instance is named"),
    *(({"instance": "a-0-1", "signal": name}, ConfigError, "up to 64 letters") for name in ("", "@nudge", "a b", "ü")),
    ({"instance": "a-0-1", "signal": "x" * 65}, ConfigError, "up to 64 letters"),
    ({"instance": "a-0-1", "signal": None}, ConfigError, "up to 64 letters"),
    ({"instance": "a-0-1", "signal": "resume", "stop_process": True}, ConfigError, "to go with the signal pause only"),
]


@pytest.mark.parametrize(("arguments", "kind", "words"), WRONG, ids=[str(row[0]) for row in WRONG])
def test_refused(desk: Desk, arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        desk.signalling.command(arguments)
    assert desk.listen() == [[], []]


def test_one_that_is_not_ready_is_paused_but_its_processes_are_not_stopped(desk: Desk) -> None:
    desk.signal("terminate")
    desk.bench.staff.handle(Exited(desk.launch, 1, 0, None))
    (row,) = desk.bench.table.snapshots()
    with pytest.raises(PoolError, match="is starting: its processes can be stopped once it is ready"):
        desk.signal("pause", row.instance_id, stop_process=True)
    assert desk.signal("pause", row.instance_id) == "paused"
    assert desk.state(row.instance) == "starting"


def test_an_agent_that_somebody_else_started(desk: Desk) -> None:
    bench = desk.bench

    def come() -> InstanceId:
        bench.owners.admit(bench.members[1], ExternalAgent(1, "gpu", "a"), 0)
        answer = next(record for record in bench.heard(1) if isinstance(record, ExternalRow))
        bench.owners.claim(Claim(answer.row, answer.generation, 77, 1, 2), bench.members[1])
        return InstanceId(answer.row, answer.generation)

    def go(row: InstanceId) -> None:
        bench.owners.release(Released(row.row, row.generation, 77, "peer"))

    first = come()
    assert (desk.signal("pause", "gpu"), desk.state(first)) == ("paused", "paused")
    go(first)
    second = come()
    assert second != first
    assert desk.state(second) == "paused", "its pause goes with its name"
    for what, more, words in (
        ("restart", {}, "gpu was started by somebody else, who alone can restart it"),
        ("pause", {"stop_process": True}, "its processes are not ours to stop"),
    ):
        with pytest.raises(PoolError, match=words):
            desk.signal(what, "gpu", **more)
    assert desk.signal("resume", "gpu") == "resumed"
    go(second)
    third = come()
    assert desk.state(third) == "ready"
    desk.listen()
    assert (desk.signal("terminate", "gpu"), desk.signal("reload", "gpu")) == ("asked to end", "told")
    expected = [SignalAgent(third.row, third.generation, name) for name in ("Terminate", "reload")]
    assert desk.listen() == [[], expected]
    assert bench.recorder.tree_signals == []
