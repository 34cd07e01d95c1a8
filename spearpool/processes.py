"""Processes of this machine, seen through /proc: who they are, whose children they are, and how to end them.

A pid alone is not an identity: it is used again. `ProcessIdentity` adds the start time. Every function treats a zombie
as dead: it runs no code, holds nothing but its exit status, and has no children.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ProcessIdentity",
    "become_subreaper",
    "children_of",
    "cpu_seconds",
    "descendants",
    "host_free_bytes",
    "kill_descendants",
    "kill_tree",
    "own_children",
    "pidfd_open",
    "private_bytes",
    "set_parent_death_signal",
    "signal_tree",
    "start_ticks",
    "tree_of",
    "wait_gone",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl  # looked up here, once, and not in each forked child
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_RESCAN_S = (0.001, 0.05)  # first and longest pause between two rounds of kill_descendants


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for good: its pid and its start time in clock ticks since boot."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Raises `ProcessLookupError` when there is no such process."""
        ticks = start_ticks(pid)
        if ticks is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, ticks)

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        stat = _read_stat(self.pid)
        return stat is not None and stat.start_ticks == self.start_ticks and not stat.dead


def start_ticks(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when there is no such process."""
    stat = _read_stat(pid)
    return None if stat is None else stat.start_ticks


def private_bytes(pid: int) -> int:
    """Memory that `pid` holds and that is no file's nor a shared segment's, in bytes; 0 when there is no such process.

    What a fork shares with its parent until one of them writes to it counts as well.
    """
    try:
        fields = Path(f"/proc/{pid}/statm").read_bytes().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def host_free_bytes() -> int:
    """Memory that new processes could use without swapping, by the kernel's own estimate."""
    text = Path("/proc/meminfo").read_bytes()
    return int(text.partition(b"MemAvailable:")[2].split(maxsplit=1)[0]) * 1024


def children_of(pid: int) -> list[int]:
    """The living children of `pid`, as one scan of /proc sees them."""
    return [stat.pid for stat in _scan() if stat.parent == pid]


def own_children() -> list[int]:
    """The children of the calling thread, those included that are dead and wait to be reaped.

    Much cheaper than a scan, and exact as long as nobody else reaps them: the kernel adds to its list at the end only.
    """
    try:
        return [int(word) for word in Path("/proc/thread-self/children").read_bytes().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return children_of(os.getpid())


def descendants(pid: int, spare: Collection[int] = ()) -> list[int]:
    """The living descendants of `pid`, parents before children; those in `spare` and all below them are left out.

    One scan of /proc is not a snapshot: it can miss a process that is born, or whose parent dies, while it runs.
    """
    children: dict[int, list[int]] = {}
    for stat in _scan():
        children.setdefault(stat.parent, []).append(stat.pid)
    found: list[int] = []
    parents = [pid]
    while parents:
        parents = [child for parent in parents for child in children.pop(parent, ()) if child not in spare]
        found += parents
    return found


def kill_descendants(root_pid: int, spare: Collection[int] = (), timeout_s: float = 5.0) -> list[int]:
    """SIGKILL every descendant of `root_pid`, again and again until none is left; `spare` as in `descendants`.

    Orphans are only found when `root_pid` is their child subreaper. Returns those that could not be ended in time:
    processes in uninterruptible sleep, or of another user.
    """
    deadline = time.monotonic() + timeout_s
    pause_s, longest_s = _RESCAN_S
    empty_scans = 0
    while True:
        alive = descendants(root_pid, spare)
        for pid in alive:
            _send(pid, signal.SIGKILL)
        # A process whose parent died during the scan was under neither parent: only two empty scans in a row count.
        empty_scans = 0 if alive else empty_scans + 1
        if empty_scans == 2 or time.monotonic() > deadline:
            return alive
        if alive:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)


def tree_of(pid: int) -> list[int]:
    """A process and its descendants by the kernel's lists of children, parents first; with the same gaps as a scan."""
    tree = [pid]
    for member in tree:  # grows as we go
        tree += _listed_children(member)
    return tree


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and the children that it has reaped have used; 0 when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as below
            text = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    return sum(map(int, text[text.rindex(b")") + 2 :].split()[11:15])) / _TICKS_PER_S


def kill_tree(pid: int) -> None:
    """SIGKILL a process and its descendants, in one cheap round that never waits.

    It follows the kernel's lists of children instead of scanning /proc. What is born meanwhile, or is in a list that
    changes while it is read, escapes and comes to the nearest child subreaper as an orphan.
    """
    for member in tree_of(pid):
        _send(member, signal.SIGKILL)


def signal_tree(pid: int, signum: int) -> None:
    """Send a signal to a process and its descendants, parents first: who has been stopped has no more children.

    It is `kill_tree`'s one round, and what is born meanwhile may escape it.
    """
    tree = [pid]
    for member in tree:  # grows as we go
        _send(member, signum)
        tree += _listed_children(member)


def set_parent_death_signal(signum: int, expected_parent: int) -> None:
    """Have the kernel send us `signum` when the thread that forked us ends; at once when it has ended already.

    A change of user or a set-user-id program clears it.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != expected_parent:
        signal.raise_signal(signum)


def become_subreaper() -> None:
    """Adopt every orphan among our descendants, in place of init. Children do not inherit this."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def pidfd_open(process: ProcessIdentity) -> int:
    """A descriptor (close-on-exec) that polls readable when the process has ended. Raises `ProcessLookupError`."""
    pidfd = os.pidfd_open(process.pid)
    if start_ticks(process.pid) != process.start_ticks:
        os.close(pidfd)
        raise ProcessLookupError(f"process {process.pid} is another one by now")
    return pidfd


def wait_gone(process: ProcessIdentity, timeout_s: float) -> bool:
    """Wait until the process has ended (it need not be our child, and is not reaped). False after `timeout_s`."""
    try:
        pidfd = pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    state: bytes
    parent: int
    threads: int
    start_ticks: int

    @property
    def dead(self) -> bool:
        # A main thread that ended before its siblings shows as a zombie, too, but its process still runs.
        return self.state in {b"Z", b"X"} and self.threads <= 1


def _read_stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - scanned by the hundred: Path costs more than the read
            text = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # gone, or hidden from us by the mount option hidepid
    fields = text[text.rindex(b")") + 2 :].split()  # the name in parentheses may itself hold spaces and parentheses
    return _Stat(pid, fields[0], int(fields[1]), int(fields[17]), int(fields[19]))


def _scan() -> Iterator[_Stat]:
    """All living processes that /proc shows us."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - as above
        if name.isdecimal():
            stat = _read_stat(int(name))
            if stat is not None and not stat.dead:
                yield stat


def _listed_children(pid: int) -> list[int]:
    gone = suppress(FileNotFoundError, ProcessLookupError)
    threads: list[str] = []
    with gone:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - as above
    children: list[int] = []
    for thread in threads:
        with gone:
            children += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
    return children


def _send(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone meanwhile, or reported as a survivor
        os.kill(pid, signum)


def _prctl(option: int, argument: int) -> None:
    if _PRCTL(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
