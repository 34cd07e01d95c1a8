"""A pool under a service manager, whom the test plays: what it is told, and a socket that it hands in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, ROOT, live_pool, spearpool

pytestmark = pytest.mark.process

TASKS = {"upper": f"{HANDLERS}:upper"}
WATCHDOG_S = 0.4

ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "spearpool", *sys.argv[2:]])
"""


class Manager:
    """The datagrams that have come in, split into lines."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.lines += self._socket.recv(4096).decode().splitlines()
        return self.lines

    def close(self) -> None:
        self._socket.close()
        Path(self.address).unlink()


@pytest.fixture
def manager(runtime_env: RuntimeEnv) -> Iterator[Manager]:
    with contextlib.closing(Manager(runtime_env.runtime_dir.parent / "notify")) as built:
        yield built


def test_a_service_manager_hears_of_ready_reload_life_and_stop(runtime_env: RuntimeEnv, manager: Manager) -> None:
    chosen = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
    env = replace(runtime_env, environ=runtime_env.environ | chosen)
    with live_pool(env, "--workers", "2", tasks=TASKS) as pool:
        eventually(lambda: "READY=1" in manager.heard(), 10)
        address = f"{pool.ready['host']}:{pool.ready['port']}"
        eventually(lambda: f"STATUS=2 of 2 workers ready on {address}" in manager.heard(), 10)
        alive = manager.lines.count("WATCHDOG=1")
        eventually(lambda: manager.heard().count("WATCHDOG=1") >= alive + 3, 20)
        began = time.monotonic()
        pool.process.send_signal(signal.SIGHUP)
        eventually(lambda: manager.heard().count("READY=1") == 2, 40)
        begin = manager.lines.index("RELOADING=1")
        at = int(manager.lines[begin + 1].removeprefix("MONOTONIC_USEC=")) / 1e6
        assert began <= at <= time.monotonic()
        assert "STOPPING=1" not in manager.lines
        pool.stop()
    assert manager.heard().count("STOPPING=1") == 1


def _given(*, reuse: bool = False) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


def _start(env: RuntimeEnv, sock: socket.socket, *words: str) -> subprocess.Popen[bytes]:
    """As a service manager would start it: the socket is descriptor 3, and the pid is the one that it names."""
    command = [sys.executable, "-c", ACTIVATED, str(sock.fileno()), "start", "--json", *words]
    return subprocess.Popen(
        [*command, "--task", f"upper={TASKS['upper']}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        pass_fds=[sock.fileno()],
    )


@pytest.mark.parametrize("reuse", [False, True])
def test_a_given_socket_is_the_first_workers_and_the_others_join(runtime_env: RuntimeEnv, reuse: bool) -> None:
    with _given(reuse=reuse) as sock:
        port = sock.getsockname()[1]
        early = socket.create_connection(("127.0.0.1", port), timeout=60)  # before there is a pool
        with early, _start(runtime_env, sock, "--workers", "2") as process:
            try:
                assert process.stdout is not None
                ready = json.loads(process.stdout.readline())
                assert ready["port"] == port
                status = json.loads(spearpool(runtime_env, "status", "--json").stdout)
                assert status["steering"] == "bpf"
                assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
                assert status["totals"]["connections_opened"] >= 2, "the early one, and the agent"
                assert spearpool(runtime_env, "execute", "upper", "--input", "-", data=b"x").stdout == b"X"
            finally:
                process.terminate()
                process.communicate(timeout=60)
            assert process.returncode == 0
        with socket.create_connection(("127.0.0.1", port), timeout=60):
            pass  # the manager's copy listens on, for the next pool


def _refused(env: RuntimeEnv, sock: socket.socket, *words: str) -> str:
    with _start(env, sock, *words) as process:
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.terminate()  # should it have started after all
    assert process.returncode == 1
    assert b"Traceback" not in said
    return said.decode()


def test_a_port_that_is_not_the_given_one(runtime_env: RuntimeEnv) -> None:
    with _given() as sock:
        assert "pool.port is 1" in _refused(runtime_env, sock, "--port", "1")


def test_what_cannot_be_listened_on(runtime_env: RuntimeEnv) -> None:
    with socket.socket() as sock:
        assert "no listening TCP socket" in _refused(runtime_env, sock)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can open a socket as another user")
def test_a_given_socket_that_no_other_may_join(runtime_env: RuntimeEnv) -> None:
    os.seteuid(65534)
    try:
        sock = _given(reuse=True)
    finally:
        os.seteuid(0)
    with sock:
        assert "uid 65534 opened it" in _refused(runtime_env, sock, "--workers", "2")
