"""The warden as the supervisor sees it: one process that forks, reaps and ends all others.

`Warden.start` must be the first act of the supervisor, before anything heavy is imported and before there is anything
that children should not inherit. The supervisor makes itself a child subreaper before that and, when `pidfd` says that
the warden is gone, ends with an error after `kill_descendants` of itself.

The only door of multiprocess and setproctitle.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import multiprocess
import setproctitle

from spearpool.channel import ChannelClosed
from spearpool.instances.confine import close_inherited, reset_signals
from spearpool.instances.launch import ForkSpec, LaunchSpec, ZygoteSpec
from spearpool.processes import become_subreaper, set_parent_death_signal

from .warden_messages import (
    FromWarden,
    KillTree,
    Launch,
    SignalGroup,
    SignalTree,
    SpawnWorker,
    SupervisorEnd,
    ToWarden,
    supervisor_end,
    warden_end,
)
from .warden_process import WardenProcess
from .wards import WorkerProcess

__all__ = ["Warden", "WorkerMain"]

WorkerMain = Callable[[socket.socket], int]
"""Runs a worker over its control socket, and returns its exit code."""

_TERMINAL = {signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}  # the supervisor alone answers the terminal
_PYTHON_IGNORES = {signal.SIGPIPE, signal.SIGXFSZ}  # so that they become exceptions, as in any Python program
_END_S = 5.0  # the promise is 2 s

_fork = multiprocess.get_context("fork")


class Warden:
    """Starts and signals processes (a `Launcher`); reports what became of them through `on_readable`.

    Once the warden is gone, requests are dropped and `on_readable` raises `ChannelClosed`; `pidfd` polls readable.
    """

    def __init__(self, channel: SupervisorEnd, process: Any) -> None:
        self._channel = channel
        self._process = process
        self.pid: int = process.pid
        self.pidfd = os.pidfd_open(self.pid)

    @classmethod
    def start(cls, name: str, worker_main: WorkerMain, preload: Sequence[str] = ()) -> Warden:
        """Fork the warden of the pool `name`. It imports the modules `preload` at once, so that workers start warm."""
        ours, theirs = SupervisorEnd.pair()
        process = _fork.Process(target=_run_warden, args=(name, ours, theirs, worker_main, tuple(preload)))
        process.start()
        theirs.close()
        warden = cls(supervisor_end(ours), process)
        atexit.register(warden.close)  # else multiprocess waits for it at exit, and it for us
        return warden

    def fileno(self) -> int:
        return self._channel.fileno()

    @property
    def wants_write(self) -> bool:
        """Requests wait for room in the socket: call `flush` when `fileno()` is writable."""
        return self._channel.wants_write

    def flush(self) -> None:
        with suppress(ChannelClosed):
            self._channel.flush()

    def on_readable(self) -> list[tuple[FromWarden, int | None]]:
        """All reports that have come in. Each `Launched` brings a pidfd, which is the caller's to close."""
        reports: list[tuple[FromWarden, int | None]] = []
        try:
            while (received := self._channel.receive()) is not None:
                record, fds = received
                reports.append((record, fds[0] if fds else None))
        except ChannelClosed:
            if not reports:
                raise
        return reports

    def spawn_worker(self, launch: int, control: socket.socket, name: str) -> None:
        """Fork a worker; `control` stays the caller's."""
        self._request(SpawnWorker(launch, name), control.fileno())

    def launch(self, launch: int, spec: LaunchSpec | ZygoteSpec | ForkSpec, log_fd: int) -> None:
        """`ValueError` when the spec (arguments and environment) exceeds a control record's size."""
        self._request(Launch(launch, spec), log_fd)

    def signal_group(self, launch: int, signum: int) -> None:
        self._request(SignalGroup(launch, signum))

    def signal_tree(self, launch: int, signum: int) -> None:
        self._request(SignalTree(launch, signum))

    def kill_tree(self, launch: int) -> None:
        self._request(KillTree(launch))

    def close(self) -> None:
        """End the warden and, by that, every process it started; returns when they are gone."""
        if self.pidfd < 0:
            return
        atexit.unregister(self.close)
        self._channel.close()
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(_END_S * 1000):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._process.join()
        with suppress(ValueError):  # somebody else has reaped it
            self._process.close()
        os.close(self.pidfd)
        self.pidfd = -1

    def _request(self, request: ToWarden, *fds: int) -> None:
        with suppress(ChannelClosed):
            self._channel.send(request, fds)


def _run_warden(
    name: str, supervisors: socket.socket, wardens: socket.socket, worker_main: WorkerMain, preload: Sequence[str]
) -> None:
    supervisors.close()
    become_subreaper()
    reset_signals(ignore=_TERMINAL | _PYTHON_IGNORES | {signal.SIGTERM})  # it ends when the supervisor does
    setproctitle.setproctitle(f"spearpool: warden [{name}]")
    for module in preload:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # children's collectors leave our objects alone, and their pages shared
    WardenProcess(warden_end(wardens), partial(_fork_worker, worker_main)).run()


def _fork_worker(worker_main: WorkerMain, name: str, control: socket.socket) -> WorkerProcess:
    arguments = (worker_main, name, control, os.getpid())
    process: WorkerProcess = _fork.Process(target=_run_worker, args=arguments, name=f"worker {name}")
    process.start()
    return process


def _run_worker(worker_main: WorkerMain, name: str, control: socket.socket, warden: int) -> None:
    set_parent_death_signal(signal.SIGKILL, warden)
    reset_signals(ignore=_TERMINAL | _PYTHON_IGNORES)
    close_inherited({control.fileno()})
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    setproctitle.setproctitle(f"spearpool: worker {name}")
    sys.exit(worker_main(control))
