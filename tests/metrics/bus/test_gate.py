from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from spearpool.metrics.bus.gate import Gate
from spearpool.metrics.bus.sockets import Line, LoopSocket, PoolGone
from tests.conftest import deadline


def try_to_ask(endpoint: str, welcome: set[int] | None = None) -> tuple[list[bytes] | None, int]:
    """Ask an echo behind a gate from this process: its answer, and how many were refused."""

    async def serve() -> tuple[list[bytes] | None, int]:
        loop = asyncio.get_running_loop()
        context = zmq.Context()
        gate = Gate(context)
        if welcome is not None:
            gate._welcome = welcome
        socket = context.socket(zmq.ROUTER)
        gate.guard(socket)
        answer: Callable[[list[bytes]], None] = lambda frames: echo.send(frames)  # noqa: E731
        echo = LoopSocket(socket, answer)
        gate.bind(loop)
        echo.bind(loop, endpoint)
        try:
            return await asyncio.to_thread(request), gate.refused
        finally:
            echo.close()
            gate.close()
            context.term()

    def request() -> list[bytes] | None:
        line = Line(zmq.REQ, endpoint)
        try:
            line.send([b"hello"])
            return line.receive(deadline(5))
        except PoolGone:
            return None
        finally:
            line.close()

    return asyncio.run(serve())


def test_the_pool_s_user_may_enter(tmp_path: Path) -> None:
    assert try_to_ask(f"ipc://{tmp_path}/s", {os.geteuid()}) == ([b"hello"], 0)


def test_another_user_may_not(tmp_path: Path) -> None:
    assert try_to_ask(f"ipc://{tmp_path}/s", {os.geteuid() + 4711}) == (None, 1)


def test_whoever_has_no_user_may_not() -> None:
    assert try_to_ask("tcp://127.0.0.1:*".replace("*", str(free_port()))) == (None, 1)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("user", [0, os.geteuid()])
def test_root_and_the_pool_s_user_are_welcome(user: int) -> None:
    context = zmq.Context()
    gate = Gate(context)
    try:
        assert user in gate._welcome
    finally:
        gate.close()
        context.term()
