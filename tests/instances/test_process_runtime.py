from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from spearpool.config import ResourceLimits
from spearpool.errors import InstanceStartError
from spearpool.instances.instance import Instance
from spearpool.instances.launch import Exited, Launched, ZygoteReady
from spearpool.instances.lifecycle import Phase
from spearpool.metrics.vocabulary import RECORD_FLAGS, InstanceStage, LimitLevel
from spearpool.processes import ProcessIdentity
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.messages import ExecutionStatus
from tests.conftest import eventually

from .runtime_driver import House, housing, wire_agent

pytestmark = pytest.mark.process

MIB = 2**20
ECHO = "python:tests.programs.handlers:echo"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with housing(tmp_path) as house:
        yield house


def identity(instance: Instance) -> ProcessIdentity:
    assert instance.identity is not None
    return instance.identity


@pytest.mark.parametrize(
    ("target", "arguments", "expected"),
    [
        (ECHO, [], "hello"),
        ("exec:sha256sum", ["--zero"], f"{hashlib.sha256(b'hello').hexdigest()}  -\0"),
        (f"agent:{sys.executable} {Path(__file__).parents[1]}/programs/plain_agent.py", [], "HELLO"),
    ],
    ids=["python", "exec", "agent"],
)
def test_each_kind_of_target_starts_serves_and_stops(
    target: str, arguments: list[str], expected: str, house: House
) -> None:
    instance = house.create(target)
    assert house.table.is_alive(instance.id.row, instance.id.generation), "its secret is valid before it is launched"
    house.until(lambda: house.readies == [instance])
    answer = house.execute(instance, *arguments, data=b"hello")
    assert (answer.status, answer.output) == (ExecutionStatus.COMPLETED, expected)
    row = house.row(instance)
    assert (row.pid, row.start_ticks) == (identity(instance).pid, identity(instance).start_ticks)
    assert row.stage is InstanceStage.READY
    times = [row.stages_ns[stage] for stage in InstanceStage if stage <= InstanceStage.READY]
    assert 0 < times[0] < times[1] < times[2] <= times[3] < times[4], "each by the clock of who saw it, which is one"
    assert times[1] in {report.forked_ns for report in house.reports if isinstance(report, Launched)}
    house.runtime.stop_instance(instance)
    end = house.end_of(instance)
    assert (end.failed, end.reason) == (False, "it was stopped and exited with code 0")
    assert house.told == ["Terminate"]
    assert times[4] < house.row(instance).stages_ns[InstanceStage.STOPPING]
    assert house.row(instance).stages_ns[InstanceStage.STOPPING] < house.row(instance).stages_ns[InstanceStage.EXITED]
    stages = ["requested", "spawned", "connected", "authenticated", "ready", "stopping", "exited"]
    assert house.stages(instance) == stages
    assert house.counted() == {"started": 1, "exited": 1}
    assert not house.table.is_alive(instance.id.row, instance.id.generation)
    house.runtime.stop_all()
    house.until(lambda: house.runtime.all_gone)
    assert list(house.work_dir.iterdir()) == []


def test_what_an_instance_finds_around_itself(house: House, tmp_path: Path) -> None:
    facts = 'print(json.dumps(dict(environ=dict(os.environ), cwd=os.getcwd(), mode=os.stat(".").st_mode)), flush=True)'
    instance = house.ready(wire_agent(before=facts), environment={"MODEL": "small"}, stop_timeout_s=0.1)
    found = json.loads(instance.log.path.read_text())
    assert found["cwd"] == str(house.work_dir / "t-0-1") == str(instance.directory)
    assert found["mode"] & 0o777 == 0o700
    assert found["environ"]["MODEL"] == "small"
    assert found["environ"]["SPEAR_TASK"] == "t"
    assert "HIDDEN" not in found["environ"]
    (house.work_dir / "t-0-1" / "file").write_text("left by the program")
    house.runtime.stop_instance(instance)
    house.end_of(instance)
    assert not (house.work_dir / "t-0-1").exists()
    own = house.ready(wire_agent(), working_dir=str(tmp_path), stop_timeout_s=0.1)
    assert Path(f"/proc/{identity(own).pid}/cwd").resolve() == tmp_path
    house.runtime.stop_instance(own)
    house.end_of(own)
    assert tmp_path.exists()


