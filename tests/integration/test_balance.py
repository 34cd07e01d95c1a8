"""A real pool with long-lived connections: they are spread evenly, and remain the connections that they were."""

from __future__ import annotations

import socket
import time
from collections import deque
from pathlib import Path
from typing import TypeVar

import pytest

from spearpool.protocol.messages import (
    AuthRequest,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    Payload,
)
from spearpool.protocol.session import (
    AuthenticationAnswered,
    Received,
    Session,
    SessionEvent,
    SessionSettings,
    Side,
)
from tests.conftest import TIME_SCALE, RuntimeEnv, deadline, eventually

from .live_pool import HANDLERS, LivePool, live_pool

pytestmark = pytest.mark.process

E = TypeVar("E", bound=SessionEvent)

WORKERS, MANY = 8, 64
FOREVER = SessionSettings(float("inf"), float("inf"), float("inf"), float("inf"), 1 << 26)


class Caller:
    """A client that connects once and stays."""

    def __init__(self, pool: LivePool, number: int) -> None:
        self.sock = socket.create_connection((pool.ready["host"], pool.ready["port"]), 20.0 * TIME_SCALE)
        self.port = self.sock.getsockname()[1]
        self.session = Session(Side.CLIENT, FOREVER, time.monotonic())
        self.events: deque[SessionEvent] = deque()
        token = (Path(pool.ready["runtime_dir"]) / "client.token").read_text().strip()
        self.session.send(AuthRequest(f"caller-{number}", token, "1", "test", {}))
        self.flush()
        self.next(AuthenticationAnswered)

    def flush(self) -> None:
        self.sock.sendall(self.session.data_to_send())

    def submit(self, text: str) -> None:
        self.session.send(ExecuteRequest("echo", "", [], {}, input_data=text.encode()))
        self.flush()

    def answer(self) -> str | None:
        payload = self.payload()
        assert isinstance(payload, ExecuteResponse), payload
        assert payload.status is ExecutionStatus.COMPLETED, payload
        return payload.output

    def payload(self) -> Payload:
        while isinstance((event := self.next(Received)).payload, Heartbeat):
            pass
        return event.payload

    def next(self, kind: type[E]) -> E:
        """The next event; what came with it waits."""
        while not self.events:
            data = self.sock.recv(1 << 16)
            assert data, "the connection has ended"
            self.events += self.session.receive_data(data, time.monotonic())
            self.flush()
        event = self.events.popleft()
        assert isinstance(event, kind), event
        return event


def connections(pool: LivePool) -> list[int]:
    return [worker["connections"] for worker in pool.status()["workers"]]


def even(pool: LivePool) -> bool:
    return max(found := connections(pool)) - min(found) <= 1


def needed(before: list[int], after: list[int]) -> int:
    """The fewest moves that bring one about from the other."""
    return sum(max(0, was - now) for was, now in zip(sorted(before), sorted(after), strict=True))


def test_long_lived_connections_are_spread_evenly(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", str(WORKERS), tasks={"echo": f"{HANDLERS}:echo"}) as pool:
        agents = sum(connections(pool))
        callers = [Caller(pool, number) for number in range(MANY)]
        before = pool.status()
        eventually(lambda: even(pool), 10.0)
        status = pool.status()
        after, totals = connections(pool), status["totals"]
        assert sum(after) == MANY + agents == totals["connections_open"]
        assert max(after) / (sum(after) / WORKERS) <= 1.2
        assert totals["connections_opened"] - totals["connections_closed"] == MANY + agents
        if not before["totals"]["connections_handed_over"]:  # else it was too slow to see how things were
            counts = [worker["connections"] for worker in before["workers"]]
            assert totals["connections_handed_over"] <= 1.5 * needed(counts, after) + 1

        moves = totals["connections_handed_over"]
        end = deadline(1.0)
        while time.monotonic() < end:
            for number, caller in enumerate(callers):
                caller.submit(f"{number}")
            assert [caller.answer() for caller in callers] == [f"{number}" for number in range(MANY)]
        assert [caller.sock.getsockname()[1] for caller in callers] == [caller.port for caller in callers]
        assert pool.status()["totals"]["connections_handed_over"] == moves
        assert even(pool)
        for caller in callers:
            caller.sock.close()
        eventually(lambda: pool.status()["totals"]["connections_open"] == agents, 5.0)
