"""A zygote driven by hand: this test is its warden, and (the test process being a subreaper) adopts its instances."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from spearpool.channel import ChannelClosed
from spearpool.config import ResourceLimits
from spearpool.instances import zygote
from spearpool.instances.confine import status_pipe
from spearpool.instances.launch import ForkSpec
from spearpool.instances.zygote_messages import Fork, Forked, FromZygote, Imported, ImportFailed, WardenEnd, warden_end
from spearpool.processes import children_of
from tests.conftest import TIME_SCALE, eventually

pytestmark = pytest.mark.process

ENVIRON = {"PATH": os.environ["PATH"]}

TASK = """
import json, os, random, sys, time
import spearpool.agent
{body}
def handle(request): pass
spearpool.agent.serve = lambda handler: serve()
"""


class Harness:
    """One zygote, the warden's end of its channel, and a log."""

    def __init__(self, directory: Path, target: str, environ: Mapping[str, str] = ENVIRON) -> None:
        self.directory = directory
        self.log = directory / "log"
        self._log_fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        ours, theirs = WardenEnd.pair()
        self.channel = warden_end(ours)
        with theirs:
            self.process = subprocess.Popen(
                zygote.command(theirs.fileno(), target),
                pass_fds=[theirs.fileno()],
                cwd=directory,
                env=environ,
                stdout=self._log_fd,
                stderr=self._log_fd,
            )

    def close(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()
        os.close(self._log_fd)

    def hear(self) -> FromZygote:
        assert select.select([self.channel], [], [], 20 * TIME_SCALE)[0], self.log.read_text()
        received = self.channel.receive()
        assert received is not None
        return received[0]

    def fork(
        self,
        launch: int = 1,
        argv: list[str] | None = None,
        environ: dict[str, str] = ENVIRON,
        limits: ResourceLimits | None = None,
        working_dir: str | None = None,
    ) -> tuple[int, str]:
        """The pid of an instance, and what its status pipe said before its end."""
        reader, writer = status_pipe()
        spec = ForkSpec(1, argv or [], environ, working_dir or str(self.directory), limits or ResourceLimits())
        self.channel.send(Fork(launch, spec), [self._log_fd, writer])
        os.close(writer)
        record = self.hear()
        assert isinstance(record, Forked)
        assert record.launch == launch
        self.forked_ns = record.forked_ns
        os.set_blocking(reader, True)
        with open(reader, encoding="utf-8") as status:
            return record.pid, status.read()

    def run(self, **arguments: Any) -> int:
        """The exit code of an instance that could start."""
        pid, text = self.fork(**arguments)
        assert text == ""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """`started(body)`: a zygote, ready, of a task module whose `serve` the body defines."""
    harnesses = []

    def start(body: str, environ: Mapping[str, str] = ENVIRON) -> Harness:
        (tmp_path / "task.py").write_text(TASK.replace("{body}", body))
        harness = Harness(tmp_path, "task:handle", environ)
        harnesses.append(harness)
        assert harness.hear() == Imported()
        return harness

    yield start
    for harness in harnesses:
        harness.close()


def test_an_instance_becomes_the_wardens_child(started: Any) -> None:
    harness = started("def serve(): time.sleep(600)")
    pid, text = harness.fork()
    assert text == ""
    assert set(children_of(os.getpid())) >= {pid, harness.process.pid}
    assert children_of(harness.process.pid) == []  # no zombie of the process between, either
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("def serve(): pass", 0, ""),
        ("def serve(): sys.exit(7)", 7, ""),
        ("def serve(): raise RuntimeError('out of luck')", 1, "RuntimeError: out of luck"),
        ("import atexit\natexit.register(print, 'bye')\ndef serve(): pass", 0, "bye"),
        ("def serve(): os.kill(os.getpid(), 15)", -15, ""),
    ],
)
def test_an_instance_ends_like_any_program(started: Any, body: str, code: int, words: str) -> None:
    harness = started(body)
    assert harness.run() == code
    assert words in harness.log.read_text()


def test_the_environment_is_replaced(started: Any) -> None:
    body = "def serve(): print(json.dumps([dict(os.environ), os.getcwd(), sys.argv]))"
    harness = started(body, ENVIRON | {"ZYGOTE": "1"})
    assert harness.run(environ={"SPEAR_SECRET": "s", "ü": "ö"}, working_dir="/") == 0
    environ, directory, argv = json.loads(harness.log.read_text())
    assert environ == {"SPEAR_SECRET": "s", "ü": "ö"}
    assert directory == "/"
    assert argv == ["task:handle"]


def test_randomness_is_not_shared(started: Any) -> None:
    body = """
import numpy
def serve(): print(random.random(), numpy.random.random())
"""
    harness = started(body)
    for launch in range(4):
        assert harness.run(launch=launch) == 0
    numbers = harness.log.read_text().split()
    assert len(set(numbers)) == len(numbers) == 8


def test_numpy_starts_no_threads(started: Any) -> None:
    body = "import numpy\ndef serve(): print(len(os.listdir('/proc/self/task')))"
    harness = started(body)
    assert len(os.listdir(f"/proc/{harness.process.pid}/task")) == 1
    assert harness.run() == 0
    assert harness.log.read_text() == "1\n"