def test_limits_are_published_as_the_kernel_has_them_and_usage_is_sampled(house: House) -> None:
    limits = ResourceLimits(memory_bytes=512 * MIB, cpu_seconds=100, open_files=64, nice=3, cpu_affinity=(0,))
    instance = house.ready(ECHO, limits)
    house.execute(instance, data=b"x" * 1000)
    house.runtime.sample_usage()
    published = {limit.name: limit for limit in house.row(instance).limits}
    assert {name: limit.value for name, limit in published.items()} == {
        "memory_bytes": 512 * MIB,
        "cpu_seconds": 100,
        "open_files": 64,
        "nice": 3,
        "cpu_affinity": 1,
    }
    assert {limit.level for limit in published.values()} == {LimitLevel.ENFORCED}
    assert published["memory_bytes"].usage > MIB
    assert 3 < published["open_files"].usage < 64
    assert published["nice"].usage == 3
    assert sum(limit.breaches for limit in published.values()) == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one CPU: nothing to widen")
def test_a_limit_that_the_process_widens_is_no_longer_said_to_be_enforced(house: House) -> None:
    instance = house.ready(ECHO, ResourceLimits(cpu_affinity=(0,), cpu_seconds=100))
    pid = identity(instance).pid

    def levels() -> dict[str, tuple[float, LimitLevel, int]]:
        house.runtime.sample_usage()
        return {limit.name: (limit.value, limit.level, limit.breaches) for limit in house.row(instance).limits}

    kept = {"cpu_seconds": (100, LimitLevel.ENFORCED, 0)}
    assert levels() == {"cpu_affinity": (1, LimitLevel.ENFORCED, 0), **kept}
    os.sched_setaffinity(pid, (0, 1))
    assert levels() == {"cpu_affinity": (2, LimitLevel.WATCHED, 1), **kept}
    os.sched_setaffinity(pid, (0,))
    assert levels() == {"cpu_affinity": (1, LimitLevel.ENFORCED, 1), **kept}


def test_the_cpu_limit_ends_an_instance_and_is_counted(house: House) -> None:
    instance = house.create("agent:sh -c 'while :; do :; done'", ResourceLimits(cpu_seconds=1), start_timeout_s=60.0)
    end = house.end_of(instance, 60)
    assert end.failed
    assert end.reason == (
        "it was killed by signal SIGXCPU (its limit cpu_seconds = 1 was used up) before it connected and authenticated"
    )
    (limit,) = house.row(instance).limits
    assert (limit.name, limit.value, limit.breaches) == ("cpu_seconds", 1, 1)


