"""What every test gets: a check that it left nothing behind, patience that scales, and private pool directories.

The leak check runs around each test and, for fixtures that live longer, around each module. It looks at what the
promises name: processes, descriptors, shared-memory segments and socket files. The pytest process makes itself a child
subreaper, so that a daemonised orphan of a test is found as well; whoever is dead but not yet reaped is reaped here.

`SPEARPOOL_TEST_TIME_SCALE` multiplies every time limit that goes through `deadline` and `eventually`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import setproctitle
from hypothesis import settings

__all__ = ["TIME_SCALE", "RuntimeEnv", "deadline", "eventually", "eventually_async"]

T = TypeVar("T")

TIME_SCALE = float(os.environ.get("SPEARPOOL_TEST_TIME_SCALE", "1"))

SHARED_MEMORY = Path("/dev/shm")

# It finds the place of the process title through `environ`, which tests change: so it has to look before they do.
setproctitle.getproctitle()

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("full", deadline=None, max_examples=1000)
settings.load_profile("ci" if os.environ.get("CI") else "default")  # --hypothesis-profile=full overrides it


def deadline(seconds: float) -> float:
    """The monotonic time `seconds`, scaled, from now."""
    return time.monotonic() + seconds * TIME_SCALE


def eventually(condition: Callable[[], T], timeout_s: float = 5.0, interval_s: float = 0.01) -> T:
    """Poll until `condition()` is true and return its value; an AssertionError with its last value otherwise."""
    end = deadline(timeout_s)
    while not (value := condition()):
        assert time.monotonic() < end, f"not true after {timeout_s * TIME_SCALE:g} s; last value: {value!r}"
        time.sleep(interval_s)
    return value


async def eventually_async(condition: Callable[[], T], timeout_s: float = 5.0, interval_s: float = 0.01) -> T:
    """`eventually` for coroutines: the loop runs between two looks."""
    end = deadline(timeout_s)
    while not (value := condition()):
        assert time.monotonic() < end, f"not true after {timeout_s * TIME_SCALE:g} s; last value: {value!r}"
        await asyncio.sleep(interval_s)
    return value


@dataclass(frozen=True, slots=True)
class RuntimeEnv:
    """Private directories for pools of one test; their paths are short enough for Unix sockets.

    `environ` is this process's environment with both set: pass it to child processes and to `locate(name, environ)`.
    """

    runtime_dir: Path
    state_dir: Path
    environ: dict[str, str]


@pytest.fixture
def runtime_env() -> Iterator[RuntimeEnv]:
    root = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    chosen = {"SPEARPOOL_RUNTIME_DIR": str(root / "run"), "XDG_STATE_HOME": str(root / "state")}
    for path in chosen.values():
        Path(path).mkdir(mode=0o700)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SPEARPOOL_", "SPEAR_"))}
    try:
        yield RuntimeEnv(root / "run", root / "state" / "spearpool", inherited | chosen)
    finally:
        shutil.rmtree(root)


@dataclass(frozen=True, slots=True)
class Process:
    """A line of the process table. Its identity is pid and start time."""

    pid: int
    parent: int
    start_ticks: int
    dead: bool
    words: str

    @property
    def key(self) -> str:
        return f"process {self.pid}:{self.start_ticks}"


def _process_table() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            except OSError:
                continue  # it ended just now
            yield Process(int(entry.name), int(fields[1]), int(fields[19]), fields[0] in "ZX", words)


def _descendants() -> list[Process]:
    """Dead ones included: whoever is not reaped yet."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []  # no child at all, so no descendant: a subreaper inherits the orphans. Saves most tests the table
    children: dict[int, list[Process]] = {}
    for process in _process_table():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = [os.getpid()]
    while waiting:
        found += (below := children.get(waiting.pop(), []))
        waiting += [process.pid for process in below]
    return found


def _reap(earlier: Mapping[str, str]) -> None:
    """Collect dead orphans that became ours; a child older than the test is left to the fixture that waits for it."""
    for process in _descendants():
        if process.dead and process.parent == os.getpid() and process.key not in earlier:
            with contextlib.suppress(ChildProcessError):  # a thread of the test's was quicker
                os.waitpid(process.pid, os.WNOHANG)


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed the directory
            yield f"descriptor {name} -> {os.readlink(f'/proc/self/fd/{name}')}"


def _socket_files(directory: Path | None) -> Iterator[str]:
    for folder, _, names in os.walk(directory) if directory else ():
        for path in (Path(folder, name) for name in names):
            if stat.S_ISSOCK(path.lstat().st_mode):
                yield f"socket {path}"


def _segment_is_another_pools(path: str) -> bool:
    """Whether a living process that is none of ours maps the file."""
    ours = {os.getpid(), *(process.pid for process in _descendants())}
    for process in _process_table():
        with contextlib.suppress(OSError):
            if process.pid not in ours and path in Path(f"/proc/{process.pid}/maps").read_text(errors="replace"):
                return True
    return False


def _belongings(directory: Path | None, with_dead: bool) -> dict[str, str]:
    """What this process has now: descendants, descriptors, segments, socket files; identity → words."""
    processes = [process for process in _descendants() if with_dead or not process.dead]
    found = {p.key: f"process {p.pid}: {p.words or '(no command line)'}" for p in processes}
    others = [*_descriptors(), *(f"segment {path}" for path in SHARED_MEMORY.glob("spearpool-*"))]
    return found | {name: name for name in (*others, *_socket_files(directory))}


def _left_behind(earlier: Mapping[str, str], directory: Path | None) -> list[str]:
    """What is still there after a moment's patience: a killed process takes a little while to be gone."""
    end = deadline(2.0)
    while True:
        _reap(earlier)
        left = [words for key, words in _belongings(directory, with_dead=False).items() if key not in earlier]
        if not left or time.monotonic() > end:
            break
        gc.collect()  # a cycle may hold an object whose close is its __del__
        time.sleep(0.02)
    segments = {words for words in left if words.startswith("segment ")}
    return [w for w in left if w not in segments or not _segment_is_another_pools(w.removeprefix("segment "))]


@contextlib.contextmanager
def _leaving_nothing(what: str, before: Path | None, after: Callable[[], Path | None]) -> Iterator[None]:
    """Fail when the block leaves something; sockets are looked for in `before` and, at the end, in `after()`."""
    earlier = _belongings(before, with_dead=True)
    yield
    if left := _left_behind(earlier, after()):
        pytest.fail(f"{what} left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _subreaper() -> None:
    """Orphans of tests become our children, where the check sees them."""
    pr_set_child_subreaper = 36
    assert ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0) == 0


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing(_subreaper: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory = tmp_path_factory.getbasetemp()
    with _leaving_nothing("this module's fixtures", directory, lambda: directory):
        yield


@pytest.fixture(autouse=True)
def _test_leaves_nothing(_module_leaves_nothing: None, request: pytest.FixtureRequest) -> Iterator[None]:
    with _leaving_nothing("this test", None, lambda: request.node.funcargs.get("tmp_path")):
        yield
