"""A slot whose worker ends again and again: who waits there is served by a neighbour."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from spearpool.protocol.codec import JSON_V1
from spearpool.protocol.framing import FrameReader, frame
from spearpool.protocol.identifiers import ConnectionId
from spearpool.protocol.messages import AuthRequest, AuthResponse
from tests.conftest import RuntimeEnv, deadline, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool

pytestmark = pytest.mark.process

AT_SLOT = 5


def test_a_slot_that_crash_loops_is_served_by_its_neighbour(runtime_env: RuntimeEnv) -> None:
    """Whoever was in its queue when it died, and whoever comes while it is not there."""
    crash = runtime_env.runtime_dir.parent / "crash"
    chosen = {
        "SPEARPOOL_TEST_CRASH": str(crash),
        "SPEARPOOL_SECURITY_VALIDATOR": "tests.programs.crashing_validator:refuse",
    }
    env = replace(runtime_env, environ=runtime_env.environ | chosen)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(live_pool(env, "--workers", "2", tasks={"upper": f"{HANDLERS}:upper"}))
        victim = pool.status()["workers"][0]["pid"]
        os.kill(victim, signal.SIGSTOP)
        dialled = [stack.enter_context(_dial(pool)) for _ in range(4 * AT_SLOT)]
        while pool.status()["workers"][0]["accept_queue"] < AT_SLOT:
            dialled.append(stack.enter_context(_dial(pool)))
        crash.touch()
        os.kill(victim, signal.SIGKILL)
        assert {_answered_by(sock) for sock in dialled} == {1}
        eventually(lambda: pool.status()["workers"][0]["restarts"] > 10, 30)
        assert pool.status()["workers"][0]["state"] == "waiting", "its breaker is open"
        later = [stack.enter_context(_dial(pool)) for _ in range(20)]
        assert {_answered_by(sock) for sock in later} == {1}
        crash.unlink()
        eventually(lambda: pool.status()["workers"][0]["state"] == "ready", 30)
        eventually(lambda: _answered_by(stack.enter_context(_dial(pool))) == 0, 20)
        totals = pool.status()["totals"]
        assert totals["connections_opened"] - totals["connections_closed"] == totals["connections_open"]


def _dial(pool: LivePool) -> socket.socket:
    """A connection that has asked to be let in."""
    sock = socket.create_connection((pool.ready["host"], pool.ready["port"]), timeout=60)
    token = (Path(pool.ready["runtime_dir"]) / "client.token").read_text().strip()
    sock.sendall(frame(JSON_V1.encode(AuthRequest("test", token, "1", "client", {}), 1, time.time_ns()), 65536))
    return sock


def _answered_by(sock: socket.socket) -> int:
    """The slot of the worker that let it in."""
    reader, end = FrameReader(65536), deadline(20)
    while (body := reader.next_frame()) is None:
        assert time.monotonic() < end
        data = sock.recv(65536)
        assert data, "the connection was closed"
        reader.feed(data)
    kind, _, packed = JSON_V1.open(body)
    answer = JSON_V1.decode_payload(kind, packed)
    assert isinstance(answer, AuthResponse)
    assert answer.success
    assert answer.session_id is not None
    return ConnectionId.unpack(int(answer.session_id.removeprefix("s-"), 16)).slot
