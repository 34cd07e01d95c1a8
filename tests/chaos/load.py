"""The load processes as the harness sees them."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from .crowd import Account, Assignment, Times

__all__ = ["Load", "started_load"]

READY_S = 30.0
ROOT = Path(__file__).resolve().parents[2]


class Load:
    """Processes whose residents are connected. `begin`, then `accounts`."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def begin(self, times: Times) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(times)) + "\n")
            process.stdin.flush()

    def accounts(self, deadline_s: float) -> list[Account]:
        """What each has seen, when all are done. Raises `RuntimeError` when one died or is not done by then."""
        return [Account(**json.loads(_line(process, deadline_s))) for process in self._processes]


@contextlib.contextmanager
def started_load(assignments: Sequence[Assignment], environ: Mapping[str, str]) -> Iterator[Load]:
    """A process per assignment; gone at the end. Raises `RuntimeError` when one does not get its residents in."""
    processes: list[subprocess.Popen[str]] = []
    try:
        for assignment in assignments:
            command = [sys.executable, "-m", "tests.chaos.crowd"]
            process = subprocess.Popen(
                command, text=True, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(assignment)) + "\n")
            process.stdin.flush()
        for process in processes:
            _line(process, time.monotonic() + READY_S)
        yield Load(processes)
    finally:
        for process in processes:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.communicate()


def _line(process: subprocess.Popen[str], deadline_s: float) -> str:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
        raise RuntimeError("a load process was not done in time")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a load process ended with {process.wait()}; its reason stands above")
    return line
