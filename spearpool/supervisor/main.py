"""From a checked configuration to a running pool: what `spearpool start` calls.

The order matters. Signals are held first of all. Programs are looked for before anything exists. The warden is forked
before anything heavy is imported and before there is any socket, lock or key that its children could inherit. Only then
comes the supervisor, which heeds the signals while it serves.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spearpool import log
from spearpool.config import Settings
from spearpool.instances.artifact import check_tasks
from spearpool.processes import become_subreaper
from spearpool.runtime_dir import RuntimeDir, StateDir

from . import signals
from .activation import given_listener
from .plans import check_budget
from .warden import Warden

__all__ = ["run"]


def run(
    settings: Settings,
    environ: Mapping[str, str],
    state_dir: Path | None,
    announce: Callable[[dict[str, Any]], None],
    lifeline_fd: int | None = None,
    reread: Callable[[], Settings] | None = None,
) -> None:
    """Run a pool until it is told to stop; returns when nothing of it is left. Takes the process over: signals are held
    before and after.

    `announce` is called once, with the values of the ready line. `lifeline_fd`: end of file on it stops the pool.
    `reread` reads the configuration again, for a reload; without it a reload takes the one that there is.
    Raises `ConfigError` before anything is forked, `PoolError` when the pool cannot be started or has broken down.
    """
    signals.hold()
    log.configure("supervisor", json_lines=not sys.stderr.isatty(), stream=sys.stderr)
    check_tasks(settings)
    check_budget(settings)
    runtime_dir = RuntimeDir.locate(settings.pool.name, environ)
    state = StateDir.locate(settings.pool.name, environ, state_dir)
    given = given_listener(environ, os.getpid())
    become_subreaper()
    warden = Warden.start(settings.pool.name, _worker, preload=["spearpool.worker.main"])
    try:
        from .supervisor import Supervisor

        supervisor = Supervisor(
            settings, environ, warden, runtime_dir, state, announce, lifeline_fd, reread or (lambda: settings), given
        )
        asyncio.run(supervisor.serve())
    finally:
        warden.close()


def _worker(control: socket.socket) -> int:
    """Runs in a fork of the warden, which has this module already."""
    os.dup2(2, 1)  # stdout is for the ready line; what a validator prints belongs into the log
    from spearpool.worker.main import run as run_worker

    return run_worker(control)
