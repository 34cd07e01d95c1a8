"""Dialling: what a good answer gives, and each way of not getting one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spearpool.agent.dial import dial
from spearpool.agent.line import Line
from spearpool.errors import AuthenticationError, ConnectionLost, ErrorCode
from spearpool.protocol.credentials import Identity, Role
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import AuthRequest, ErrorMessage, ExecuteRequest, ExecuteResponse, ExecutionStatus
from spearpool.protocol.session import Received, Side
from tests.stub_worker import SECRET, Peer, StubWorker

REQUEST = AuthRequest("me-1", SECRET, "1", "agent", {"concurrency": "1"})


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    with StubWorker() as worker:
        yield worker


def meanwhile(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_a_good_secret_opens_a_line(worker: StubWorker) -> None:
    server = meanwhile(worker.accept)
    line, events = dial(Side.AGENT, ("127.0.0.1", worker.port), REQUEST, 5.0)
    server.join()
    assert events == []
    assert isinstance(line, Line)
    assert line.closed is None
    line.close()


def test_what_came_right_behind_the_answer_is_not_lost(worker: StubWorker) -> None:
    def serve() -> None:
        peer = worker.dialled()
        peer.next_event()
        peer.session.accept(Identity(Role.AGENT, "me-1", "stub"), "session-1", "0")
        peer.send(ExecuteRequest("t", "", [], {}))

    server = meanwhile(serve)
    line, events = dial(Side.AGENT, ("127.0.0.1", worker.port), REQUEST, 5.0)
    server.join()
    line.close()
    assert [type(event.payload) for event in events if isinstance(event, Received)] == [ExecuteRequest]


def test_a_wrong_secret_is_refused(worker: StubWorker) -> None:
    server = meanwhile(worker.accept)
    wrong = AuthRequest("me-1", "not the secret", "1", "agent", {})
    with pytest.raises(AuthenticationError, match=rf"127\.0\.0\.1:{worker.port} refused us: authentication failed"):
        dial(Side.AGENT, ("127.0.0.1", worker.port), wrong, 5.0)
    server.join()


def closes(peer: Peer) -> None:
    peer.leave(CloseReason.OVERLOADED)


def explains(peer: Peer) -> None:
    peer.send(ErrorMessage(ErrorCode.OVERLOADED, "too many connections"), 0)
    peer.close()


def talks_nonsense(peer: Peer) -> None:
    peer.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def says_nothing(_: Peer) -> None:
    pass


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (closes, "closed the connection before it answered"),
        (explains, r"before it answered: too many connections \(429\)"),
        (talks_nonsense, "closed the connection before it answered"),
        (says_nothing, "did not answer our authentication in time"),
    ],
)
def test_no_answer_is_a_lost_connection(worker: StubWorker, behaviour: Callable[[Peer], None], words: str) -> None:
    server = meanwhile(lambda: behaviour(worker.dialled()))
    with pytest.raises(ConnectionLost, match=words):
        dial(Side.AGENT, ("127.0.0.1", worker.port), REQUEST, 0.5)
    server.join()


def test_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(ConnectionLost, match=f"cannot connect to 127.0.0.1:{port}: Connection refused"):
            dial(Side.AGENT, ("127.0.0.1", port), REQUEST, 5.0)


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "agents.sock"
    with StubWorker(path=path) as worker:
        server = meanwhile(worker.accept)
        line, events = dial(Side.AGENT, str(path), REQUEST, 5.0)
        server.join()
        assert events == []
        line.send(ExecuteResponse("t", ExecutionStatus.COMPLETED, "x"))
        line.close()
    with pytest.raises(ConnectionLost, match=f"cannot connect to {path}: No such file"):
        dial(Side.AGENT, str(path), REQUEST, 5.0)


def test_an_ipv6_address() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        with pytest.raises(ConnectionLost, match=r"cannot connect to ::1:.*refused"):
            dial(Side.AGENT, ("::1", sock.getsockname()[1]), REQUEST, 5.0)
