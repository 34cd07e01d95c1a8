"""The runner of `exec:` tasks: one run of a program per execution.

The request's arguments are appended to the program's own, its input is stdin, stdout is the output, and the exit code
is kept. A run is a process group: when the program itself has ended, or its time is up, or it is cancelled, whatever is
left of the group is killed, so that a background child that holds the pipes cannot hold the execution.
stderr goes on to our own stderr (the instance's log); its tail becomes the error of a failed run.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import IO

from spearpool.protocol.messages import ExecutionStatus

from .dial import MAX_MESSAGE_BYTES
from .request import Outcome, Request
from .serving import serve

__all__ = ["Program", "run_program"]

_CHUNK_BYTES = 64 * 1024
_TAIL_BYTES = 4096
_DRAIN_S = 1.0
"""How long the pipes are still read after the end, if a process that left the group holds them open."""


def run_program(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> None:
    """Serve executions by running `argv` for each. The programs get `environ` without its `SPEAR_*` variables."""
    serve(Program(argv, environ), environ=environ)


class Program:
    """A handler that runs a program. The `SPEAR_*` variables, our secret among them, are kept from it."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self._argv = list(argv)
        self._environ = {name: value for name, value in environ.items() if not name.startswith("SPEAR_")}
        self._starting = threading.Lock()
        self._running: set[int] = set()

    def __call__(self, request: Request) -> Outcome:
        try:
            process = self._start(request)
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            return Outcome(ExecutionStatus.FAILED, error=self._explain(request, error))
        run = _Run(process, request)
        try:
            return run.finish()
        finally:
            with self._starting:
                self._running.discard(process.pid)
            self._reap_orphans()

    def _start(self, request: Request) -> subprocess.Popen[bytes]:
        with self._starting:
            process = subprocess.Popen(
                [*self._argv, *request.args],
                bufsize=0,
                stdin=subprocess.PIPE if request.input else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environ | request.env,
                cwd=request.working_dir,
                process_group=0,
            )
            self._running.add(process.pid)
            return process

    def _explain(self, request: Request, error: OSError | ValueError) -> str:
        if not isinstance(error, OSError):
            return f"cannot start {self._argv[0]!r}: {error}"
        if request.working_dir is not None and error.filename == request.working_dir:
            return f"cannot start {self._argv[0]!r} in {request.working_dir!r}: {error.strerror}"
        return f"cannot start {self._argv[0]!r}: {error.strerror}; is it installed, executable and on the PATH?"

    def _reap_orphans(self) -> None:
        """An instance is a child subreaper: what a run left behind and has ended meanwhile is ours to collect."""
        with self._starting, suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in self._running:
                    return  # it has a thread of its own that waits for it
                os.waitpid(ended.si_pid, os.WNOHANG)


class _Run:
    """One process group from its start to its end."""

    def __init__(self, process: subprocess.Popen[bytes], request: Request) -> None:
        self._process = process
        self._request = request
        self._unfed = memoryview(request.input)
        self._output = bytearray()
        self._tail = bytearray()
        self._deadline = inf if request.deadline is None else request.deadline
        self._stopped: Outcome | None = None
        self._ended = False
        self._reaped = False
        self._killing = threading.Lock()

    def finish(self) -> Outcome:
        """Feed and read it until its end, and say how it ended."""
        with self._process as process:
            try:
                self._request.on_cancel(self._kill)
                self._exchange()
            finally:
                self._kill()
                with self._killing:  # from here on the number of the group may be somebody else's
                    self._reaped = True
                    code = process.wait()
        return self._outcome(code)

    def _outcome(self, code: int) -> Outcome:
        """A program that a signal ended gets the exit code that shells give it, 128 + the signal."""
        exit_code = code if code >= 0 else 128 - code
        if self._stopped is not None:
            return Outcome(self._stopped.status, bytes(self._output), self._stopped.error, exit_code)
        if code == 0:
            return Outcome(ExecutionStatus.COMPLETED, bytes(self._output), None, 0)
        how = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
        said = self._tail.decode("utf-8", "replace").strip()
        return Outcome(ExecutionStatus.FAILED, bytes(self._output), f"{how}: {said}" if said else how, exit_code)

    def _kill(self) -> None:
        with self._killing:
            if not self._reaped:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _stop(self, status: ExecutionStatus, error: str) -> None:
        self._stopped = self._stopped or Outcome(status, error=error)
        self._kill()

    # The pump: each descriptor has its method

    def _exchange(self) -> None:
        process = self._process
        pidfd = os.pidfd_open(process.pid)
        try:
            with selectors.PollSelector() as selector:
                selector.register(pidfd, selectors.EVENT_READ, self._on_exit)
                selector.register(_fd(process.stdout), selectors.EVENT_READ, self._on_output)
                selector.register(_fd(process.stderr), selectors.EVENT_READ, self._on_error)
                if process.stdin is not None:
                    os.set_blocking(process.stdin.fileno(), False)
                    selector.register(process.stdin.fileno(), selectors.EVENT_WRITE, self._on_room)
                self._pump(selector)
        finally:
            os.close(pidfd)

    def _pump(self, selector: selectors.BaseSelector) -> None:
        while selector.get_map():
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                if self._ended:
                    return  # a process that left the group holds the pipes
                self._stop(ExecutionStatus.TIMEOUT, "killed at its deadline")
                self._deadline = left_s = inf
            for key, _ in selector.select(None if left_s == inf else left_s):
                if not key.data(key.fd):
                    selector.unregister(key.fd)

    def _on_exit(self, _fd: int) -> bool:
        self._ended = True
        self._kill()
        self._unfed = self._unfed[:0]
        self._deadline = time.monotonic() + _DRAIN_S
        return False

    def _on_output(self, fd: int) -> bool:
        chunk = os.read(fd, _CHUNK_BYTES)
        if self._stopped is None:
            self._output += chunk
        if len(self._output) > MAX_MESSAGE_BYTES:
            self._output.clear()
            self._stop(ExecutionStatus.FAILED, f"the program wrote more than {MAX_MESSAGE_BYTES} bytes; killed")
        return bool(chunk)

    def _on_error(self, fd: int) -> bool:
        chunk = os.read(fd, _CHUNK_BYTES)
        with suppress(OSError):  # a full disk under the log is not the program's failure
            os.write(2, chunk)
        self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
        return bool(chunk)

    def _on_room(self, fd: int) -> bool:
        try:
            self._unfed = self._unfed[os.write(fd, self._unfed[:_CHUNK_BYTES]) :]
        except BrokenPipeError:  # it has read as much as it wanted
            self._unfed = self._unfed[:0]
        if not self._unfed:
            assert self._process.stdin is not None
            self._process.stdin.close()
        return bool(self._unfed)


def _fd(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    return pipe.fileno()
