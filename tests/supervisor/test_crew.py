"""The crew: real channels and links between workers that are played here; only the fork is left out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import cast

import pytest

from spearpool.channel import ChannelClosed
from spearpool.config import Settings, load
from spearpool.errors import PoolStartError
from spearpool.processes import ProcessIdentity
from spearpool.supervisor.crew import Crew, Member, worker_launch
from spearpool.supervisor.warden import Warden
from spearpool.worker.control import (
    Drained,
    FromWorker,
    Leave,
    Link,
    Ready,
    Setup,
    TaskState,
    ToWorker,
)
from tests.conftest import eventually_async
from tests.supervisor.offices import Forks


class Bench:
    def __init__(self) -> None:
        self.forks = Forks()
        self.said: list[tuple[int, FromWorker]] = []
        self.crew = Crew(asyncio.get_running_loop(), cast(Warden, self.forks), "shop", self._hear)

    def _hear(self, member: Member, record: FromWorker) -> None:
        self.said.append((member.incarnation, record))
        if isinstance(record, Drained):
            self.crew.exited(member.incarnation)  # a record whose consequence is the member's end

    def spawn(
        self, slot: int, incarnation: int, settings: Settings | None = None, fds: list[int] | None = None
    ) -> None:
        seat = 2 * slot + incarnation % 2
        self.crew.spawn(Setup(slot, seat, incarnation, 1, settings or load(), [], []), fds or [])

    def ready(self, slot: int, incarnation: int) -> Member:
        """A worker that has its `Setup` and has said that it is ready."""
        self.spawn(slot, incarnation)
        self.forks.hear(incarnation)
        member = self.crew.get(incarnation)
        assert member is not None
        self.crew.connect(member)
        return member

    def say(self, incarnation: int, record: FromWorker) -> None:
        self.forks.workers[worker_launch(incarnation)].send(record)


@contextlib.contextmanager
def benching() -> Iterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        bench.crew.close()
        bench.forks.close()


def _inode(fd: int) -> int:
    return os.fstat(fd).st_ino


@pytest.mark.asyncio
async def test_setup_and_its_descriptors_wait_in_the_channel() -> None:
    with benching() as bench, socket.socket() as listener:
        bench.spawn(3, 5, load(overrides={"tasks": {"a": {"target": "exec:cat"}}}), [listener.fileno()])
        ((setup, fds),) = bench.forks.hear(5)
        assert isinstance(setup, Setup)
        assert (setup.slot, setup.seat, setup.incarnation) == (3, 7, 5)
        assert setup.settings.tasks["a"].target == "exec:cat"
        assert [_inode(fd) for fd in fds] == [_inode(listener.fileno())]
        for fd in fds:
            os.close(fd)
        assert bench.forks.names == ["3 [shop]"]
        process = ProcessIdentity.of(os.getpid())
        member = bench.crew.launched(5, process)
        assert member is not None
        assert (member.process, member.ready) == (process, False)
        assert bench.crew.launched(6, process) is None


@pytest.mark.asyncio
async def test_a_signal_reaches_the_process_and_no_other_one_of_its_pid() -> None:
    with benching() as bench, subprocess.Popen(["/bin/sleep", "60"]) as victim:  # noqa: ASYNC220 - at once
        bench.spawn(0, 1)
        process = ProcessIdentity.of(victim.pid)
        member = bench.crew.get(1)
        assert member is not None
        bench.crew.signal(member, signal.SIGKILL)  # it is not forked yet
        bench.crew.launched(1, ProcessIdentity(process.pid, process.start_ticks - 1))
        bench.crew.signal(member, signal.SIGKILL)
        bench.crew.launched(1, process)
        bench.crew.signal(member, signal.SIGTERM)
        assert victim.wait(10) == -signal.SIGTERM
        bench.crew.signal(member, signal.SIGTERM)  # and to one that is gone, nothing happens


def test_launch_numbers_of_workers_are_negative() -> None:
    assert worker_launch(7) == -7
    assert worker_launch(worker_launch(7)) == 7


@pytest.mark.asyncio
async def test_settings_that_fit_no_record_fail_the_start_in_words() -> None:
    large = load(overrides={"tasks": {"a": {"target": "exec:cat", "environment": {"X": "x" * 200_000}}}})
    with benching() as bench, pytest.raises(PoolStartError, match="settings are too large"):
        bench.spawn(0, 1, large)


@pytest.mark.asyncio
async def test_records_are_heard_with_the_member_that_sent_them() -> None:
    with benching() as bench:
        bench.spawn(0, 1)
        bench.spawn(1, 2)
        bench.say(2, Ready(22))
        bench.say(1, Ready(11))
        bench.say(1, Drained(0))
        bench.say(1, Ready(12))  # behind its end: nobody hears it
        await eventually_async(lambda: len(bench.said) == 3)
        assert sorted(bench.said, key=lambda pair: pair[0]) == [(1, Ready(11)), (1, Drained(0)), (2, Ready(22))]
        assert [member.incarnation for member in bench.crew] == [2]
        with pytest.raises(ChannelClosed):
            bench.forks.hear(1)


@pytest.mark.asyncio
async def test_links_connect_each_two_ready_workers() -> None:
    with benching() as bench:
        for slot in range(3):
            bench.ready(slot, slot + 1)
        ends: dict[tuple[int, int], socket.socket] = {}
        for slot in range(3):
            for record, (fd, other) in bench.forks.hear(slot + 1):
                os.close(other)
                assert isinstance(record, Link)
                assert (record.seat, record.incarnation) == (2 * record.slot + (record.slot + 1) % 2, record.slot + 1)
                ends[slot, record.slot] = socket.socket(fileno=fd)
        assert sorted(ends) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
        with contextlib.ExitStack() as stack:
            for end in ends.values():
                stack.enter_context(end)
                end.settimeout(5)
            for (here, there), end in ends.items():
                end.sendall(f"{here} to {there}".encode())
            for (here, there), end in ends.items():
                assert end.recv(64) == f"{there} to {here}".encode()
            ends[0, 1].close()  # nobody else holds an end: the neighbour reads EOF
            assert ends[1, 0].recv(64) == b""


def _links(bench: Bench, incarnation: int) -> list[tuple[int, int]]:
    """Slot and incarnation of each worker that this one has been linked with since."""
    links = []
    for record, fds in bench.forks.hear(incarnation):
        assert isinstance(record, Link)
        links.append((record.slot, record.incarnation))
        for fd in fds:
            os.close(fd)
    return links


@pytest.mark.asyncio
async def test_an_heir_is_linked_with_everybody_while_its_predecessor_keeps_its_links() -> None:
    with benching() as bench:
        for slot, incarnation in ((0, 1), (1, 2)):
            bench.ready(slot, incarnation)
        bench.spawn(2, 4)
        bench.forks.hear(4)
        assert (_links(bench, 1), _links(bench, 2)) == ([(1, 2)], [(0, 1)])
        bench.ready(0, 3)
        assert (_links(bench, 1), _links(bench, 2), _links(bench, 3)) == ([(0, 3)], [(0, 3)], [(0, 1), (1, 2)])
        bench.forks.end(1)
        bench.crew.exited(1)
        assert [_links(bench, incarnation) for incarnation in (2, 3, 4)] == [[], [], []], "4 is not ready"


@pytest.mark.asyncio
async def test_broadcast_reaches_ready_and_starting_and_dismiss_tells_all_to_leave() -> None:
    state = TaskState("embed", False, "it fails")
    with benching() as bench:
        bench.ready(0, 1)
        bench.spawn(1, 2)
        bench.crew.broadcast(state)
        bench.crew.dismiss()
        assert [record for record, _ in bench.forks.hear(1)] == [state, Leave()]
        setup, *rest = [record for record, _ in bench.forks.hear(2)]
        assert isinstance(setup, Setup)
        assert rest == [state, Leave()]


@pytest.mark.asyncio
async def test_what_does_not_fit_the_socket_now_is_sent_when_it_does() -> None:
    states = [TaskState("embed", False, f"{number} " + "x" * 50_000) for number in range(40)]
    with benching() as bench:
        member = bench.ready(0, 1)
        for state in states:
            bench.crew.send(member, state)
        assert member.channel.wants_write
        heard: list[ToWorker] = []

        def everything() -> bool:
            heard.extend(record for record, _ in bench.forks.hear(1))
            return len(heard) == len(states)

        await eventually_async(everything)
        assert heard == states
        assert not member.channel.wants_write


@pytest.mark.asyncio
async def test_a_worker_that_dies_is_kept_until_its_exit_is_told() -> None:
    with benching() as bench:
        member = bench.ready(0, 1)
        for number in range(40):
            bench.crew.send(member, TaskState("embed", False, f"{number} " + "x" * 50_000))
        assert member.channel.wants_write
        bench.forks.end(1)
        await asyncio.sleep(0)
        await eventually_async(lambda: not _watched(member))
        bench.crew.send(member, Leave())  # dropped without a word
        assert bench.crew.get(1) is member
        assert bench.crew.exited(1) is member
        assert member.channel.fileno() < 0
        assert bench.crew.get(1) is None
        assert bench.crew.exited(1) is None


def _watched(member: Member) -> bool:
    """Whether the loop still looks at the member's channel."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    return member.channel.fileno() in loop._selector.get_map()  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_close_hangs_up_on_all() -> None:
    with benching() as bench:
        bench.ready(0, 1)
        bench.spawn(1, 2)
        bench.crew.close()
        assert list(bench.crew) == []
        with pytest.raises(ChannelClosed):
            bench.forks.hear(1)
