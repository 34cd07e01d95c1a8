"""A worker for tests of the dialling side: a real listener and real server sessions, driven by the test."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Self, TypeVar

from spearpool.protocol.credentials import Identity, Role
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import (
    AuthRequest,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    HeartbeatStatus,
    Payload,
    Timestamp,
)
from spearpool.protocol.session import (
    AuthenticationRequested,
    Closed,
    Received,
    Session,
    SessionEvent,
    SessionSettings,
    Side,
)
from tests.conftest import deadline

__all__ = ["SECRET", "Peer", "StubWorker", "completed"]

P = TypeVar("P")

SECRET = "a secret of the stub"
SETTINGS = SessionSettings(10.0, inf, inf, inf, 64 * 1024 * 1024)


def completed(request: ExecuteRequest, output: str) -> ExecuteResponse:
    return ExecuteResponse(
        request.task_id, ExecutionStatus.COMPLETED, output, duration_ms=1, execution_id=request.execution_id
    )


@dataclass(slots=True)
class Peer:
    """The worker's end of one connection."""

    sock: socket.socket
    session: Session
    asked: AuthRequest | None = None
    events: deque[SessionEvent] = field(default_factory=deque)
    heartbeats: list[tuple[int, int]] = field(default_factory=list)

    def flush(self) -> None:
        self.sock.sendall(self.session.data_to_send())

    def send(self, payload: Payload, request_id: int | None = None) -> int:
        number = self.session.send(payload, request_id)
        self.flush()
        return number

    def send_all(self, *payloads: Payload) -> list[int]:
        """In one write."""
        numbers = [self.session.send(payload) for payload in payloads]
        self.flush()
        return numbers

    def ping(self, sequence: int = 0) -> int:
        return self.send(Heartbeat(Timestamp(0, 0), sequence, HeartbeatStatus.ACTIVE))

    def next_event(self, timeout_s: float = 5.0) -> SessionEvent:
        end = deadline(timeout_s)
        while not self.events:
            ready, _, _ = select.select([self.sock], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"nothing came for {timeout_s} s"
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            self.events += self.session.receive_data(data, time.monotonic())
            if data:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.flush()
        return self.events.popleft()

    def expect(self, kind: type[P], timeout_s: float = 5.0) -> tuple[int, P]:
        """Request id and payload of the next message, which must be of this type; heartbeats are noted on the way."""
        while True:
            event = self.next_event(timeout_s)
            if isinstance(event, Received) and isinstance(event.payload, Heartbeat):
                self.heartbeats.append((event.request_id, event.payload.sequence))
                if kind is not Heartbeat:
                    continue
            assert isinstance(event, Received), event
            assert isinstance(event.payload, kind), event.payload
            return event.request_id, event.payload

    def expect_closed(self, timeout_s: float = 5.0) -> Closed:
        while not isinstance(event := self.next_event(timeout_s), Closed):
            pass
        return event

    def requests(self) -> Iterator[tuple[int, ExecuteRequest]]:
        """Execution after execution, until the connection ends."""
        while not isinstance(event := self.next_event(60.0), Closed):
            if isinstance(event, Received) and isinstance(event.payload, ExecuteRequest):
                yield event.request_id, event.payload

    def authenticate(self, role: Role = Role.AGENT) -> AuthRequest:
        event = self.next_event()
        assert isinstance(event, AuthenticationRequested), event
        self.asked = event.request
        if event.request.token != SECRET:
            self.session.refuse("authentication failed")
        else:
            identity = Identity(role, event.request.instance_id, "stub", rights=frozenset({"submit"}))
            self.session.accept(identity, "session-1", "0.0.stub")
        self.flush()
        return event.request

    def leave(self, reason: CloseReason, message: str = "") -> None:
        """Say ConnectionClose and close."""
        self.session.close(reason, message)
        self.flush()
        self.close()

    def close(self) -> None:
        self.sock.close()


class StubWorker:
    """Listens on a port of the system's choice, or at the path of a Unix socket.

    Use it in a `with` block, which closes whatever it accepted.
    """

    def __init__(self, role: Role = Role.AGENT, *, listening: bool = True, path: Path | None = None) -> None:
        self._role = role
        self._path = path
        self._listener = socket.socket() if path is None else socket.socket(socket.AF_UNIX)
        self._listener.bind(("127.0.0.1", 0) if path is None else str(path))
        self._listening = threading.Event()
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1] if path is None else 0
        if listening:
            self.listen()

    def listen(self) -> None:
        """Until then connections are refused."""
        self._listener.listen()
        self._listening.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes a script that accepts
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for peer in self._peers:
            peer.close()
        self._listener.close()
        if self._path is not None:
            self._path.unlink()

    @property
    def connected(self) -> int:
        """How many connections were accepted so far."""
        return len(self._peers)

    def dialled(self, timeout_s: float = 5.0) -> Peer:
        """The next connection, before anything was said."""
        self._listener.settimeout(timeout_s)
        sock, _ = self._listener.accept()
        sock.setblocking(True)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock, Session(Side.SERVER, SETTINGS, time.monotonic()))
        self._peers.append(peer)
        return peer

    def accept(self, timeout_s: float = 5.0) -> Peer:
        """The next connection, authenticated or refused."""
        peer = self.dialled(timeout_s)
        peer.authenticate(self._role)
        return peer

    def play(self, script: Callable[[Peer], None]) -> None:
        """In threads: accept connection after connection and run the script on each, until the block ends."""

        def accept_all() -> None:
            self._listening.wait(60)
            with contextlib.suppress(OSError):
                while True:
                    thread = threading.Thread(target=run, args=(self.accept(60.0),), daemon=True)
                    self._threads.append(thread)
                    thread.start()

        def run(peer: Peer) -> None:
            with contextlib.suppress(OSError):
                script(peer)

        thread = threading.Thread(target=accept_all, daemon=True)
        self._threads.append(thread)
        thread.start()
