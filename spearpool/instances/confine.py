"""What a child process does between its fork and its program: become its own session, take its limits, or say why not.

Runs in a fresh fork of a single-threaded process (the warden, or a zygote), so ordinary Python is safe here, and there
is no `preexec_fn`. A failure is no exit: it travels as text through a close-on-exec pipe, the *status pipe*, whose end
of file without any text means that the program runs.

Limits are the kernel's (`setrlimit`), per process, inherited by what the program starts:

- `memory_bytes` is RLIMIT_DATA: private writable memory (heap, anonymous and private writable mappings, the stacks of
  threads). RLIMIT_AS was rejected: it counts address space that costs nothing, mapped files and what runtimes such as
  Go, Java, V8 or CUDA merely reserve by the gigabyte, so a limit that means something kills them at start. Shared
  memory and the page cache are not counted by RLIMIT_DATA.
- `cpu_seconds` is RLIMIT_CPU: SIGXCPU at the limit, SIGKILL a second later.
- `file_size_bytes` is RLIMIT_FSIZE: SIGXFSZ, or an error where that is ignored (as Python does), for a write beyond it,
  into whatever file: its log is one.
- `open_files` is RLIMIT_NOFILE, `nice` an absolute value, `cpu_affinity` a set of CPUs. Core dumps are always off.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from spearpool.config import ResourceLimits
from spearpool.processes import become_subreaper, set_parent_death_signal

from .launch import ForkSpec, LaunchSpec

__all__ = [
    "ConfinementError",
    "close_inherited",
    "confine",
    "confine_instance",
    "execute",
    "fork_child",
    "report_failure",
    "reset_signals",
    "status_pipe",
]

_MAX_REASON_BYTES = 32 * 1024  # below a pipe's capacity: the write never blocks

_PROGRAM_ERRORS = {
    errno.ENOENT: "there is no such program",
    errno.ENOTDIR: "there is no such program",
    errno.EACCES: "it is not an executable file, or its directory may not be entered",
    errno.ENOEXEC: "it is neither a binary for this machine nor a script with a #! line",
    errno.E2BIG: "its arguments and environment are too long",
    errno.ETXTBSY: "its file is being written to",
}


class ConfinementError(Exception):
    """The child cannot become what it should; the text says what was asked for and why it cannot be."""


def fork_child(become: Callable[[], NoReturn], keep: Collection[int]) -> tuple[int, int]:
    """Fork a child that keeps the descriptors `keep` and runs `become`; returns its pid and its status pipe to read.

    Raises `OSError` when there is no room for another process.
    """
    status_fd, status_writer = status_pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(status_fd)
        raise
    else:
        if pid == 0:
            _run_child(become, status_writer, keep)
    finally:
        os.close(status_writer)
    return pid, status_fd


def status_pipe() -> tuple[int, int]:
    """A new status pipe: its end to read and its end to write, neither of which blocks."""
    return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)


def _run_child(become: Callable[[], NoReturn], status_fd: int, keep: Collection[int]) -> NoReturn:
    try:
        reset_signals()
        close_inherited({*keep, status_fd})
        become()
    except ConfinementError as error:
        report_failure(status_fd, str(error))
    except BaseException as error:  # noqa: BLE001 - the outer edge of this process; it must not return to the parent's
        report_failure(status_fd, f"{type(error).__name__}: {error}")
    finally:
        os._exit(127)


def confine(
    *, parent: int, working_dir: str, limits: ResourceLimits, log_fd: int, subreaper: bool, cgroup: str = ""
) -> None:
    """Make the calling child a process of its own: raises `ConfinementError`, then the child must exit.

    `parent` is the pid of the process whose death ends this one. A `subreaper` adopts its own orphans, so that its
    whole tree can be found. `cgroup` is the directory of a control group to enter. The memory limit comes last: from
    then on little may be allocated.
    """
    set_parent_death_signal(signal.SIGKILL, parent)
    os.setsid()
    if subreaper:
        become_subreaper()
    _redirect(log_fd)
    if cgroup:
        with _explained(f"control group {cgroup}"):
            Path(cgroup, "cgroup.procs").write_text("0")
    with _explained(f"working directory {working_dir!r}"):
        os.chdir(working_dir)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, apply in _LIMITS.items():
        value = getattr(limits, name)
        if value is not None:
            with _explained(f"limits.{name} = {value!r}"):
                apply(value)


def confine_instance(spec: LaunchSpec | ForkSpec, *, parent: int, log_fd: int) -> None:
    """`confine`, as the launch of an instance says."""
    confine(
        parent=parent,
        working_dir=spec.working_dir,
        limits=spec.limits,
        log_fd=log_fd,
        subreaper=True,
        cgroup=spec.cgroup,
    )


def execute(argv: list[str], environ: dict[str, str]) -> NoReturn:
    """Replace the process by a program, looked up in the `PATH` of `environ`. Raises `ConfinementError`."""
    try:
        os.execvpe(argv[0], argv, environ)
    except OSError as error:
        reason = _PROGRAM_ERRORS.get(error.errno or 0, error.strerror or str(error))
        if error.errno == errno.ENOENT and "/" in argv[0] and Path(argv[0]).exists():
            reason = "the interpreter named in its first line does not exist"
        raise ConfinementError(f"cannot execute {argv[0]!r}: {reason}") from None
    except ValueError as error:  # a NUL or an equals sign where none may be
        raise ConfinementError(f"cannot execute {argv[0]!r}: {error}") from None


def close_inherited(keep: Collection[int]) -> None:
    """Close all descriptors but `keep` and the standard three.

    One control end left open would hide an end of file that others wait for. Objects that own the descriptors closed
    here must never be collected in this process, lest they close a number that is in use again: the parent's frames,
    which are still below us on the stack, hold them.
    """
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - a kernel directory
        if fd > 2 and fd not in keep:
            with suppress(OSError):  # the one that listed the directory
                os.close(fd)


def reset_signals(ignore: Collection[int] = ()) -> None:
    """Default disposition for every signal but those to `ignore`, and none blocked. Programs inherit what is ignored.

    A signal that was ignored and is to be ignored is so all the time.
    """
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        disposition = signal.SIG_IGN if signum in ignore else signal.SIG_DFL
        if signal.getsignal(signum) is not disposition:
            signal.signal(signum, disposition)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def report_failure(status_fd: int, reason: str) -> None:
    """Tell the warden through the status pipe why there will be no program; the end of a long text is kept."""
    with suppress(OSError):  # the warden is gone: so are we, soon
        os.write(status_fd, reason.encode("utf-8", "replace")[-_MAX_REASON_BYTES:])


def _redirect(log_fd: int) -> None:
    """stdin from /dev/null, stdout and stderr to the log."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)


@contextmanager
def _explained(wish: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfinementError(f"{wish}: {error.strerror}") from None
    except (ValueError, OverflowError) as error:  # a hard limit may not be exceeded, or no such limit can be told
        raise ConfinementError(f"{wish}: {error}") from None


def _limit_open_files(count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
    except ValueError:
        raise ValueError(f"this user may have at most {hard} open files (ulimit -Hn)") from None


def _limit_memory(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (count, count))


_LIMITS: dict[str, Callable[..., None]] = {
    "open_files": _limit_open_files,
    "cpu_seconds": lambda seconds: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1)),
    "file_size_bytes": lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    "nice": lambda value: os.setpriority(os.PRIO_PROCESS, 0, value),
    "cpu_affinity": lambda cpus: os.sched_setaffinity(0, cpus),
    "memory_bytes": _limit_memory,
}
"""How each field of `ResourceLimits` is put in force, in this order."""
