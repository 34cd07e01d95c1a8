"""A warden under test: asks for launches, collects every report by launch, and sees that nothing is left."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from spearpool.config import ResourceLimits
from spearpool.instances.launch import Exited, ForkSpec, Launched, LaunchFailed, LaunchSpec, ZygoteReady, ZygoteSpec
from spearpool.processes import ProcessIdentity
from spearpool.supervisor.warden import Warden
from spearpool.supervisor.warden_messages import FromWarden
from tests.conftest import deadline

__all__ = ["FACTS", "PATH", "Driver", "driving"]

R = TypeVar("R", Launched, LaunchFailed, ZygoteReady, Exited)

PATH = {"PATH": os.environ["PATH"]}

FACTS = """
import ctypes, json, os, resource, signal, sys
def pr_get(option):
    value = ctypes.c_int()
    ctypes.CDLL(None).prctl(option, ctypes.byref(value), 0, 0, 0)
    return value.value
def facts():
    status = dict(line.split(':', 1) for line in open('/proc/self/status'))
    return dict(
        pid=os.getpid(), ppid=os.getppid(), sid=os.getsid(0), pgid=os.getpgid(0),
        fds=sorted(int(fd) for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')),
        stdio=[os.readlink(f'/proc/self/fd/{fd}') for fd in range(3)],
        death_signal=pr_get(2), subreaper=pr_get(37), cwd=os.getcwd(), environ=dict(os.environ),
        ignored=int(status['SigIgn'], 16), blocked=int(status['SigBlk'], 16), threads=int(status['Threads']),
        core=resource.getrlimit(resource.RLIMIT_CORE), data=resource.getrlimit(resource.RLIMIT_DATA),
        cpu=resource.getrlimit(resource.RLIMIT_CPU), files=resource.getrlimit(resource.RLIMIT_NOFILE),
        nice=os.getpriority(os.PRIO_PROCESS, 0), affinity=sorted(os.sched_getaffinity(0)),
    )
"""
"""Python text that defines `facts()`: what a process can say about itself."""


def serve_orders(control: socket.socket) -> int:
    """The worker of these tests: does what it is told."""
    while order := control.recv(65536).decode():
        match order.split():
            case ["exit", code]:
                return int(code)
            case ["raise"]:
                raise RuntimeError("the worker is told to")
            case ["signal", number]:
                os.kill(os.getpid(), int(number))
            case ["facts"]:
                scope: dict[str, Any] = {}
                exec(FACTS, scope)
                title = Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode()
                control.send(json.dumps(scope["facts"]() | {"title": title}).encode())
            case ["modules"]:
                control.send(json.dumps(sorted(sys.modules)).encode())
    return 0


class Driver:
    """Owns a warden and all that it reported."""

    def __init__(self, warden: Warden, directory: Path) -> None:
        self.warden = warden
        self.log = directory / "log"
        self.directory = directory
        self.reports: list[FromWarden] = []
        self.pidfds: dict[int, int] = {}
        self._next = 0
        self._log_fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def close(self) -> None:
        self.warden.close()
        os.close(self._log_fd)
        for pidfd in self.pidfds.values():
            os.close(pidfd)

    def number(self) -> int:
        self._next += 1
        return self._next

    def worker(self, name: str = "0 [test]") -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(20)
        launch = self.number()
        with theirs:
            self.warden.spawn_worker(launch, theirs, name)
        return launch, ours

    def program(
        self,
        argv: Sequence[str],
        limits: ResourceLimits | None = None,
        environ: dict[str, str] = PATH,
        working_dir: Path | str | None = None,
    ) -> int:
        spec = LaunchSpec(list(argv), environ, str(working_dir or self.directory), limits or ResourceLimits())
        return self._launch(spec)

    def python(self, body: str, limits: ResourceLimits | None = None, environ: dict[str, str] = PATH) -> int:
        return self.program([sys.executable, "-c", body], limits, environ)

    def zygote(self, target: str) -> int:
        return self._launch(ZygoteSpec(target, PATH, str(self.directory)))

    def fork(self, zygote: int, environ: dict[str, str] = PATH, limits: ResourceLimits | None = None) -> int:
        return self._launch(ForkSpec(zygote, [], environ, str(self.directory), limits or ResourceLimits()))

    def _launch(self, spec: LaunchSpec | ZygoteSpec | ForkSpec) -> int:
        launch = self.number()
        self.warden.launch(launch, spec, self._log_fd)
        return launch

    def of(self, launch: int) -> list[FromWarden]:
        """All reports about a launch so far."""
        return [report for report in self.reports if report.launch == launch]

    def wait(self, launch: int, kind: type[R]) -> R:
        """The report of that kind; fails when another answer came instead."""
        self.until(lambda: self._find(launch, kind) or self._find(launch, Exited) or self._find(launch, LaunchFailed))
        found = self._find(launch, kind)
        assert found is not None, self.of(launch)
        return found

    def identity(self, launch: int) -> ProcessIdentity:
        report = self.wait(launch, Launched)
        return ProcessIdentity(report.pid, report.start_ticks)

    def until(self, condition: Callable[[], object], timeout_s: float = 20) -> None:
        end = deadline(timeout_s)
        while not condition():
            assert time.monotonic() < end, self.reports
            self.hear(0.05)

    def hear(self, timeout_s: float = 0) -> None:
        if not select.select([self.warden], [], [], timeout_s)[0]:
            return
        for record, pidfd in self.warden.on_readable():
            self.reports.append(record)
            assert (pidfd is not None) is isinstance(record, Launched)
            if pidfd is not None:
                self.pidfds[record.launch] = pidfd

    def lines(self, count: int = 1) -> list[str]:
        """The log, once it has that many lines."""
        self.until(lambda: self.log.read_text().count("\n") >= count)
        return self.log.read_text().splitlines()

    def _find(self, launch: int, kind: type[R]) -> R | None:
        return next((report for report in self.of(launch) if isinstance(report, kind)), None)


@contextmanager
def driving(directory: Path, preload: Sequence[str] = ()) -> Iterator[Driver]:
    driver = Driver(Warden.start("test", serve_orders, preload), directory)
    try:
        yield driver
    finally:
        driver.close()
