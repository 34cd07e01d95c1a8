"""What a killed pool left is ended by pid and start time, and nothing else is."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.layout import Layout
from spearpool.metrics.segment import Segment
from spearpool.processes import ProcessIdentity, children_of, start_ticks
from spearpool.supervisor.leftovers import sweep_leftovers
from tests.conftest import eventually

STUBBORN = """
import ctypes, os, signal, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # a child subreaper, as instances are
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[1:]:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def _dead() -> ProcessIdentity:
    """A process that was ours, and is gone."""
    process = subprocess.Popen(["sleep", "600"])
    identity = ProcessIdentity.of(process.pid)
    process.kill()
    process.wait()
    return identity


@contextlib.contextmanager
def _program(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def _segment(directory: Path, owner: ProcessIdentity, *instances: tuple[int, int], alive: bool = True) -> Path:
    """One that `owner` left, with a row for each process: pid and start time."""
    layout = Layout.plan(2, ["t"], 1024, rows=8)
    epoch = time.time_ns() // 1_000_000
    with contextlib.closing(Segment.create(directory, "p", layout, epoch, owner.pid, owner.start_ticks)) as segment:
        table = InstancesTable(segment)
        for pid, ticks in instances:
            row = table.open_row(0).row
            table.set_process(row, pid, ticks)
            if not alive:
                table.close_row(row)
        assert segment.path is not None
        return segment.path


def test_an_instance_that_lives_is_ended_with_all_that_is_its(tmp_path: Path) -> None:
    with _program(STUBBORN) as process:
        identity = ProcessIdentity.of(process.pid)
        children = [ProcessIdentity.of(pid) for pid in eventually(lambda: children_of(process.pid))]
        path = _segment(tmp_path, _dead(), (identity.pid, identity.start_ticks), (0, 0))
        sweep_leftovers(tmp_path, "p")
        assert not path.exists()
        assert process.wait(10) == -9
        assert not any(identity.alive() for identity in children)


@pytest.mark.parametrize("case", ["another process by now", "a row that was closed", "another pool", "an owner alive"])
def test_nobody_else_is_touched(tmp_path: Path, case: str) -> None:
    with _program() as process:
        pid, ticks = process.pid, start_ticks(process.pid) or 0
        owner = ProcessIdentity.of(os.getpid()) if case == "an owner alive" else _dead()
        ticks += case == "another process by now"
        path = _segment(tmp_path, owner, (pid, ticks), alive=case != "a row that was closed")
        sweep_leftovers(tmp_path, "q" if case == "another pool" else "p")
        time.sleep(0.05)
        assert process.poll() is None
        assert path.exists() == (case in {"another pool", "an owner alive"})


def test_a_segment_that_was_never_finished_goes_as_well(tmp_path: Path) -> None:
    path = _segment(tmp_path, _dead())
    content = path.read_bytes()
    os.truncate(path, len(content) // 2)
    sweep_leftovers(tmp_path, "p")
    assert not path.exists()
