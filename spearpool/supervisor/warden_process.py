"""What the warden does all day: fork what it is asked for, reap and report what ends, end everything at the end.

One thread, one selector, nothing that blocks. Four rules make its reports true:

- *Exactly one answer, then exactly one end.* A launch is pending until its status pipe ends (see `instances.confine`)
  or, for a zygote, until its target is imported; `Exited` is only ever sent after `Launched`.
- *Look, then reap.* The pidfd must be opened before the status is collected, so the dead are found by a waitid that
  leaves them in place. multiprocess polls its own children whenever it starts one, and would swallow the status of any
  worker that just ended; so a worker's status is always asked from its `Process`, which keeps it.
- *Whom we do not know is an orphan.* Every instance is a child subreaper, so a child that comes to us by itself lost
  its instance: its tree is killed. An instance from a zygote comes to us as well, but announced: we look at /proc
  first and listen to the zygotes after that, so the announcement of whoever we have seen has been heard.
- *No supervisor, no pool.* End of file on the channel (or the supervisor's pidfd, which cannot be delayed by requests
  that still wait in the channel): SIGKILL for every descendant, again and again until there is none.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import NoReturn

from spearpool.channel import ChannelClosed
from spearpool.config import ResourceLimits
from spearpool.instances import zygote_messages
from spearpool.instances.confine import confine, confine_instance, execute, fork_child, status_pipe
from spearpool.instances.launch import Exited, ForkSpec, Launched, LaunchFailed, LaunchSpec, ZygoteReady, ZygoteSpec
from spearpool.instances.lifecycle import describe_exit
from spearpool.instances.zygote import command as zygote_command
from spearpool.instances.zygote_messages import Fork, Forked, FromZygote, Imported, ImportFailed
from spearpool.packing import UnpackError
from spearpool.processes import ProcessIdentity, kill_descendants, kill_tree, own_children, signal_tree

from .warden_messages import FromWarden, KillTree, Launch, SignalGroup, SignalTree, SpawnWorker, ToWarden, WardenEnd
from .wards import Stage, Ward, Wards, WorkerProcess, Zygote

__all__ = ["WardenProcess"]

_END_S = 60.0  # then whoever is left is in uninterruptible sleep with SIGKILL pending, or not ours to kill
_MAX_PENDING = 500  # each holds a descriptor or two of ours
_MAX_FORKS_UNDER_WAY = 4  # per zygote, which does one at a time


class WardenProcess:
    """The warden. `fork_worker(name, control)` starts a worker as a child process of ours."""

    def __init__(self, channel: WardenEnd, fork_worker: Callable[[str, socket.socket], WorkerProcess]) -> None:
        self._channel = channel
        self._fork_worker = fork_worker
        self._wards = Wards()
        self._selector = selectors.DefaultSelector()
        self._supervisor = os.pidfd_open(os.getppid())
        self._wakeup, self._wakeup_writer = socket.socketpair()

    def run(self) -> None:
        """Returns when the supervisor is gone and every descendant with it."""
        try:
            self._listen()
            while True:
                for key, _ in self._selector.select():
                    key.data()
                self._watch_for_writing()
        except ChannelClosed:
            pass
        finally:
            kill_descendants(os.getpid(), timeout_s=_END_S)

    def _listen(self) -> None:
        for end in (self._wakeup, self._wakeup_writer):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, _take_note)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._supervisor, selectors.EVENT_READ, self._on_supervisor_ended)
        self._selector.register(self._channel, selectors.EVENT_READ, self._on_request)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_child_ended)

    def _watch_for_writing(self) -> None:
        """Flush what did not fit, and ask to be woken when more fits."""
        self._channel.flush()
        self._set_interest(self._channel)
        for _, zygote in self._wards.zygotes():
            with suppress(ChannelClosed):  # its end of file is heard like any other record
                zygote.channel.flush()
            self._set_interest(zygote.channel)

    def _set_interest(self, channel: WardenEnd | zygote_messages.WardenEnd) -> None:
        key = self._selector.get_key(channel)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.wants_write else 0)
        if key.events != events:
            self._selector.modify(channel, events, key.data)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _on_supervisor_ended(self) -> NoReturn:
        raise ChannelClosed("the supervisor ended")

    def _on_request(self) -> None:
        """One record per turn of the loop, so that an end of the supervisor is never behind a queue of launches."""
        received = self._channel.receive()
        if received is None:
            return
        request, fds = received
        try:
            self._perform(request, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _perform(self, request: ToWarden, fds: list[int]) -> None:
        match request:
            case SignalGroup(launch, signum):
                ward = self._wards.launched_as(launch)
                if ward is not None and ward.pid is not None:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(ward.pid, signum)
            case SignalTree(launch, signum):
                ward = self._wards.launched_as(launch)
                if ward is not None and ward.pid is not None:
                    signal_tree(ward.pid, signum)
            case KillTree(launch):
                ward = self._wards.launched_as(launch)
                if ward is not None:
                    self._kill(ward)
            case SpawnWorker(launch) | Launch(launch):
                ward = Ward(launch)
                self._wards.add(ward)
                try:
                    self._start(ward, request, fds[0])
                except OSError as error:
                    self._fail(ward, f"cannot start a process: {error.strerror}")

    def _start(self, ward: Ward, request: SpawnWorker | Launch, fd: int) -> None:
        if self._wards.pending > _MAX_PENDING:
            self._fail(ward, f"{_MAX_PENDING} other launches are under way")
            return
        match request:
            case SpawnWorker(_, name):
                forked_ns = time.monotonic_ns()
                with socket.socket(fileno=os.dup(fd)) as control:
                    ward.worker = self._fork_worker(name, control)
                assert ward.worker.pid is not None
                self._wards.name(ward, ward.worker.pid, forked_ns)
                self._answer_launched(ward)
            case Launch(_, LaunchSpec() as spec):
                self._fork(ward, partial(_become_program, spec, os.getpid(), fd), keep={fd})
            case Launch(_, ZygoteSpec() as spec):
                self._fork_zygote(ward, spec, fd)
            case Launch(_, ForkSpec() as spec):
                self._ask_zygote(ward, spec, fd)

    def _kill(self, ward: Ward) -> None:
        """An instance that is not forked yet fails at once; should its zygote announce it still, it is a stranger."""
        if ward.pid is not None:
            kill_tree(ward.pid)
            return
        if ward.parent is not None and ward.parent.zygote is not None:
            self._withdraw(ward, ward.parent.zygote)
        self._fail(ward, "it was stopped before it was forked")

    def _withdraw(self, ward: Ward, zygote: Zygote) -> None:
        for entry in [entry for entry in zygote.waiting if entry[0] is ward]:
            zygote.waiting.remove(entry)
            os.close(entry[2])

    # --- starting -----------------------------------------------------------------------------------------------------

    def _fork(self, ward: Ward, become: Callable[[], NoReturn], keep: Collection[int]) -> None:
        forked_ns = time.monotonic_ns()
        pid, status_fd = fork_child(become, keep)
        self._wards.name(ward, pid, forked_ns)
        self._watch_status(ward, status_fd)

    def _fork_zygote(self, ward: Ward, spec: ZygoteSpec, log_fd: int) -> None:
        ours, theirs = zygote_messages.WardenEnd.pair()
        channel = zygote_messages.warden_end(ours)
        with theirs:
            try:
                become = partial(_become_zygote, spec, os.getpid(), log_fd, theirs.fileno())
                self._fork(ward, become, keep={log_fd, theirs.fileno()})
            except OSError:
                channel.close()
                raise
        ward.zygote = Zygote(channel)
        self._selector.register(channel, selectors.EVENT_READ, partial(self._hear_zygote, ward, ward.zygote))

    def _ask_zygote(self, ward: Ward, spec: ForkSpec, log_fd: int) -> None:
        parent = self._wards.launched_as(spec.zygote)
        if parent is None or parent.zygote is None or parent.zygote.hung_up:
            self._fail(ward, "its zygote is gone")
            return
        ward.parent = parent
        parent.zygote.waiting.append((ward, spec, os.dup(log_fd)))
        self._feed(parent.zygote)

    def _feed(self, zygote: Zygote) -> None:
        """Pass on waiting fork requests, a few at a time."""
        while zygote.waiting and zygote.under_way < _MAX_FORKS_UNDER_WAY:
            ward, spec, log_fd = zygote.waiting.popleft()
            status_fd, status_writer = status_pipe()
            zygote.under_way += 1
            self._watch_status(ward, status_fd)
            with suppress(ChannelClosed):  # then nobody holds the status pipe, and its end of file says so
                zygote.channel.send(Fork(ward.launch, spec), [log_fd, status_writer])
            os.close(log_fd)
            os.close(status_writer)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _watch_status(self, ward: Ward, status_fd: int) -> None:
        ward.status_fd = status_fd
        self._selector.register(status_fd, selectors.EVENT_READ, partial(self._hear_status, ward))

    def _hear_status(self, ward: Ward, *, final: bool = False) -> None:
        """Read the status pipe; at its end, or when this is `final` because the process is dead, the launch settles."""
        if ward.status_fd is None:
            return
        try:
            while data := os.read(ward.status_fd, 65536):
                ward.reason += data
        except BlockingIOError:
            if not final:
                return
        self._selector.unregister(ward.status_fd)
        os.close(ward.status_fd)
        ward.status_fd = None
        self._settle(ward)

    def _settle(self, ward: Ward) -> None:
        if ward.parent is not None and ward.parent.zygote is not None:
            zygote = ward.parent.zygote
            self._hear_zygote(ward.parent, zygote)  # it may have told us the pid just now
            zygote.under_way -= 1
            self._feed(zygote)
        if ward.reason:
            self._fail(ward, ward.reason.decode("utf-8", "replace"))
        elif ward.pid is None:
            self._fail(ward, "its zygote ended before it could fork")
        elif ward.zygote is None:  # a zygote is launched when its target is imported
            self._answer_launched(ward)

    def _hear_zygote(self, ward: Ward, zygote: Zygote) -> None:
        """Take in all that a zygote has said."""
        try:
            while not zygote.hung_up and (received := zygote.channel.receive()) is not None:
                self._on_zygote_said(ward, zygote, received[0])
        except (ChannelClosed, UnpackError):
            self._hang_up(ward, zygote)

    def _on_zygote_said(self, ward: Ward, zygote: Zygote, record: FromZygote) -> None:
        match record:
            case Imported():
                if ward.stage is Stage.PENDING:
                    self._answer_launched(ward)
                    self._report(ZygoteReady(ward.launch))
            case ImportFailed(reason):
                self._fail(ward, reason)
                self._hang_up(ward, zygote)  # it need not find its own way out past the target's threads and hooks
            case Forked(launch, pid, forked_ns):
                instance = self._wards.launched_as(launch)
                if instance is None:
                    kill_tree(pid)
                else:
                    self._wards.name(instance, pid, forked_ns)

    def _hang_up(self, ward: Ward, zygote: Zygote) -> None:
        """A zygote that cannot be heard any more must end; what waited for it fails."""
        zygote.hung_up = True
        self._selector.unregister(zygote.channel)
        zygote.channel.close()
        if ward.pid is not None:
            kill_tree(ward.pid)
        while zygote.waiting:
            waiting, _, log_fd = zygote.waiting.popleft()
            os.close(log_fd)
            self._fail(waiting, "its zygote is gone")

    def _answer_launched(self, ward: Ward) -> None:
        assert ward.pid is not None
        identity = ProcessIdentity.of(ward.pid)  # not reaped yet: it cannot be another one
        pidfd = os.pidfd_open(ward.pid)
        self._wards.answer(ward, Stage.RUNNING)
        self._report(Launched(ward.launch, identity.pid, identity.start_ticks, ward.forked_ns), pidfd)
        os.close(pidfd)

    def _fail(self, ward: Ward, reason: str) -> None:
        if ward.stage is Stage.PENDING:
            self._wards.answer(ward, Stage.FAILED)
            self._report(LaunchFailed(ward.launch, reason))

    def _report(self, record: FromWarden, *fds: int) -> None:
        self._channel.send(record, fds)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _on_child_ended(self) -> None:
        with suppress(BlockingIOError):
            while self._wakeup.recv(4096):
                pass
        for worker in self._wards.workers():
            if worker.worker is not None and worker.worker.exitcode is not None:
                self._end(worker)
        while (pid := _peek_at_dead_child()) is not None:
            ward = self._known(pid)
            if ward is None:
                os.waitpid(pid, 0)  # an orphan
            else:
                self._end(ward)
        self._kill_strangers()

    def _known(self, pid: int) -> Ward | None:
        ward = self._wards.with_pid(pid)
        if ward is None:
            self._hear_zygotes()
            ward = self._wards.with_pid(pid)
        return ward

    def _hear_zygotes(self) -> None:
        for ward, zygote in self._wards.zygotes():
            self._hear_zygote(ward, zygote)

    def _end(self, ward: Ward) -> None:
        """The ward's process is dead: settle its launch, collect its status, report it."""
        assert ward.pid is not None
        self._hear_status(ward, final=True)
        if ward.zygote is not None:
            self._hear_zygote(ward, ward.zygote)
            if not ward.zygote.hung_up:
                self._hang_up(ward, ward.zygote)
        if ward.worker is not None:
            status = ward.worker.exitcode
            ward.worker.close()
        else:
            status = os.waitstatus_to_exitcode(os.waitpid(ward.pid, 0)[1])
        assert status is not None
        code, signum = (status, None) if status >= 0 else (None, -status)
        self._fail(ward, f"the process {describe_exit(code, signum)} before it was ready; its log may say why")
        self._wards.remove(ward)
        if ward.stage is Stage.RUNNING:
            self._report(Exited(ward.launch, ward.pid, code, signum))

    def _kill_strangers(self) -> None:
        """End orphans of dead instances. Look first, listen then: see the module's text."""
        children = own_children()
        self._hear_zygotes()
        for pid in children:
            if self._wards.with_pid(pid) is None:
                kill_tree(pid)


def _take_note(_signum: int, _frame: object) -> None:
    """The wakeup descriptor does the work; without a handler there would be no wakeup."""


def _peek_at_dead_child() -> int | None:
    """The pid of a child that waits to be reaped."""
    try:
        dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if dead is None else dead.si_pid


def _become_program(spec: LaunchSpec, warden: int, log_fd: int) -> NoReturn:
    confine_instance(spec, parent=warden, log_fd=log_fd)
    execute(spec.argv, spec.environ)


def _become_zygote(spec: ZygoteSpec, warden: int, log_fd: int, channel_fd: int) -> NoReturn:
    confine(parent=warden, working_dir=spec.working_dir, limits=ResourceLimits(), log_fd=log_fd, subreaper=False)
    os.set_inheritable(channel_fd, True)
    execute(zygote_command(channel_fd, spec.target), spec.environ)
