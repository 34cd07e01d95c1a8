"""What it takes to start a process: the small interface between `ProcessRuntime` and the warden.

`ProcessRuntime` fills in a `LaunchSpec` and hands it to a `Launcher`; the warden fulfils it (a test may use another).
A launch is named by a number of the caller's choice; `Launched` or `LaunchFailed` answers it, `Exited` ends it.
"""

from __future__ import annotations

from typing import Protocol

from spearpool.channel import MAX_RECORD_BYTES
from spearpool.config import ResourceLimits
from spearpool.packing import Record

__all__ = [
    "MAX_SPEC_BYTES",
    "Exited",
    "ForkSpec",
    "LaunchFailed",
    "LaunchSpec",
    "Launched",
    "Launcher",
    "ZygoteReady",
    "ZygoteSpec",
]

MAX_SPEC_BYTES = MAX_RECORD_BYTES - 4096
"""What a control record has room for, beside the `SPEAR_*` variables, keys and the like that are added to it."""


class LaunchSpec(Record, frozen=True):
    """Execute a program: own session and process group, child subreaper, parent-death signal, limits, then exec.

    `cgroup` is the directory of the control group that it enters, if any.
    """

    argv: list[str]
    environ: dict[str, str]
    working_dir: str
    limits: ResourceLimits
    cgroup: str = ""


class ZygoteSpec(Record, frozen=True):
    """Start a warmed interpreter for Python instances. `target` is `module:function`, or `""` for the exec runner."""

    target: str
    environ: dict[str, str]
    working_dir: str


class ForkSpec(Record, frozen=True):
    """Fork an instance from the zygote `zygote`; `argv` is the program of the exec runner, else empty."""

    zygote: int
    argv: list[str]
    environ: dict[str, str]
    working_dir: str
    limits: ResourceLimits
    cgroup: str = ""


class Launched(Record, frozen=True):
    """The process exists. `start_ticks` with `pid` is its identity; comes with its pidfd.

    `forked_ns` is the monotonic clock, which is the same in all processes, just before the fork: so nothing that the
    process ever did was earlier.
    """

    launch: int
    pid: int
    start_ticks: int
    forked_ns: int


class LaunchFailed(Record, frozen=True):
    """There is no process; `reason` says why (an import error carries its traceback)."""

    launch: int
    reason: str


class ZygoteReady(Record, frozen=True):
    """The zygote has imported its target and can fork."""

    launch: int


class Exited(Record, frozen=True):
    """The process was reaped: `code` if it exited, `signal` if it was killed (the other is None)."""

    launch: int
    pid: int
    code: int | None
    signal: int | None

    @property
    def returncode(self) -> int | None:
        """As of `subprocess`: the exit code, or minus the signal."""
        return self.code if self.signal is None else -self.signal


class Launcher(Protocol):
    """What the warden does for `ProcessRuntime`. Output goes to the file behind `log_fd`, which stays the caller's."""

    def launch(self, launch: int, spec: LaunchSpec | ZygoteSpec | ForkSpec, log_fd: int) -> None: ...

    def signal_group(self, launch: int, signum: int) -> None:
        """Send a signal to the process group of a launch; nothing happens when it is gone."""
        ...

    def signal_tree(self, launch: int, signum: int) -> None:
        """The same to the process and all its descendants."""
        ...

    def kill_tree(self, launch: int) -> None:
        """SIGKILL the process and all its descendants, daemonised ones included."""
        ...
