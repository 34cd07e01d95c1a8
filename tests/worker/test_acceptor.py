"""Accepting beside others, at a listener that is nobody's own."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from pathlib import Path
from typing import Self, cast

import pytest

from spearpool.worker import acceptor as acceptor_module
from spearpool.worker.acceptor import Acceptor, is_of_our_user
from tests.conftest import eventually_async

pytestmark = pytest.mark.asyncio


class Refusing:
    """A listener whose `accept` fails as long as there are refusals."""

    def __init__(self, sock: socket.socket, refusals: list[OSError]) -> None:
        self._sock = sock
        self._refusals = refusals

    def accept(self) -> tuple[socket.socket, object]:
        if self._refusals:
            raise self._refusals.pop()
        return self._sock.accept()

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


class Reception:
    """A Unix socket with some acceptors at it, as workers have them; each counts whom it got."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(100)
        self.listener.setblocking(False)
        self.got: list[int] = []
        self.acceptors: list[Acceptor] = []
        self.peers: list[socket.socket] = []

    def open(self, batch: int, *, admitted: bool = True, listener: socket.socket | None = None) -> None:
        index = len(self.got)
        self.got.append(0)
        reception = self

        class Counter(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                reception.got[index] += 1
                transport.close()

        loop, shared = asyncio.get_running_loop(), listener or self.listener.dup()
        self.acceptors.append(Acceptor(loop, shared, Counter, batch, lambda _: admitted))

    def dial(self, count: int = 1) -> None:
        for _ in range(count):
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(str(self.path))
            self.peers.append(peer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for acceptor in self.acceptors:
            acceptor.close()
        for sock in (*self.peers, self.listener):
            sock.close()
        self.path.unlink()


async def test_each_connection_is_taken_once_and_a_burst_is_shared(tmp_path: Path) -> None:
    with Reception(tmp_path / "s") as reception:
        for _ in range(3):
            reception.open(batch=1)
        reception.dial(60)
        await eventually_async(lambda: sum(reception.got) == 60)
        assert min(reception.got) >= 10, reception.got


async def test_who_is_not_admitted_is_hung_up_on(tmp_path: Path) -> None:
    with Reception(tmp_path / "s") as reception:
        reception.open(batch=1, admitted=False)
        reception.dial(2)
        loop = asyncio.get_running_loop()
        for peer in reception.peers:
            peer.setblocking(False)
            assert await asyncio.wait_for(loop.sock_recv(peer, 1), 10) == b""
        assert reception.got == [0]


async def test_a_path_that_is_shared_stays(tmp_path: Path) -> None:
    with Reception(tmp_path / "s") as reception:
        reception.open(batch=1)
        reception.acceptors[0].close()
        reception.acceptors[0].close()
        reception.dial()
        reception.listener.accept()[0].close()
        assert reception.got == [0]


async def test_who_did_not_want_to_wait_is_passed_over(tmp_path: Path) -> None:
    with Reception(tmp_path / "s") as reception, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for _ in range(3):
            with socket.create_connection(listener.getsockname(), timeout=10) as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with socket.create_connection(listener.getsockname(), timeout=10):
            reception.open(batch=64, listener=listener.dup())
            await eventually_async(lambda: reception.got == [4])


async def test_a_full_table_of_descriptors_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor_module, "RETRY_S", 0.01)
    with Reception(tmp_path / "s") as reception:
        reception.dial()
        refusals = [OSError(errno.EMFILE, "Too many open files")] * 3
        reception.open(batch=1, listener=cast(socket.socket, Refusing(reception.listener.dup(), refusals)))
        await eventually_async(lambda: reception.got == [1])
        assert refusals == []


async def test_our_own_user_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_of_our_user(ours)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert is_of_our_user(ours) == (os.getuid() == 0), "root may always"
