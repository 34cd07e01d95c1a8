"""Zygotes that take over, die, or are not wanted; the launcher is played, the code is not imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spearpool.config import TaskConfig
from spearpool.instances.artifact import ArtifactError
from spearpool.instances.launch import Exited, ForkSpec, Launched, LaunchFailed, LaunchSpec, ZygoteReady, ZygoteSpec
from spearpool.instances.nursery import RUNNER, Nursery
from spearpool.instances.surroundings import Surroundings
from spearpool.instances.zygotes import Zygote

PYTHON = TaskConfig(target="python:json:loads")
WORDS = ["json", "loads"]
SPEC = LaunchSpec(WORDS, {}, "/", PYTHON.limits)


class Bench:
    """Writes down what is asked of the launcher and told to the runtime."""

    def __init__(self, directory: Path) -> None:
        self.launches: dict[int, str] = {}
        self.kills: list[int] = []
        self.forked: list[tuple[int, int]] = []
        self.lost: list[tuple[int, str]] = []
        self.warmed: list[tuple[str, str]] = []
        surroundings = Surroundings(
            "127.0.0.1", 9100, directory / "agents.sock", directory / "work", directory, os.environ
        )
        self.nursery = Nursery(
            self, surroundings, self._number(), fork=self._fork, lose=self._lose, on_warm=self._on_warm
        )

    @staticmethod
    def _number() -> Callable[[], int]:
        return iter(range(1, 1000)).__next__

    def launch(self, launch: int, spec: LaunchSpec | ZygoteSpec | ForkSpec, log_fd: int) -> None:
        assert isinstance(spec, ZygoteSpec)
        os.fstat(log_fd)
        self.launches[launch] = spec.target

    def signal_group(self, launch: int, signum: int) -> None:
        raise AssertionError("a zygote is not asked")

    def signal_tree(self, launch: int, signum: int) -> None:
        raise AssertionError("a zygote is not asked")

    def kill_tree(self, launch: int) -> None:
        self.kills.append(launch)

    def _fork(self, zygote: Zygote, launch: int, spec: LaunchSpec) -> None:
        assert spec is SPEC
        self.forked.append((zygote.launch, launch))

    def _lose(self, launch: int, reason: str) -> None:
        self.lost.append((launch, reason))

    def _on_warm(self, task: str, failure: str) -> None:
        self.warmed.append((task, failure))

    def zygote(self, task: str = "p") -> Zygote:
        return self.nursery.zygote_for(task, PYTHON, WORDS)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_one_per_task_and_one_for_all_programs(bench: Bench) -> None:
    assert bench.zygote() is bench.zygote()
    runners = [bench.nursery.zygote_for(task, TaskConfig(target="exec:cat"), ["/bin/cat"]) for task in "ef"]
    assert runners[0] is runners[1]
    assert bench.launches == {1: "json:loads", 2: RUNNER}
    assert not bench.nursery.empty


def test_who_waits_is_forked_when_it_is_ready(bench: Bench) -> None:
    zygote = bench.zygote()
    zygote.waiting.update({70: SPEC, 71: SPEC})
    assert bench.nursery.awaited_by(71) is zygote
    assert bench.nursery.handle(Launched(1, 10, 10, 10))
    assert bench.nursery.handle(ZygoteReady(1))
    assert bench.forked == [(1, 70), (1, 71)]
    assert bench.nursery.awaited_by(71) is None
    assert not bench.nursery.handle(Exited(70, 11, 0, None)), "an instance's"


def test_one_that_never_got_ready_takes_all_hopes_along(bench: Bench) -> None:
    bench.zygote().waiting[70] = SPEC
    assert bench.nursery.handle(LaunchFailed(1, "no module named 'shop'"))
    assert bench.lost == [(70, "no module named 'shop'")]
    assert bench.nursery.empty
    assert list(bench.launches) == [1], "the next instance starts another"


def test_one_that_had_worked_is_replaced_at_once(bench: Bench) -> None:
    bench.zygote()
    bench.nursery.handle(ZygoteReady(1))
    bench.nursery.handle(Exited(1, 10, None, 9))
    assert bench.launches == {1: "json:loads", 2: "json:loads"}
    bench.nursery.handle(Exited(2, 11, None, 9))
    assert list(bench.launches) == [1, 2], "but not again and again"


def test_a_stop_replaces_nobody(bench: Bench) -> None:
    bench.zygote()
    bench.nursery.handle(ZygoteReady(1))
    bench.nursery.warm("p", PYTHON)
    bench.nursery.stop()
    assert sorted(bench.kills) == [1, 2]
    bench.nursery.handle(Exited(1, 10, None, 9))
    assert list(bench.launches) == [1, 2]
    assert bench.nursery.empty


def test_candidates_take_over_with_all_who_waited(bench: Bench) -> None:
    bench.zygote()
    bench.nursery.warm("p", PYTHON)
    bench.nursery.warm("q", PYTHON)
    assert bench.nursery.warming() == ["p", "q"]
    bench.nursery.handle(ZygoteReady(3))
    assert (bench.warmed, bench.nursery.warming()) == ([("q", "")], ["p"])
    bench.zygote().waiting[70] = SPEC
    assert bench.zygote().launch == 1, "the one before works until then"
    bench.nursery.handle(ZygoteReady(2))
    bench.nursery.promote(gone=())
    assert bench.kills == [1]
    assert bench.forked == [(2, 70)]
    assert (bench.zygote().launch, bench.zygote("q").launch) == (2, 3)
    assert not bench.nursery.handle(Exited(1, 10, None, 9)), "it is nobody any more"
    bench.nursery.promote(gone=["q"])
    assert bench.kills == [1, 3]


@pytest.mark.parametrize("end", [LaunchFailed(2, "SyntaxError"), Exited(2, 10, 1, None)])
def test_a_candidate_that_fails_changes_nothing(bench: Bench, end: LaunchFailed | Exited) -> None:
    bench.zygote()
    bench.nursery.warm("p", PYTHON)
    bench.nursery.handle(end)
    ((task, failure),) = bench.warmed
    assert (task, failure) in {("p", "SyntaxError"), ("p", "its zygote exited with code 1")}
    assert (bench.zygote().launch, bench.nursery.warming(), list(bench.launches)) == (1, [], [1, 2])


def test_what_is_not_wanted_after_all_ends(bench: Bench) -> None:
    bench.zygote()
    bench.nursery.warm("p", PYTHON)
    bench.nursery.cool()
    assert (bench.kills, bench.zygote().launch) == ([2], 1)


def test_code_that_is_not_there_cannot_be_warmed(bench: Bench) -> None:
    with pytest.raises(ArtifactError, match="no_such_module"):
        bench.nursery.warm("p", TaskConfig(target="python:no_such_module:run"))
