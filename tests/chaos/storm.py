"""Carries out a schedule on a living pool, and notes what it did and when.

Signals go through descriptors of processes, so that a pid that is used again is never hit. Commands of the pool run one
after another beside the blows, as an operator would give them. At the end of the block every stopped process goes on.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Self

from spearpool.metrics.bus import ask
from spearpool.processes import ProcessIdentity, children_of, descendants, pidfd_open
from tests.integration.live_pool import Document, LivePool

from .load import ROOT
from .schedule import OPERATIONS, Blow, Kind

__all__ = ["Operation", "Storm", "Struck"]

ASK_S = 10.0
VICTIM_WITHIN_S = 10.0
LOOK_S = 0.005
OPERATION_S = 60.0


@dataclass(frozen=True, slots=True)
class Operation:
    """A command of the pool's that was run, from `began` on (wall clock seconds)."""

    words: str
    began: float
    seconds: float
    code: int
    said: str


@dataclass
class Struck:
    """What was done. A kill is (wall clock seconds, slot). `missed`: blows for which nobody was ready for long."""

    kills: list[tuple[float, int]] = field(default_factory=list)
    instances: int = 0
    zygotes: int = 0
    halts: int = 0
    freezes: int = 0
    operations: list[Operation] = field(default_factory=list)
    missed: int = 0


