from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import zmq

from spearpool.errors import NoSuchPool, PoolError
from spearpool.metrics.bus.sockets import Line, LoopSocket, PoolGone
from tests.conftest import deadline, eventually_async


def with_socket(kind: int, use: Callable[[LoopSocket, list[list[bytes]]], Awaitable[None]]) -> None:
    """Run `use` on a loop, with a socket and the list of what it received."""

    async def run() -> None:
        context = zmq.Context()
        received: list[list[bytes]] = []
        socket = LoopSocket(context.socket(kind), received.append)
        try:
            await use(socket, received)
        finally:
            socket.close()
            context.term()

    asyncio.run(run())


def test_a_burst_is_drained_although_the_descriptor_fires_once(tmp_path: Path) -> None:
    async def use(socket: LoopSocket, received: list[list[bytes]]) -> None:
        socket.bind(asyncio.get_running_loop(), f"ipc://{tmp_path}/s")
        line = Line(zmq.DEALER, f"ipc://{tmp_path}/s")
        try:
            for number in range(1000):
                line.send([b"%d" % number])
            await eventually_async(lambda: len(received) == 1000)
            assert [int(frames[-1]) for frames in received] == list(range(1000))
        finally:
            line.close()

    with_socket(zmq.ROUTER, use)


def test_sending_does_not_swallow_what_arrives(tmp_path: Path) -> None:
    """Each answer is sent while the next request is on its way: the edge that announces it must not be lost."""

    async def use(socket: LoopSocket, received: list[list[bytes]]) -> None:
        def answer(frames: list[bytes]) -> None:
            received.append(frames)
            socket.send(frames)

        socket._receive = answer
        socket.bind(asyncio.get_running_loop(), f"ipc://{tmp_path}/s")
        lines = [Line(zmq.DEALER, f"ipc://{tmp_path}/s") for _ in range(4)]

        def talk() -> None:
            for _ in range(200):
                for line in lines:
                    line.send([b"x"])
                for line in lines:
                    assert line.receive(deadline(10)) == [b"x"]

        try:
            await asyncio.to_thread(talk)
        finally:
            for line in lines:
                line.close()
        assert len(received) == 800

    with_socket(zmq.ROUTER, use)


def test_the_socket_file_is_ours_alone_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    before = os.umask(0o022)

    async def use(socket: LoopSocket, received: list[list[bytes]]) -> None:
        socket.bind(asyncio.get_running_loop(), f"ipc://{path}")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(0o022) == 0o022

    try:
        with_socket(zmq.ROUTER, use)
    finally:
        os.umask(before)
    assert not path.exists()


def test_an_endpoint_that_cannot_be_bound_is_an_error(tmp_path: Path) -> None:
    async def use(socket: LoopSocket, received: list[list[bytes]]) -> None:
        with pytest.raises(PoolError, match=r"cannot bind ipc:.*longer than 107"):
            socket.bind(asyncio.get_running_loop(), f"ipc://{tmp_path}/{'x' * 108}")

    with_socket(zmq.ROUTER, use)


def test_a_message_for_a_peer_that_is_gone_is_dropped(tmp_path: Path) -> None:
    async def use(socket: LoopSocket, received: list[list[bytes]]) -> None:
        socket.bind(asyncio.get_running_loop(), f"ipc://{tmp_path}/s")
        socket.send([b"nobody", b"hello"])

    with_socket(zmq.ROUTER, use)


def test_a_line_needs_a_socket_file(tmp_path: Path) -> None:
    with pytest.raises(NoSuchPool, match="no such socket"):
        Line(zmq.REQ, f"ipc://{tmp_path}/s")


def test_a_file_that_nobody_listens_on_is_a_pool_that_is_gone(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "s"))
    line = Line(zmq.SUB, f"ipc://{tmp_path}/s")
    try:
        with pytest.raises(PoolGone):
            line.receive(deadline(10))
    finally:
        line.close()
        (tmp_path / "s").unlink()


def test_a_line_waits_no_longer_than_it_should(tmp_path: Path) -> None:
    async def use(socket: LoopSocket, received: list[list[bytes]]) -> None:
        socket.bind(asyncio.get_running_loop(), f"ipc://{tmp_path}/s")
        line = Line(zmq.DEALER, f"ipc://{tmp_path}/s")
        try:
            end = time.monotonic() + 0.05
            assert await asyncio.to_thread(line.receive, end) is None
            assert time.monotonic() >= end
            assert line.receive(0.0) is None
        finally:
            line.close()

    with_socket(zmq.ROUTER, use)


SERVER = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.XPUB)
socket.bind(sys.argv[1])
print("bound", flush=True)
assert socket.recv() == b"\\x01"
for number in range(500):
    socket.send(b"%d" % number)
print("sent", flush=True)
time.sleep(60)
"""


def test_what_a_killed_pool_had_sent_is_still_read(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    with subprocess.Popen([sys.executable, "-c", SERVER, endpoint], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"bound\n"
        line = Line(zmq.SUB, endpoint)
        try:
            line.subscribe(b"")
            assert server.stdout.readline() == b"sent\n"
            first = line.receive(deadline(10))
            end = deadline(10)
            received = [first]
            while len(received) < 100:
                received.append(line.receive(end))
            server.send_signal(signal.SIGKILL)
            server.wait()
            with pytest.raises(PoolGone):
                received.extend(iter(lambda: line.receive(end), None))
        finally:
            line.close()
            server.kill()
            (tmp_path / "s").unlink()
    assert received == [[b"%d" % number] for number in range(500)]
