"""The leak check of `tests/conftest.py` itself: each kind of leftover is found, after a test and after a module."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SHARED_MEMORY, RuntimeEnv

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]

PRELUDE = """
import os, socket, subprocess, sys, time
from pathlib import Path
import pytest

KEPT = []

def child():
    KEPT.append(subprocess.Popen(["sleep", "60"]))
    Path(PID_FILE).write_text(str(KEPT[-1].pid))

def orphan():
    program = f"import os, pathlib, time\\nif os.fork() == 0:\\n os.setsid()\\n"
    program += f" pathlib.Path({PID_FILE!r}).write_text(str(os.getpid())); time.sleep(60)"
    subprocess.run([sys.executable, "-c", program], check=True)
    while not Path(PID_FILE).exists():
        time.sleep(0.01)

def descriptor():
    os.open("/", os.O_RDONLY)

def socket_file(directory):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "left"))

def segment():
    Path(SEGMENT).touch()

def nothing():
    subprocess.run(["true"], check=True)
    subprocess.Popen(["sleep", "0.2"]).wait()
"""

OTHER_POOL = """
import mmap, os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
with open(sys.argv[2], "w+b") as file:
    file.truncate(4096)
    held = mmap.mmap(file.fileno(), 0)
time.sleep(60)
"""

LEAKS = {
    "child()": "process ",
    "orphan()": "process ",
    "descriptor()": "descriptor ",
    "socket_file(tmp_path)": "socket ",
    "segment()": "segment ",
}


@dataclass(frozen=True)
class Inner:
    """A pytest of its own under our conftest, and what it may leave."""

    directory: Path
    segment: Path
    environ: dict[str, str]

    def run(self, source: str) -> str:
        names = f"PID_FILE = {str(self.directory / 'pid')!r}\nSEGMENT = {str(self.segment)!r}\n"
        (self.directory / "test_inner.py").write_text(names + PRELUDE + source)
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
        command += [
            "-p",
            "tests.conftest",
            f"--basetemp={self.directory / 'tmp'}",
            str(self.directory / "test_inner.py"),
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout + done.stderr


@pytest.fixture
def inner(runtime_env: RuntimeEnv) -> Iterator[Inner]:
    directory = runtime_env.runtime_dir
    environ = runtime_env.environ | {"SPEARPOOL_TEST_TIME_SCALE": "0.1"}
    yield (made := Inner(directory, SHARED_MEMORY / f"spearpool-{secrets.token_hex(8)}", environ))
    made.segment.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((directory / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("leak", LEAKS)
def test_what_a_test_leaves_is_its_error(leak: str, inner: Inner) -> None:
    said = inner.run(f"def test_leaky(tmp_path):\n    {leak}\n")
    assert "this test left behind" in said
    assert LEAKS[leak] in said
    assert "1 passed, 1 error" in said or "1 passed, 2 errors" in said  # an un-waited Popen warns as well


@pytest.mark.parametrize("leak", ["orphan()", "socket_file(tmp_path_factory.mktemp('own'))"])
def test_what_a_wider_fixture_leaves_is_its_modules_error(leak: str, inner: Inner) -> None:
    said = inner.run(
        "@pytest.fixture(scope='module')\n"
        f"def wide(tmp_path_factory):\n    yield\n    {leak}\n"
        "def test_innocent(wide):\n    pass\n"
    )
    assert "this module's fixtures left behind" in said


def test_a_clean_test_passes(inner: Inner) -> None:
    said = inner.run("def test_clean(tmp_path):\n    nothing()\n")
    assert "1 passed" in said
    assert "error" not in said


def test_children_of_wider_fixtures_are_left_alone(inner: Inner) -> None:
    """A child that dies during a test is reaped by the fixture that made it, which learns its status."""
    said = inner.run(
        "@pytest.fixture(scope='module')\n"
        "def wide():\n    p = subprocess.Popen(['sleep', '60']); yield p; assert p.wait() == -9\n"
        "def test_kills(wide):\n    wide.kill()\n"
        "def test_next(wide):\n    pass\n"
    )
    assert "2 passed" in said
    assert "error" not in said


def test_another_pools_segment_is_not_ours(inner: Inner) -> None:
    """Somebody else on this machine starts a pool while our test runs."""
    gate = inner.directory / "gate"
    with subprocess.Popen([sys.executable, "-c", OTHER_POOL, str(gate), str(inner.segment)]) as other:
        said = inner.run(
            f"def test_meanwhile():\n    Path({str(gate)!r}).touch()\n"
            "    while not Path(SEGMENT).exists():\n        time.sleep(0.01)\n"
        )
        other.kill()
    assert "1 passed" in said
    assert "error" not in said
