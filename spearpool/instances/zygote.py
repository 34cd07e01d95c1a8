"""A warmed interpreter that forks Python instances in milliseconds: `python -m spearpool.instances.zygote FD TARGET`.

It imports the agent and the task's own module once, then forks an instance per `Fork` record. It forks *twice*: the
process between ends at once, so that the instance becomes a child of the warden (the nearest child subreaper), which
alone reaps, and which the instance must not outlive. The order is what makes this safe:

1. the process between sends `Forked` (the instance's pid) to the warden and exits;
2. only by that exit does the instance become the warden's child, so the warden can read who it is before it can meet
   it as a stranger and take it for an orphan;
3. the instance waits for its new parent, arms its parent-death signal, takes its limits, closes the status pipe (its
   end of file is the warden's sign that the instance runs), and only then calls the task's code.

An instance leaves `main` by the same road as any Python program: `atexit` hooks run, and output is flushed.
A process that forks must have one thread: a lock held by another thread would stay locked in the child for good. So a
target whose import starts a thread is refused, with words, instead of hanging now and then.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import pkgutil
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from spearpool.channel import ChannelClosed

from .confine import ConfinementError, confine_instance, report_failure
from .launch import ForkSpec
from .zygote_messages import Fork, Forked, FromZygote, Imported, ImportFailed, ZygoteEnd, zygote_end

__all__ = ["command", "main"]

Job = Callable[[list[str]], object]
"""What an instance does: serve a handler, or run the program given by its `argv`."""

_ADOPTION_POLL_S = 0.0001
_THREADS_GRACE_S = 0.2  # a thread that was joined may still be listed for a moment
_MAX_TRACEBACK = 32 * 1024
_IMPORT_FRAMES = {
    __file__,
    pkgutil.__file__,
    importlib.__file__,
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
}
"""Files that every failed import passes through before it reaches the task's own code."""


class _Unforkable(Exception):
    """The target was imported, but this process must not fork now."""


def command(fd: int, target: str) -> list[str]:
    """The command line of a zygote. `-P`: no module in the task's directory may take the place of one of ours."""
    return [sys.executable, "-P", "-m", "spearpool.instances.zygote", str(fd), target]


def main(fd: int, target: str) -> int:
    """Serve the warden over the socket `fd`. Returns in the zygote when the warden is gone, and in each instance."""
    os.set_inheritable(fd, False)
    channel = zygote_end(socket.socket(fileno=fd))
    sys.argv = [target]
    sys.path.insert(0, str(Path.cwd()))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's import would start threads
    try:
        job = _load(target)
        _check_single_threaded()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the target's import may raise anything
        _send(channel, ImportFailed(_explain(error)))
        return 1
    gc.collect()
    gc.freeze()  # the collector of an instance leaves our objects alone, and their pages shared
    _send(channel, Imported())
    try:
        spec = _serve(channel)
    except ChannelClosed:
        return 0
    job(spec.argv)
    return 0


def _load(target: str) -> Job:
    """Import everything an instance needs. The agent comes first: a module of the task must not take its place."""
    from spearpool import agent

    if not target:
        from spearpool.agent import runner

        return runner.run_program
    handler = pkgutil.resolve_name(target)
    if not callable(handler):
        raise TypeError(f"{target} is not callable, but {type(handler).__name__!r}; a handler takes one Request")
    return lambda _argv: agent.serve(handler)


def _check_single_threaded() -> None:
    deadline = time.monotonic() + _THREADS_GRACE_S
    while (count := len(os.listdir("/proc/self/task"))) > 1:  # noqa: PTH208 - a kernel directory
        if time.monotonic() > deadline:
            raise _Unforkable(
                f"importing this target leaves {count} threads running, and a process with threads cannot be forked"
                " safely: start them in the handler's first call instead, or run the program as an agent: task"
            )
        time.sleep(0.005)


def _explain(error: BaseException) -> str:
    if isinstance(error, _Unforkable):
        return str(error)
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in _IMPORT_FRAMES:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))[-_MAX_TRACEBACK:]


def _serve(channel: ZygoteEnd) -> ForkSpec:
    """Fork for each request; returns its spec in the instance. Raises `ChannelClosed` when the warden is gone."""
    while True:
        select.select([channel], [], [])
        received = channel.receive()
        if received is None:
            continue
        request, (log_fd, status_fd) = received
        try:
            if _fork(channel, request, log_fd, status_fd):
                return request.spec
        finally:
            os.close(log_fd)
            os.close(status_fd)


def _fork(channel: ZygoteEnd, request: Fork, log_fd: int, status_fd: int) -> bool:
    """Fork twice. True in the instance, once it is confined; False in the zygote."""
    warden = os.getppid()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        between = os.fork()
    except OSError as error:
        report_failure(status_fd, f"cannot fork: {error.strerror}")
        return False
    if between:
        os.waitpid(between, 0)
        return False
    between = os.getpid()
    _fork_again_and_end(channel, request.launch, status_fd)
    channel.close()
    _become_instance(request.spec, log_fd, status_fd, between, warden)
    return True


def _fork_again_and_end(channel: ZygoteEnd, launch: int, status_fd: int) -> None:
    """The whole life of the process between; returns in the instance alone."""
    forked_ns = time.monotonic_ns()
    try:
        instance = os.fork()
    except OSError as error:
        report_failure(status_fd, f"cannot fork: {error.strerror}")
        os._exit(1)
    if instance:
        try:
            _send(channel, Forked(launch, instance, forked_ns))
        finally:
            os._exit(0)


def _become_instance(spec: ForkSpec, log_fd: int, status_fd: int, between: int, warden: int) -> None:
    try:
        while os.getppid() == between:
            time.sleep(_ADOPTION_POLL_S)
        confine_instance(spec, parent=warden, log_fd=log_fd)
        _check_memory(spec.limits.memory_bytes)
    except ConfinementError as error:
        report_failure(status_fd, str(error))
        os._exit(1)
    os.environ.clear()
    os.environ.update(spec.environ)
    _refresh_interpreter()


def _refresh_interpreter() -> None:
    """What instances of one zygote must not share. Python itself re-seeds `random` after a fork; numpy does not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a log is read while the instance runs


def _check_memory(limit: int | None) -> None:
    """A limit below what the zygote's imports hold already would end the instance at its next allocation."""
    if limit is None:
        return
    status = Path("/proc/self/status").read_bytes()  # as text, it would load a codec in each child
    held = int(status.partition(b"VmData:")[2].split(maxsplit=1)[0]) * 1024
    if held >= limit:
        raise ConfinementError(f"limits.memory_bytes = {limit}: the imports of this task hold {held} bytes already")


def _send(channel: ZygoteEnd, record: FromZygote) -> None:
    """Send and wait until it is gone: unlike the warden, a zygote may block."""
    channel.send(record)
    while channel.wants_write:
        select.select([], [channel], [])
        channel.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