class Storm:
    """`with` it, then `run`, then `wait_for_operations`."""

    def __init__(self, pool: LivePool, ask_endpoint: str) -> None:
        self.struck = Struck()
        self._pool = pool
        self._endpoint = ask_endpoint
        self._killed: set[int] = set()  # incarnations
        self._hit: set[ProcessIdentity] = set()  # instances and zygotes
        self._stopped: dict[int, float] = {}  # descriptor of a process → when it goes on
        self._orders: queue.SimpleQueue[Blow | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self._operator = threading.Thread(target=self._operate)

    def __enter__(self) -> Self:
        self._operator.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._given_up.set()
        for pidfd in list(self._stopped):
            self._resume(pidfd)
        self.wait_for_operations()

    def run(self, blows: Sequence[Blow], begin_s: float) -> None:
        """Strike at their times, counted from the monotonic time `begin_s`; returns when the last one is over."""
        for blow in blows:
            self._let_go_on(begin_s + blow.at_s)
            match blow.kind:
                case Kind.KILL:
                    self._kill(blow)
                case Kind.INSTANCE:
                    self.struck.instances += self._kill_one_of(blow, self._instances)
                case Kind.ZYGOTE:
                    self.struck.zygotes += self._kill_one_of(blow, self._zygotes)
                case Kind.HALT:
                    self._halt(blow)
                case Kind.FREEZE:
                    self._freeze(blow)
                case Kind.RELOAD | Kind.SCALE:
                    self._orders.put(blow)
        self._let_go_on(max(self._stopped.values(), default=0.0))

    def wait_for_operations(self) -> None:
        """Until every command that was ordered has been carried out."""
        self._orders.put(None)
        self._operator.join()

    def status(self) -> Document:
        """What `status` says, without the cost of a process. Raises `SpearpoolError` and `TimeoutError`."""
        return ask(self._endpoint, "status", {}, ASK_S)

    # Blows

    def _kill(self, blow: Blow) -> None:
        victim = self._victim(blow)
        if victim is None:
            self.struck.missed += 1
            return
        slot, incarnation, pidfd = victim
        self._killed.add(incarnation)
        self.struck.kills.append((time.time(), slot))
        _send(pidfd, signal.SIGKILL)
        os.close(pidfd)

    def _kill_one_of(self, blow: Blow, find: Callable[[], list[int]]) -> bool:
        """SIGKILL one of those processes that `find` finds and that have not been hit yet."""
        end = time.monotonic() + VICTIM_WITHIN_S
        while time.monotonic() < end:
            found = [process for process in map(_identity, find()) if process and process not in self._hit]
            if found:
                victim = found[int(blow.chance * len(found))]
                with contextlib.suppress(ProcessLookupError):
                    pidfd = pidfd_open(victim)
                    self._hit.add(victim)
                    _send(pidfd, signal.SIGKILL)
                    os.close(pidfd)
                    return True
            time.sleep(LOOK_S)
        self.struck.missed += 1
        return False

    def _instances(self) -> list[int]:
        return [row["pid"] for row in self.status()["instances"] if row["state"] in {"ready", "busy"}]

    def _zygotes(self) -> list[int]:
        """The warden's children that run a zygote's program and are no instances, which are forked from it."""
        (warden,) = children_of(self._pool.process.pid)
        alike = [pid for pid in children_of(warden) if b"spearpool.instances.zygote" in _command_line(pid)]
        instances = {row["pid"] for row in self.status()["instances"]}
        return [pid for pid in alike if pid not in instances]

    def _halt(self, blow: Blow) -> None:
        victim = self._victim(blow)
        if victim is None:
            self.struck.missed += 1
            return
        _, _, pidfd = victim
        self._stopped[pidfd] = time.monotonic() + blow.hold_s
        _send(pidfd, signal.SIGSTOP)
        self.struck.halts += 1

    def _freeze(self, blow: Blow) -> None:
        """The supervisor first: it must not see the others stand still. It is the first to go on, too, and sees it."""
        supervisor = self._pool.process.pid
        end = time.monotonic() + blow.hold_s
        pidfds = []
        for pid in (supervisor, *descendants(supervisor)):
            try:
                pidfds.append(pidfd := os.pidfd_open(pid))
            except ProcessLookupError:
                continue
            self._stopped[pidfd] = end
            _send(pidfd, signal.SIGSTOP)
        self.struck.freezes += 1
        time.sleep(max(0.0, end - time.monotonic()))
        for pidfd in pidfds:
            self._resume(pidfd)

    def _victim(self, blow: Blow) -> tuple[int, int, int] | None:
        """Slot, incarnation and process descriptor of a ready worker."""
        end = time.monotonic() + VICTIM_WITHIN_S
        while time.monotonic() < end:
            workers = self.status()["workers"]
            ready = [row for row in workers if row["state"] == "ready" and row["incarnation"] not in self._killed]
            if ready:
                row = ready[int(blow.chance * len(ready))]
                try:
                    return row["slot"], row["incarnation"], os.pidfd_open(row["pid"])
                except ProcessLookupError:  # it died by itself, which the witness sees
                    pass
            time.sleep(LOOK_S)
        return None

    def _let_go_on(self, until_s: float) -> None:
        """Wait until then, and let those go on whose time has come by then."""
        while True:
            pidfd, at = min(self._stopped.items(), key=lambda item: item[1], default=(-1, inf))
            time.sleep(max(0.0, min(at, until_s) - time.monotonic()))
            if at > until_s:
                return
            self._resume(pidfd)

    def _resume(self, pidfd: int) -> None:
        del self._stopped[pidfd]
        _send(pidfd, signal.SIGCONT)
        os.close(pidfd)

    # Operations

    def _operate(self) -> None:
        while (blow := self._orders.get()) is not None:
            if not self._given_up.is_set():
                self.struck.operations.append(self._operation(blow))

    def _operation(self, blow: Blow) -> Operation:
        assert blow.kind in OPERATIONS
        words = [blow.kind.value, *([f"workers={blow.workers}"] if blow.workers else [])]
        command = [sys.executable, "-m", "spearpool", *words, "--name", self._pool.name]
        environ = self._pool.env.environ | {"PYTHONPATH": str(ROOT)}
        began, begin = time.time(), time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environ) as process:
            assert process.stderr is not None
            while process.poll() is None:
                if self._given_up.wait(LOOK_S) or time.monotonic() > begin + OPERATION_S:
                    process.kill()
            said = process.stderr.read().decode(errors="replace").strip()
        return Operation(" ".join(words), began, round(time.monotonic() - begin, 3), process.returncode, said)


def _identity(pid: int) -> ProcessIdentity | None:
    with contextlib.suppress(ProcessLookupError):
        return ProcessIdentity.of(pid)
    return None


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _send(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # killed while it was stopped
        signal.pidfd_send_signal(pidfd, number)
