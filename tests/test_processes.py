"""Identities, family trees, and ending a whole tree, with real processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spearpool.processes import (
    ProcessIdentity,
    children_of,
    descendants,
    kill_descendants,
    kill_tree,
    own_children,
    pidfd_open,
    private_bytes,
    signal_tree,
    start_ticks,
    wait_gone,
)
from tests.conftest import eventually

pytestmark = pytest.mark.process

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


@contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child that has printed its first line."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def script(body: str) -> list[str]:
    head = "import os, signal, sys, time\nfrom spearpool import processes\n"
    return [sys.executable, "-c", head + body]


def test_identity_of_ourselves_is_alive() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me.alive()
    assert me.start_ticks == start_ticks(os.getpid())


def test_same_pid_with_another_start_is_another_process() -> None:
    me = ProcessIdentity.of(os.getpid())
    stranger = ProcessIdentity(me.pid, me.start_ticks + 1)
    assert not stranger.alive()
    assert wait_gone(stranger, 0)
    with pytest.raises(ProcessLookupError):
        pidfd_open(stranger)


def test_no_such_process() -> None:
    with running(SLEEPER) as child:
        pass
    assert start_ticks(child.pid) is None
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(child.pid)


def test_name_with_spaces_and_parentheses(tmp_path: Path) -> None:
    link = tmp_path / "a) R 1 (b"
    link.symlink_to(os.path.realpath(sys.executable))
    with running([str(link), *SLEEPER[1:]]) as child:
        assert f"({link.name})" in Path(f"/proc/{child.pid}/stat").read_text()
        assert start_ticks(child.pid) is not None
        assert child.pid in children_of(os.getpid())


def test_zombie_is_dead_and_has_no_place_among_children() -> None:
    with running(SLEEPER) as child:
        identity = ProcessIdentity.of(child.pid)
        assert not wait_gone(identity, 0.01)
        child.kill()
        assert wait_gone(identity, 10)  # not reaped yet
        assert start_ticks(child.pid) == identity.start_ticks
        assert not identity.alive()
        assert child.pid not in children_of(os.getpid())


def test_main_thread_that_ended_first_leaves_a_living_process() -> None:
    body = """
import ctypes, threading
def other():
    while open('/proc/self/stat').read().rpartition(')')[2].split()[0] != 'Z':
        time.sleep(0.001)
    print('up', flush=True)
    time.sleep(60)
threading.Thread(target=other).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    with running(script(body)) as child:
        assert ProcessIdentity.of(child.pid).alive()


def test_pidfd_polls_readable_at_the_end() -> None:
    with running(SLEEPER) as child:
        pidfd = pidfd_open(ProcessIdentity.of(child.pid))
        try:
            assert not select.select([pidfd], [], [], 0)[0]
            child.kill()
            assert select.select([pidfd], [], [], 10)[0]
            assert not os.get_inheritable(pidfd)
        finally:
            os.close(pidfd)


def test_own_children_include_the_dead_until_they_are_reaped() -> None:
    before = own_children()
    with running(SLEEPER) as first, running(SLEEPER) as second:
        assert own_children() == [*before, first.pid, second.pid]
        identity = ProcessIdentity.of(first.pid)
        first.kill()
        assert wait_gone(identity, 10)
        assert own_children() == [*before, first.pid, second.pid]
        first.wait()
        assert own_children() == [*before, second.pid]


def test_own_children_without_the_kernels_list(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_path: Path) -> bytes:
        raise FileNotFoundError

    with running(SLEEPER) as child:
        monkeypatch.setattr("pathlib.Path.read_bytes", absent)
        assert child.pid in own_children()


THREE_GENERATIONS = """
if os.fork() == 0:
    if os.fork() == 0:
        print('up', flush=True)
    time.sleep(60)
time.sleep(60)
"""


