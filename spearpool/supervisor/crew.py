"""The worker processes as the supervisor sees them: a control channel to each, and links between each two.

The roster decides, the warden forks, the crew talks. A slot can have two workers at once (an occupant that leaves and
its heir), so workers are kept by incarnation, which is unique in the life of a pool.

Links: when a worker says that it is ready, it gets one socketpair to each other ready worker, made here and handed to
both ends; no path, no name, and nothing to clean up when one of them dies: the other reads EOF.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from spearpool.channel import ChannelClosed
from spearpool.errors import PoolStartError
from spearpool.processes import ProcessIdentity, pidfd_open
from spearpool.worker.control import FromWorker, Leave, Link, Setup, SupervisorEnd, ToWorker, supervisor_end

from .warden import Warden

__all__ = ["Crew", "Member", "worker_launch"]


@dataclass(slots=True, eq=False)
class Member:
    """One worker process, from its fork to its exit."""

    slot: int
    seat: int
    incarnation: int
    channel: SupervisorEnd
    process: ProcessIdentity | None = None
    ready: bool = False


def worker_launch(incarnation: int) -> int:
    """The launch number of a worker: negative, so that it never meets one of `ProcessRuntime`'s."""
    return -incarnation


class Crew:
    """Spawns workers and carries records to and from them. `on_record` is called for each record received."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        warden: Warden,
        pool: str,
        on_record: Callable[[Member, FromWorker], None],
    ) -> None:
        self._loop = loop
        self._warden = warden
        self._pool = pool
        self._on_record = on_record
        self._members: dict[int, Member] = {}

    def spawn(self, setup: Setup, fds: Sequence[int]) -> None:
        """Have the warden fork a worker; `setup` and `fds` (listener, segment, agents) wait for it in its channel.

        Raises `PoolStartError` when the settings exceed a control record's size.
        """
        ours, theirs = SupervisorEnd.pair()
        channel = supervisor_end(ours)
        member = Member(setup.slot, setup.seat, setup.incarnation, channel)
        self._members[setup.incarnation] = member
        with theirs:
            try:
                channel.send(setup, fds)
            except ValueError as error:
                raise PoolStartError(f"the settings are too large to be handed to a worker: {error}") from None
            self._warden.spawn_worker(worker_launch(setup.incarnation), theirs, f"{setup.slot} [{self._pool}]")
        self._loop.add_reader(channel.fileno(), self._receive, member)

    def launched(self, incarnation: int, process: ProcessIdentity) -> Member | None:
        """The warden has forked it."""
        member = self._members.get(incarnation)
        if member is not None:
            member.process = process
        return member

    def exited(self, incarnation: int) -> Member | None:
        """The worker is gone for good: forget it."""
        member = self._members.pop(incarnation, None)
        if member is not None:
            self._hang_up(member)
        return member

    def get(self, incarnation: int) -> Member | None:
        return self._members.get(incarnation)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def send(self, member: Member, record: ToWorker, fds: Sequence[int] = ()) -> None:
        """Send a record; a worker that is just dying does not get it, and its exit will be reported."""
        try:
            member.channel.send(record, fds)
        except ChannelClosed:
            return
        if member.channel.wants_write:
            self._loop.add_writer(member.channel.fileno(), self._flush, member)

    def signal(self, member: Member, number: signal.Signals) -> None:
        """Send a signal to the process, and to no other one that has its pid by now."""
        if member.process is None:
            return
        with suppress(ProcessLookupError):
            pidfd = pidfd_open(member.process)
            try:
                signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)

    def broadcast(self, record: ToWorker) -> None:
        """To every worker; one that is still starting finds it behind its `Setup`."""
        for member in self:
            self.send(member, record)

    def connect(self, newcomer: Member) -> None:
        """Mark a worker ready, and link it with all that are."""
        for other in self:
            if other.ready:
                self._join(newcomer, other)
        newcomer.ready = True

    def _join(self, one: Member, other: Member) -> None:
        """With a stream for messages, and a channel for hand-over."""
        kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
        with ExitStack() as stack:
            pairs = [[stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, kind)] for kind in kinds]
            ours, theirs = ([end.fileno() for end in ends] for ends in zip(*pairs, strict=True))
            self.send(one, Link(other.slot, other.seat, other.incarnation), ours)
            self.send(other, Link(one.slot, one.seat, one.incarnation), theirs)

    def dismiss(self) -> None:
        """Tell all workers to leave."""
        self.broadcast(Leave())

    def close(self) -> None:
        for member in self:
            self._hang_up(member)
        self._members.clear()

    def _receive(self, member: Member) -> None:
        try:
            while (received := member.channel.receive()) is not None:
                self._on_record(member, received[0])
                if member.channel.fileno() < 0:  # the record's consequence was its end
                    return
        except ChannelClosed:
            self._loop.remove_reader(member.channel.fileno())

    def _flush(self, member: Member) -> None:
        try:
            member.channel.flush()
        except ChannelClosed:
            self._loop.remove_writer(member.channel.fileno())
            return
        if not member.channel.wants_write:
            self._loop.remove_writer(member.channel.fileno())

    def _hang_up(self, member: Member) -> None:
        if member.channel.fileno() >= 0:
            self._loop.remove_reader(member.channel.fileno())
            self._loop.remove_writer(member.channel.fileno())
            member.channel.close()