BROKEN = {
    "broken_import": "import json\nraise RuntimeError('no licence found')\n",
    "no_function": "",
    "hanging_import": "import time\ntime.sleep(60)\n",
}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "agent:sh -c 'echo starting; echo oh no >&2; exit 3'",
            "it exited with code 3 before it connected and authenticated; its log ends:\nstarting\noh no",
        ),
        ("agent:true", "it exited with code 0 before it connected and authenticated"),
        (
            "agent:sh -c 'kill -SEGV $$'",
            "it was killed by signal SIGSEGV before it connected and authenticated",
        ),
        (
            "agent:sh -c 'echo here I am; exec sleep 60'",
            "it runs, but did not connect and authenticate within 0.5 s; its log ends:\nhere I am",
        ),
        ("python:broken_import:run", "it could not be launched: *RuntimeError: no licence found*"),
        ("python:no_function:run", "it could not be launched: *no_function* has no attribute 'run'*"),
        ("python:hanging_import:run", "its code was not imported within 0.5 s"),
        (wire_agent("sys.exit(4)"), "it exited with code 4, 0.? s after it was ready"),
    ],
)
def test_failures_in_words(target: str, words: str, house: House, tmp_path: Path) -> None:
    for name, text in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(text)
    slow = "within" in words
    instance = house.create(
        target, environment={"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}, start_timeout_s=0.5 if slow else 20.0
    )
    end = house.end_of(instance)
    assert end.failed
    assert fnmatchcase(end.reason, words.replace("[", "[[]")), end.reason
    assert not house.table.is_alive(instance.id.row, instance.id.generation)
    assert list(house.work_dir.glob("t-*")) == []


def test_one_import_that_hangs_ends_all_that_wait_for_it_and_the_next_one_starts_afresh(
    house: House, tmp_path: Path
) -> None:
    module = tmp_path / "moody.py"
    module.write_text(BROKEN["hanging_import"])
    settings: dict[str, Any] = {"environment": {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}, "start_timeout_s": 1.0}
    first, second = house.create("python:moody:run", **settings), house.create("python:moody:run", **settings)
    house.until(lambda: len(house.ends) == 2)
    assert house.end_of(first).reason == "its code was not imported within 1 s"
    assert house.end_of(second).failed
    module.write_text("def run(request): return b'awake'\n")
    third = house.ready("python:moody:run", **{**settings, "start_timeout_s": 20.0})
    assert house.execute(third).output == "awake"


@pytest.mark.parametrize(
    ("target", "config", "stage", "words"),
    [
        ("exec:no-such-program", {}, "artifact", "program 'no-such-program' is not in PATH"),
        ("python:no_such_module:run", {}, "artifact", "there is no Python module 'no_such_module'"),
        ("exec:true", {"working_dir": "/no/where"}, "artifact", "working directory /no/where is not a directory"),
        (f"agent:true {'x' * 200_000}", {}, "launch", "control record of"),
    ],
)
def test_what_cannot_even_be_launched(
    target: str, config: dict[str, Any], stage: str, words: str, house: House
) -> None:
    with pytest.raises(InstanceStartError, match=words) as caught:
        house.create(target, **config)
    assert (caught.value.stage, caught.value.task, caught.value.instance_id) == (stage, "t", "t-0-1")
    assert not house.table.is_alive(0, 1)
    assert house.runtime.snapshot() == []
    assert not house.work_dir.exists() or list(house.work_dir.iterdir()) == []
    house.runtime.stop_all()
    house.until(lambda: house.runtime.all_gone)


def test_without_a_free_row_nothing_is_started(tmp_path: Path) -> None:
    with housing(tmp_path, rows=1) as house:
        house.create("agent:sleep 60")
        with pytest.raises(InstanceStartError, match="all 1 rows of the instances table are in use") as caught:
            house.create("agent:sleep 60")
        assert caught.value.stage == "resources"


def test_without_a_place_for_logs_nothing_is_started(house: House) -> None:
    house.log_dir.rmdir()
    with pytest.raises(InstanceStartError, match="No such file or directory") as caught:
        house.create("agent:sleep 60")
    assert caught.value.stage == "launch"


def test_a_stop_escalates_until_the_whole_tree_is_gone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent ignores the signal of the protocol and SIGTERM, and has a child with a session of its own."""
    monkeypatch.setattr("spearpool.instances.lifecycle.TERMINATE_S", 0.3)
    stubborn = "signal.signal(15, signal.SIG_IGN)"
    child = "if os.fork() == 0: os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
    instance = house.ready(wire_agent(before=f"{stubborn}\n{child}"), stop_timeout_s=0.3)
    house.until(instance.log.tail)
    daemon = ProcessIdentity.of(int(instance.log.tail()))
    phases = set()
    house.runtime.stop_instance(instance)

    def over() -> bool:
        phases.add(instance.lifecycle.phase)
        return bool(house.ends)

    house.until(over)
    assert phases >= {Phase.ASKED, Phase.TERMINATED, Phase.KILLED}
    end = house.end_of(instance)
    assert (end.failed, end.reason) == (False, "it was stopped and was killed by signal SIGKILL")
    eventually(lambda: not daemon.alive())


def test_an_instance_without_a_connection_gets_sigterm_at_once(house: House) -> None:
    instance = house.create("agent:sleep 60", stop_timeout_s=60.0)
    house.until(lambda: instance.identity)
    house.runtime.stop_instance(instance)
    assert house.end_of(instance).reason == "it was stopped and was killed by signal SIGTERM"
    assert house.told == []


def test_a_lost_connection_may_come_back(house: House) -> None:
    instance = house.ready(ECHO)
    house.hang_up(instance)
    assert instance.lifecycle.phase is Phase.AWAY
    house.until(lambda: instance.lifecycle.phase is Phase.READY)
    assert house.execute(instance, data=b"again").output == "again"
    assert house.readies == [instance], "told once"


def test_a_connection_that_does_not_come_back_ends_the_instance(house: House) -> None:
    instance = house.ready(wire_agent(), start_timeout_s=1.0)
    house.hang_up(instance)
    assert house.end_of(instance).reason == "it lost its connection and did not come back within 1 s"


def test_a_dead_zygote_takes_no_instance_along_and_is_replaced(house: House) -> None:
    first = house.ready(ECHO)
    (launch,) = [report.launch for report in house.reports if isinstance(report, ZygoteReady)]
    pids = [report.pid for report in house.reports if isinstance(report, Launched) and report.launch == launch]
    os.kill(pids[0], signal.SIGKILL)
    house.until(lambda: isinstance(house.reports[-1], Exited))
    assert house.execute(first, data=b"still here").output == "still here"
    second = house.ready(ECHO)
    assert house.execute(second, data=b"me too").output == "me too"


def test_stop_all_ends_whatever_is_under_way(house: House) -> None:
    ready = house.ready(ECHO)
    connecting = house.create("agent:sleep 60")
    house.until(lambda: connecting.identity)
    launching = house.create("agent:sleep 60")
    waiting = house.create("exec:cat")
    assert not house.runtime.all_gone
    house.runtime.stop_all()
    house.until(lambda: house.runtime.all_gone)
    assert {end.instance for end in house.ends} == {ready, connecting, launching, waiting}
    assert not any(end.failed for end in house.ends)
    assert house.end_of(waiting).reason == "it was stopped before it was launched"
    assert house.table.snapshots() == []


def test_words_about_others_are_ignored(house: House) -> None:
    instance = house.create("agent:sleep 60")
    wrong = InstanceId(instance.id.row, instance.id.generation + 1)
    house.runtime.claimed(wrong, 9, 1, 2)
    house.runtime.claimed(InstanceId(5, 1), 9, 1, 2)
    house.runtime.released(wrong)
    assert house.runtime.find(wrong) is None
    assert house.runtime.find(instance.id) is instance
    assert (house.readies, instance.state) == ([], "starting")


def test_views_and_deadlines(house: House) -> None:
    assert house.runtime.next_deadline() == float("inf")
    instance = house.create("agent:sleep 60")
    assert house.runtime.next_deadline() == instance.lifecycle.deadline
    (view,) = house.runtime.snapshot()
    assert (view.name, view.pid, view.state) == ("t-0-1", None, "starting")
    house.until(lambda: house.runtime.snapshot()[0].pid)
    assert house.runtime.snapshot()[0].pid == identity(instance).pid


def test_a_flood_of_output_keeps_within_its_quota(house: House) -> None:
    instance = house.create("agent:sh -c 'while :; do echo something to say; done'", log_bytes=65_536)
    old = house.log_dir / "t-0-1.log.1"

    def rotated() -> bool:
        house.runtime.rotate_logs()
        return old.exists()

    house.until(rotated)
    assert 30_000 < old.stat().st_size <= 32_768
    assert old.read_bytes().startswith(b"something to say\n")
    house.runtime.stop_instance(instance)


def test_who_takes_the_place_of_a_crashed_one_has_its_count(house: House) -> None:
    first, other = house.ready(wire_agent()), house.ready(wire_agent())
    assert (house.row(first).restarts, house.row(other).restarts) == (0, 0)
    for restarts in (1, 2):
        os.kill(identity(first).pid, signal.SIGKILL)
        house.end_of(first)
        assert first.crashed
        first = house.ready(wire_agent())
        assert house.row(first).restarts == restarts
        assert house.stages(first)[:3] == ["requested", "restarted", "spawned"]
    assert house.row(other).restarts == 0
    assert house.counted() == {"started": 4, "failed": 2, "restarted": 2}


def test_a_killed_instance_is_on_record_with_the_signal(house: House) -> None:
    instance = house.ready(wire_agent())
    os.kill(identity(instance).pid, signal.SIGKILL)
    house.end_of(instance)
    assert house.stages(instance)[-2:] == ["ready", "failed"]
    last = house.records(instance)[-1]
    assert (last.flags, last.code) == (RECORD_FLAGS["has_code"], 0x1_0000 - signal.SIGKILL)
    assert last.connection != 0, "that of its agent"


def test_a_program_that_is_done_has_exited_and_its_place_is_filled_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spearpool.instances.lifecycle.SETTLED_S", 0.0)
    instance = house.ready(wire_agent("sys.exit(0)"))
    assert not house.end_of(instance).failed
    assert not instance.crashed
    assert house.stages(instance)[-1] == "exited"
    assert house.row(house.create("agent:sleep 60")).restarts == 1


def test_one_that_was_stopped_leaves_no_place(house: House) -> None:
    instance = house.ready(wire_agent(), stop_timeout_s=0.1)
    house.runtime.stop_instance(instance)
    house.end_of(instance)
    assert house.row(house.create("agent:sleep 60")).restarts == 0


def test_starts_that_come_to_nothing_are_restarts_too(house: House) -> None:
    for restarts in range(3):
        with pytest.raises(InstanceStartError):
            house.create("exec:no-such-program")
        row = house.table.snapshot(restarts)
        assert row is not None
        assert (row.restarts, row.stage) == (restarts, InstanceStage.FAILED)
    assert house.counted() == {"started": 3, "failed": 3, "restarted": 2}


def test_an_end_may_start_the_next_one(house: House) -> None:
    """As the supervisor does: the callback creates an instance while the runtime is dealing with the end."""
    successors: list[Instance] = []

    def replace(instance: Instance, reason: str, failed: bool) -> None:
        if len(successors) < 3:
            successors.append(house.create("agent:false"))

    house.runtime._on_end = replace
    house.create("agent:false")
    house.until(lambda: len(successors) == 3 and house.runtime.all_gone)
    assert [instance.name for instance in successors] == ["t-1-1", "t-2-1", "t-3-1"]