def test_descendants_in_order_and_without_the_spared() -> None:
    with running(script(THREE_GENERATIONS)) as child:
        (middle,) = children_of(child.pid)
        (last,) = children_of(middle)
        assert descendants(child.pid) == [middle, last]
        assert descendants(child.pid, spare={middle}) == []
        assert descendants(child.pid, spare={last}) == [middle]
        assert kill_descendants(child.pid, spare={last}) == []
        assert ProcessIdentity.of(last).alive()
        os.kill(last, signal.SIGKILL)


STUBBORN_DAEMONS = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
processes.become_subreaper()
for _ in range(4):
    if os.fork() == 0:          # forks its own children for as long as it lives, each in a session of its own
        while True:
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(60)
                os._exit(0)
            time.sleep(0.005)
print('up', flush=True)
sys.stdin.readline()
print(processes.kill_descendants(os.getpid()), processes.descendants(os.getpid()), flush=True)
"""


def test_kill_descendants_ends_daemons_that_keep_coming() -> None:
    with running(script(STUBBORN_DAEMONS)) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        deadline = time.monotonic() + 10
        while len(descendants(child.pid)) < 12:
            assert time.monotonic() < deadline
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"[] []\n"


def test_kill_descendants_returns_whom_it_had_no_time_to_see_dead() -> None:
    with running(script("os.fork() or time.sleep(60); print('up', flush=True); time.sleep(60)")) as child:
        (below,) = children_of(child.pid)
        os.kill(child.pid, signal.SIGSTOP)  # cannot reap, which must not matter: a zombie is dead
        assert kill_descendants(child.pid, timeout_s=0) == [below]
        assert kill_descendants(child.pid) == []
        os.kill(child.pid, signal.SIGCONT)


def test_kill_tree_ends_root_and_all_below() -> None:
    with running(script(THREE_GENERATIONS)) as child:
        tree = [child.pid, *descendants(child.pid)]
        identities = [ProcessIdentity.of(pid) for pid in tree]
        kill_tree(child.pid)
        assert len(tree) == 3
        assert all(wait_gone(identity, 10) for identity in identities)
        kill_tree(child.pid)  # nobody is there: nothing happens


def test_signal_tree_stops_root_and_all_below_and_has_them_go_on() -> None:
    def states() -> set[str]:
        stats = [Path(f"/proc/{pid}/stat").read_text() for pid in (child.pid, *descendants(child.pid))]
        return {stat.rpartition(")")[2].split()[0] for stat in stats}

    with running(script(THREE_GENERATIONS)) as child:
        assert len(descendants(child.pid)) == 2
        signal_tree(child.pid, signal.SIGSTOP)
        eventually(lambda: states() == {"T"}, 10)
        signal_tree(child.pid, signal.SIGCONT)
        eventually(lambda: "T" not in states(), 10)
        kill_tree(child.pid)
    signal_tree(child.pid, signal.SIGSTOP)  # nobody is there: nothing happens


def test_parent_death_signal_ends_a_process_that_would_not_notice() -> None:
    body = """
parent = os.getpid()
if os.fork() == 0:
    processes.set_parent_death_signal(signal.SIGKILL, parent)
    print(os.getpid(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen(script(body), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        below = ProcessIdentity.of(int(child.stdout.readline()))
        child.kill()
        assert wait_gone(below, 10)


def test_parent_death_signal_armed_too_late_is_raised_at_once() -> None:
    body = "processes.set_parent_death_signal(signal.SIGKILL, os.getppid() + 1); print('survived')"
    assert subprocess.run(script(body), check=False).returncode == -signal.SIGKILL


def test_subreaper_adopts_orphans() -> None:
    body = """
processes.become_subreaper()
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.wait()
print(len(processes.children_of(os.getpid())), flush=True)
processes.kill_descendants(os.getpid())
"""
    assert subprocess.run(script(body), check=True, capture_output=True).stdout == b"1\n"


def test_private_bytes() -> None:
    before = private_bytes(os.getpid())
    assert before > 0
    held = bytearray(64 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    assert private_bytes(os.getpid()) - before > 48 * 2**20
    assert private_bytes(2**22 + 1) == 0, "no such process"
