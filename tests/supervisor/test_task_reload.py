"""The steps of a reload, as far as tasks have a part in it; workers and launcher are played. See `integration` for
real ones."""

from __future__ import annotations

from typing import Any

import pytest

from spearpool.config import Settings, load
from spearpool.errors import ConfigError
from spearpool.instances.launch import Exited, LaunchFailed, ZygoteReady, ZygoteSpec
from spearpool.supervisor.change import Change
from spearpool.supervisor.task_reload import FAILURES, TaskReload
from spearpool.worker.control import SignalAgent, TaskState
from tests.conftest import RuntimeEnv
from tests.supervisor.offices import AGENT, Office, office


class Scene:
    """A change without workers: they are replaced as soon as that is asked for."""

    def __init__(self, bench: Office, **tasks: Any) -> None:
        self.bench = bench
        self.change = Change.reload(1, ())
        self.replaced = 0
        self.reload = TaskReload(self.change, self._settings(tasks), bench.staff, bench.premises.segment, self._replace)

    def _settings(self, tasks: dict[str, Any]) -> Settings:
        return load(overrides={"tasks": tasks})

    def _replace(self) -> None:
        self.replaced += 1


def test_without_code_to_import_the_workers_are_next_and_then_instances_one_by_one(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        before = bench.ready()
        scene = Scene(bench, a={"target": AGENT})
        assert scene.replaced == 1
        scene.reload.follow()
        assert scene.change.document()["tasks"] == [{"task": "a", "outdated": 1}]
        assert not scene.reload.over
        bench.launched(bench.recorder.launches[-1][0])
        assert [record for record in bench.heard(0) if isinstance(record, SignalAgent)] == []
        (successor,) = [row.instance for row in bench.table.snapshots() if row.instance != before]
        bench.claim(successor, counter=2)
        assert SignalAgent(before.row, before.generation, "Terminate") in bench.heard(0), "its successor is ready"
        bench.staff.handle(Exited(bench.recorder.launches[0][0], 1, 0, None))
        scene.reload.follow()
        assert (scene.reload.over, scene.change.error) == (True, "")


def test_code_is_imported_before_anything_is_changed(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"p": {"target": "python:json:loads"}}) as bench:
        bench.staff.tick()
        ((first, _),) = bench.recorder.launches
        bench.staff.handle(ZygoteReady(first))
        scene = Scene(bench, p={"target": "python:json:dumps"}, q={"target": "python:json:loads"})
        candidates = [launch for launch, spec in bench.recorder.launches if isinstance(spec, ZygoteSpec)][1:]
        assert len(candidates) == 2
        bench.staff.handle(ZygoteReady(candidates[0]))
        assert scene.replaced == 0
        bench.staff.handle(ZygoteReady(candidates[1]))
        assert scene.replaced == 1
        assert bench.recorder.kills == []
        scene.reload.follow()
        assert bench.recorder.kills == [first], "the zygote with the code of before"
        assert set(bench.staff.tasks) == {"p", "q"}


def test_code_that_cannot_be_imported_changes_nothing(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"p": {"target": "python:json:loads"}}) as bench:
        bench.staff.tick()
        scene = Scene(bench, p={"target": "python:json:dumps"}, q={"target": "python:json:loads"})
        one, other = [launch for launch, _ in bench.recorder.launches][-2:]
        bench.staff.handle(LaunchFailed(one, "Traceback …: no licence found"))
        assert scene.change.error == "nothing was changed: task 'p': Traceback …: no licence found"
        assert bench.recorder.kills == [other]
        scene.reload.follow()
        assert (scene.replaced, set(bench.staff.tasks)) == (0, {"p"})


def test_an_import_that_hangs_is_given_up(runtime_env: RuntimeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    with office(runtime_env, tasks={}) as bench:
        scene = Scene(bench, p={"target": "python:json:loads", "start_timeout_s": 0.001})
        while not scene.change.over:
            bench.staff.tick()
        assert scene.change.error == "nothing was changed: the import of p takes too long"
        assert len(bench.recorder.kills) == 1


def test_a_module_that_is_not_there_any_more(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={}) as bench:
        scene = Scene(bench, p={"target": "python:no_such_module:run"})
        assert "nothing was changed: task 'p': there is no Python module 'no_such_module'" in scene.change.error


def test_a_task_that_is_removed_is_closed_first(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}, "b": {"target": AGENT, "min_instances": 0}}) as bench:
        before = bench.ready()
        scene = Scene(bench, b={"target": AGENT, "min_instances": 0})
        heard = bench.heard(0)
        assert heard[0] == TaskState("a", False, "task 'a' was removed")
        assert heard[1] == SignalAgent(before.row, before.generation, "Terminate")
        bench.staff.handle(Exited(bench.recorder.launches[0][0], 1, 0, None))
        scene.reload.follow()
        assert scene.reload.over
        assert list(bench.staff.tasks) == ["b"]
        with pytest.raises(ConfigError, match="one of: b"):
            bench.staff.staff_of("a")


def test_workers_that_cannot_be_replaced_bring_the_removed_task_back(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        bench.ready()
        scene = Scene(bench)
        bench.staff.handle(Exited(bench.recorder.launches[0][0], 1, 0, None))
        bench.heard(0)
        scene.change.fail("worker 0 exited with code 78")
        scene.reload.follow()
        assert TaskState("a", True, "") in bench.heard(0)
        assert (bench.staff.staff_of("a").starting, list(bench.staff.tasks)) == (1, ["a"])


def test_new_instances_that_fail_are_told_and_the_old_ones_stay(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        bench.ready()
        scene = Scene(bench, a={"target": AGENT})
        scene.reload.follow()
        while not scene.reload.over:
            if bench.staff.staff_of("a").starting:
                bench.staff.handle(LaunchFailed(bench.recorder.launches[-1][0], "no such luck"))
            bench.staff.tick()
            scene.reload.follow()
        assert "new instances of task 'a' fail" in scene.change.error
        assert bench.staff.staff_of("a").failures == FAILURES
        assert bench.staff.staff_of("a").ready == 1


def test_there_is_room_for_so_many_new_tasks(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={}) as bench, pytest.raises(ConfigError, match="no more new tasks"):
        Scene(bench, **{f"t{number}": {"target": AGENT} for number in range(20)})
