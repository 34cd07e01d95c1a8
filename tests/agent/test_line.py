"""A line under many threads, and a watch that wakes for what it should."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from math import inf

import pytest

from spearpool.agent.dial import dial
from spearpool.agent.line import Line, Watch
from spearpool.errors import ConnectionLost, ErrorCode, LocalProtocolError
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import AuthRequest, ExecuteRequest, ExecuteResponse, ExecutionStatus, Heartbeat
from spearpool.protocol.session import Closed, Session, SessionEvent, SessionSettings, Side
from tests.conftest import deadline, eventually
from tests.stub_worker import SECRET, Peer, StubWorker


@pytest.fixture
def ends() -> Iterator[tuple[Line, Peer]]:
    """Both ends of an authenticated connection; ours is an agent's."""
    with StubWorker() as worker:
        peers: list[Peer] = []
        server = threading.Thread(target=lambda: peers.append(worker.accept()))
        server.start()
        line, _ = dial(Side.AGENT, ("127.0.0.1", worker.port), AuthRequest("me", SECRET, "1", "agent", {}), 5.0)
        server.join()
        yield line, peers[0]
        line.close()


def read_until(line: Line, kind: type[SessionEvent], timeout_s: float = 5.0) -> SessionEvent:
    watch, end = Watch(), deadline(timeout_s)
    while time.monotonic() < end:
        watch.wait(line, 0.1)
        for event in line.receive():
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind.__name__}")


def result(size: int) -> ExecuteResponse:
    return ExecuteResponse("t", ExecutionStatus.COMPLETED, "x" * size)


def test_frames_of_many_threads_arrive_whole(ends: tuple[Line, Peer]) -> None:
    line, peer = ends
    threads = [
        threading.Thread(target=lambda start=start: [line.send(result(start), start + n) for n in range(50)])
        for start in range(0, 2000, 100)
    ]
    for thread in threads:
        thread.start()
    got = [peer.expect(ExecuteResponse)[0] for _ in range(20 * 50)]
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(start + n for start in range(0, 2000, 100) for n in range(50))
    for start in range(0, 2000, 100):  # each thread's own frames in its own order
        assert [n for n in got if start <= n < start + 100] == list(range(start, start + 50))


def test_a_reader_does_not_wait_behind_a_blocked_writer(ends: tuple[Line, Peer]) -> None:
    line, peer = ends
    writer = threading.Thread(target=line.send, args=(result(4_000_000), 1))
    writer.start()  # far more than the socket's buffers: it blocks until the peer reads
    peer.ping(sequence=7)
    watch = Watch()
    assert watch.wait(line, 5.0)
    assert len(line.receive()) == 1
    assert writer.is_alive()
    _, response = peer.expect(ExecuteResponse, timeout_s=20)
    assert response.output is not None
    assert len(response.output) == 4_000_000
    writer.join()
    assert peer.expect(Heartbeat)[1].sequence == 7  # left to the writer, who sent it when it could


def test_the_peers_close_ends_the_line(ends: tuple[Line, Peer]) -> None:
    line, peer = ends
    peer.leave(CloseReason.DRAIN, "later")
    closed = read_until(line, Closed)
    assert closed == Closed(CloseReason.PEER, "drain: later") == line.closed
    with pytest.raises(ConnectionLost, match=r"the connection is over \(peer: drain: later\)"):
        line.send(result(1), 1)


def test_a_reset_ends_the_line(ends: tuple[Line, Peer]) -> None:
    line, peer = ends
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()

    def lost() -> bool:
        try:
            line.send(result(100_000), 1)
        except ConnectionLost:
            return True
        return False

    assert eventually(lost)
    assert line.closed is not None
    assert line.closed.reason is CloseReason.LOST
    read_until(line, Closed)


def test_what_may_not_be_sent_changes_nothing(ends: tuple[Line, Peer]) -> None:
    line, peer = ends
    with pytest.raises(LocalProtocolError):
        line.send(AuthRequest("me", SECRET, "1", "agent", {}))
    with pytest.raises(LocalProtocolError) as caught:
        line.send(result(30_000_000), 1)
    assert caught.value.code == ErrorCode.TOO_LARGE
    line.send(result(1), 2)
    assert peer.expect(ExecuteResponse)[0] == 2


def test_close_says_why_wakes_whoever_waits_and_may_be_repeated(ends: tuple[Line, Peer]) -> None:
    line, peer = ends
    woken = threading.Event()

    def wait() -> None:
        Watch().wait(line, inf)
        woken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    line.close(CloseReason.DRAIN, "enough")
    assert woken.wait(5)
    waiter.join()
    line.close()
    assert line.closed == Closed(CloseReason.DRAIN, "enough")
    assert line.fileno() == -1
    assert peer.expect_closed() == Closed(CloseReason.PEER, "drain: enough")


def test_a_watch_hears_its_wake_up_once_and_keeps_its_time() -> None:
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    try:
        watch = Watch(read_fd)
        assert not watch.wait(None, 0.0)
        os.write(write_fd, b"\0\0\0")
        assert watch.wait(None, inf)
        began = time.monotonic()
        assert not watch.wait(None, 0.05)
        assert time.monotonic() - began >= 0.05
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_a_line_has_something_to_do_at_its_time_and_no_time_once_authenticated(ends: tuple[Line, Peer]) -> None:
    line, _ = ends
    assert line.due == inf
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        strange = Line(ours, Session(Side.AGENT, SessionSettings(0.05, inf, inf, inf, 1000), time.monotonic()))
        began = time.monotonic()
        assert not Watch().wait(strange, inf)
        assert time.monotonic() - began >= 0.04
        assert strange.due <= time.monotonic()
        assert strange.receive() == [Closed(CloseReason.AUTH_TIMEOUT, "not authenticated within 0.05 s")]
        assert strange.due == inf


def test_a_watch_follows_from_line_to_line(ends: tuple[Line, Peer]) -> None:
    line, peer = ends
    watch = Watch()
    assert not watch.wait(None, 0.0)
    peer.send(ExecuteRequest("t", "", [], {}))
    assert watch.wait(line, 5.0)
    assert not watch.wait(None, 0.0)
    assert watch.wait(line, 0.0)
