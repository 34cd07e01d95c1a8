"""From settings to a running pool: what comes before what, and that nothing is left whatever happens.

`run` takes its process over, so each test runs it in one of its own and reads there what it saw.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RuntimeEnv

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]

PROGRAM = """
import importlib, json, os, sys
from pathlib import Path
from spearpool.config import load
from spearpool.errors import SpearpoolError
from spearpool.processes import children_of, descendants
from spearpool.runtime_dir import RuntimeDir
from spearpool.supervisor import main
from spearpool.supervisor.warden import Warden

seen = {"forked": False, "ready": []}
runtime = Path(os.environ["SPEARPOOL_RUNTIME_DIR"])
start = Warden.start

def watched(*arguments, **options):
    sockets = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(p := f"/proc/self/fd/{fd}")
               and os.readlink(p).startswith("socket:")]
    seen["forked"] = True
    seen["before"] = sorted({"numpy", "zmq", "psutil"} & set(sys.modules)) + os.listdir(runtime) + sockets
    return start(*arguments, **options)

def announce(line):
    seen["ready"].append(line)
    os.kill(os.getpid(), 15)

remove = RuntimeDir.remove

def remove_last(directory):
    seen["outlived"] = descendants(os.getpid())
    remove(directory)

RuntimeDir.remove = remove_last

def signalled_at(place):  # as it was, but that a SIGTERM comes first, and one more when it is done
    module, *path = place.split(":")
    owner = importlib.import_module(f"spearpool.{module}")
    for name in path[:-1]:
        owner = getattr(owner, name)
    original = getattr(owner, path[-1])

    def then(*arguments, **options):
        os.kill(os.getpid(), 15)
        try:
            return original(*arguments, **options)
        finally:
            os.kill(os.getpid(), 15)

    setattr(owner, path[-1], then)

if len(sys.argv) > 3:
    signalled_at(sys.argv[3])
else:
    Warden.start = watched
try:
    main.run(load(overrides=json.loads(sys.argv[1])), os.environ, None, announce)
except SpearpoolError as error:
    seen["error"] = [type(error).__name__, str(error)]
seen["left"] = [*children_of(os.getpid()), *map(str, runtime.iterdir()), *map(str, Path(sys.argv[2]).iterdir())]
print(json.dumps(seen))
"""


def _run(env: RuntimeEnv, memory: Path, *signalled: str, **sections: Any) -> dict[str, Any]:
    settings = json.dumps({"monitoring": {"shared_memory_dir": str(memory)}, **sections})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, settings, str(memory), *signalled],
        capture_output=True,
        env=env.environ | {"PYTHONPATH": f"{ROOT}:{memory.parent}"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    seen: dict[str, Any] = json.loads(done.stdout)
    assert seen["left"] == []
    assert not (seen["ready"] and seen["outlived"]), "somebody was alive when the files went"
    return seen


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "shm"
    path.mkdir()
    return path


def test_runs_until_it_is_told_to_stop(runtime_env: RuntimeEnv, memory: Path) -> None:
    seen = _run(runtime_env, memory, tasks={"sum": {"target": "exec:sha256sum"}})
    assert "error" not in seen
    (ready,) = seen["ready"]
    assert ready["workers"] == 2
    assert ready["warnings"] == []
    assert Path(ready["segment"]).parent == memory


def test_the_warden_is_forked_before_there_is_anything_to_inherit(runtime_env: RuntimeEnv, memory: Path) -> None:
    seen = _run(runtime_env, memory)
    assert seen["forked"]
    assert seen["before"] == []


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"tasks": {"a": {"target": "exec:/no/such/program"}}}, "/no/such/program"),
        ({"tasks": {"a": {"target": "python:no_such_module:f"}}}, "no_such_module"),
    ],
)
def test_a_program_that_is_not_there_ends_it_before_anything_is_forked(
    runtime_env: RuntimeEnv, memory: Path, sections: dict[str, Any], words: str
) -> None:
    seen = _run(runtime_env, memory, **sections)
    kind, text = seen["error"]
    assert kind == "ConfigError"
    assert words in text
    assert not seen["forked"]
    assert seen["ready"] == []


def test_a_pool_that_cannot_start_raises_and_leaves_nothing(runtime_env: RuntimeEnv, memory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        seen = _run(runtime_env, memory, pool={"port": port})
    assert seen["error"][0] == "PoolStartError"
    assert f"port {port}" in seen["error"][1]
    assert str(os.getpid()) in seen["error"][1]
    assert seen["forked"]
    assert seen["ready"] == []


def test_what_a_worker_prints_does_not_get_between_the_lines_of_stdout(runtime_env: RuntimeEnv, memory: Path) -> None:
    (memory.parent / "talkative.py").write_text("print('hello from the validator', flush=True)\ncheck = print\n")
    seen = _run(runtime_env, memory, security={"validator": "talkative:check"})
    assert len(seen["ready"]) == 1


BEFORE_THE_LOOP = [
    "supervisor.main:check_tasks",
    "supervisor.warden:Warden:start",
    "supervisor.keys:Keys:open",
    "metrics.segment:Segment:create",
    "metrics.bus:Bus:bind",
    "runtime_dir:RuntimeDir:write_pool",
]


@pytest.mark.parametrize("place", BEFORE_THE_LOOP)
def test_a_signal_that_comes_before_the_loop_runs_is_heeded_by_the_loop(
    runtime_env: RuntimeEnv, memory: Path, place: str
) -> None:
    """Were it not held, it would kill at once and leave what there is by then."""
    seen = _run(runtime_env, memory, place, tasks={"sum": {"target": "exec:sha256sum"}})
    assert "error" not in seen
    assert seen["ready"] == []


AFTER_THE_LOOP = [
    "supervisor.supervisor:kill_descendants",
    "supervisor.crew:Crew:close",
    "metrics.segment:Segment:unlink",
    "runtime_dir:RuntimeDir:remove",
    "supervisor.warden:Warden:close",
]


@pytest.mark.parametrize("place", AFTER_THE_LOOP)
def test_a_signal_that_comes_after_the_loop_changes_nothing(runtime_env: RuntimeEnv, memory: Path, place: str) -> None:
    seen = _run(runtime_env, memory, place)
    assert "error" not in seen
    assert len(seen["ready"]) == 1