def test_output_is_seen_while_the_instance_runs(started: Any) -> None:
    harness = started("def serve(): print('line'); time.sleep(600)")
    pid, _ = harness.fork()
    try:
        eventually(lambda: harness.log.read_text() == "line\n")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_what_the_import_printed_is_printed_once(started: Any) -> None:
    harness = started("print('imported')\ndef serve(): pass")
    for launch in range(3):
        harness.run(launch=launch)
    assert harness.log.read_text() == "imported\n"


def test_an_instance_holds_nothing_of_its_zygote(started: Any) -> None:
    body = "def serve():\n    print(sorted(map(int, os.listdir('/proc/self/fd')))[:4], flush=True)\n    time.sleep(600)"
    harness = started(body)
    pid, _ = harness.fork()
    try:
        eventually(lambda: harness.log.read_text() == "[0, 1, 2, 3]\n")  # 3: the listing itself
        harness.process.kill()
        with pytest.raises(ChannelClosed):  # though the instance lives
            harness.hear()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_without_a_warden_it_ends(started: Any) -> None:
    harness = started("def serve(): pass")
    harness.channel.close()
    assert harness.process.wait(20 * TIME_SCALE) == 0
    assert harness.log.read_text() == ""


def test_the_runner_gets_the_program(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import spearpool.agent.runner as runner\nrunner.run_program = lambda argv: print('would run', argv)\n"
    )
    harness = Harness(tmp_path, "", ENVIRON | {"PYTHONPATH": str(tmp_path)})
    try:
        assert harness.hear() == Imported()
        assert harness.run(argv=["sha256sum", "-b"]) == 0
        assert harness.log.read_text() == "would run ['sha256sum', '-b']\n"
    finally:
        harness.close()


def test_a_confinement_that_fails_is_told(started: Any) -> None:
    harness = started("def serve(): print('never')")
    pid, text = harness.fork(working_dir="/no/such/dir")
    os.waitpid(pid, 0)
    assert text == "working directory '/no/such/dir': No such file or directory"
    assert harness.run(launch=2) == 0  # the zygote goes on
    assert harness.log.read_text() == "never\n"


def test_a_memory_limit_below_the_imports_is_told(started: Any) -> None:
    harness = started("held = bytearray(50_000_000)\ndef serve(): bytearray(10_000_000)")
    pid, text = harness.fork(limits=ResourceLimits(memory_bytes=40_000_000))
    os.waitpid(pid, 0)
    assert text.startswith("limits.memory_bytes = 40000000: the imports of this task hold ")
    assert harness.run(launch=2, limits=ResourceLimits(memory_bytes=150_000_000)) == 0


def refused(directory: Path, target: str) -> str:
    """Why a zygote of that target did not become ready; it has exited with 1."""
    harness = Harness(directory, target)
    try:
        record = harness.hear()
        assert isinstance(record, ImportFailed)
        assert harness.process.wait(20 * TIME_SCALE) == 1
        return record.reason
    finally:
        harness.close()


@pytest.mark.parametrize(
    ("text", "target", "first", "last"),
    [
        ("", "nowhere:f", "ModuleNotFoundError", "No module named 'nowhere'"),
        ("", "task:absent", "AttributeError", "module 'task' has no attribute 'absent'"),
        ("value = 3", "task:value", "TypeError", "task:value is not callable, but 'int'; a handler takes one Request"),
        ("import nowhere", "task:f", "Traceback", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def f(:", "task:f", "  File", "SyntaxError: invalid syntax"),
        ("1 / 0", "task:f", "Traceback", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('no licence')", "task:f", "Traceback", "SystemExit: no licence"),
    ],
)
def test_a_target_that_cannot_be_imported(tmp_path: Path, text: str, target: str, first: str, last: str) -> None:
    (tmp_path / "task.py").write_text(text)
    lines = refused(tmp_path, target).rstrip().splitlines()
    assert lines[0].startswith(first)
    assert lines[-1].endswith(last)
    assert not any("zygote.py" in line or "importlib" in line for line in lines)


def test_a_target_with_threads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=[600], daemon=True).start()\n"
        "def f(request): pass\n"
    )
    assert refused(tmp_path, "task:f").startswith("importing this target leaves 2 threads running")


def test_a_thread_that_was_joined_is_none(started: Any) -> None:
    body = "import threading\nthread = threading.Thread(target=print)\nthread.start()\nthread.join()\ndef serve(): pass"
    assert started(body).run() == 0


def test_modules_beside_the_task_take_no_one_elses_place(tmp_path: Path, started: Any) -> None:
    for name in ("socket", "msgspec", "traceback", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong one')\n")
    (tmp_path / "neighbour.py").write_text("value = 41\n")
    harness = started("import neighbour, socket\ndef serve(): sys.exit(neighbour.value)")
    assert harness.run() == 41


def test_the_channel_is_not_inherited_by_programs(started: Any) -> None:
    body = "import subprocess\ndef serve(): subprocess.run(['ls', '/proc/self/fd'], close_fds=False)"
    harness = started(body)
    assert harness.run() == 0
    assert harness.log.read_text().split() == ["0", "1", "2", "3"]


def test_the_fork_is_told_with_a_time_before_anything_that_the_instance_did(started: Any, tmp_path: Path) -> None:
    harness = started("def serve(): open('time', 'w').write(str(time.monotonic_ns()))")
    before = time.monotonic_ns()
    harness.run(working_dir=str(tmp_path))
    assert before < harness.forked_ns < int((tmp_path / "time").read_text())
