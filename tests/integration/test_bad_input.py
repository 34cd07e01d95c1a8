"""Bad input of every kind: what is typed or sent, what comes back, which counter moves, and that nothing is left.

The leak check around each test sees to the last point; each row is a test of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spearpool.client import Client
from spearpool.errors import (
    AuthenticationError,
    Draining,
    ExecutionFailed,
    SpearpoolError,
    UnknownTask,
)
from tests.conftest import RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool, spearpool

pytestmark = pytest.mark.process


# What is typed: arguments, exit code, words on stderr

PROGRAM_MISSING = ("start", "--task", "a=exec:/no/such/program")
TYPED = {
    "program that does not exist": (PROGRAM_MISSING, 2, "/no/such/program"),
    "python module that does not exist": (("start", "--task", "a=python:no_such_module:f"), 2, "no_such_module"),
    "target of no kind": (("start", "--task", "a=frobnicate"), 2, "python:package.module:function"),
    "task without a name": (("start", "--task", "exec:cat"), 2, "NAME=TARGET"),
    "no workers": (("start", "--workers", "0"), 2, "pool.workers = 0"),
    "no such pool: status": (("status",), 3, "no pool 'default' is running"),
    "no such pool: stop": (("stop",), 3, "no pool 'default' is running"),
    "no such pool: execute": (("execute", "a"), 3, "no pool 'default' is running"),
    "no such pool: tail": (("metrics", "tail"), 3, "no pool 'default' is running"),
    "no such config file": (("start", "--config", "/no/such.toml"), 2, "/no/such.toml"),
    "impossible name": (("start", "--name", "../x"), 2, "pool.name"),
    "address that is not ours": (("start", "--host", "192.0.2.1"), 1, "192.0.2.1"),
    "no such command": (("frobnicate",), 2, "No such command"),
}


@pytest.mark.parametrize("row", TYPED)
def test_typed(runtime_env: RuntimeEnv, row: str) -> None:
    words, code, said = TYPED[row]
    done = spearpool(runtime_env, *words)
    assert done.returncode == code, done.stderr.decode()
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert not list(runtime_env.runtime_dir.iterdir())


# What is written into a configuration file: text, words on stderr

WRITTEN = {
    "not TOML": ("[pool", "valid TOML"),
    "unknown key": ("[pool]\nworker = 3", "pool.worker = 3: expected a key that spearpool knows"),
    "task too large to be handed to a process": (
        f'[tasks.a]\ntarget = "exec:cat"\nenvironment = {{ TABLE = "{"x" * 160_000}" }}',
        "bytes of arguments and environment': expected at most 159744 bytes",
    ),
    "wrong type": ('[pool]\nworkers = "many"', "pool.workers = 'many': expected int"),
    "out of range": ("[pool]\nport = 70000", "pool.port = 70000: expected 0 to 65535"),
    "task without target": ("[tasks.a]\nmin_instances = 1", "tasks.a.target"),
    "limit of a wrong kind": ('[tasks.a]\ntarget = "exec:cat"\n[tasks.a.limits]\nnice = 99', "nice = 99"),
}


@pytest.mark.parametrize("row", WRITTEN)
@pytest.mark.parametrize("command", ["start", "config check"])
def test_written(runtime_env: RuntimeEnv, tmp_path: Path, row: str, command: str) -> None:
    text, said = WRITTEN[row]
    path = tmp_path / "pool.toml"
    path.write_text(text)
    words = ("start", "--config", str(path)) if command == "start" else ("config", "check", str(path))
    done = spearpool(runtime_env, *words)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert not list(runtime_env.runtime_dir.iterdir())


# What the machine does not allow


def test_port_in_use(runtime_env: RuntimeEnv) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = spearpool(runtime_env, "start", "--port", str(port))
    assert done.returncode == 1
    assert f"port {port}" in done.stderr.decode()
    assert str(os.getpid()) in done.stderr.decode()


def test_pool_of_that_name_already_running(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env) as pool:
        done = spearpool(runtime_env, "start")
        assert done.returncode == 1
        assert f"pid {pool.ready['pid']}" in done.stderr.decode()
        assert pool.status()["state"] == "ready"


def test_runtime_directory_of_another_mode_or_owner(runtime_env: RuntimeEnv) -> None:
    runtime_env.runtime_dir.chmod(0o777)
    done = spearpool(runtime_env, "start")
    assert done.returncode == 1
    assert "open to others" in done.stderr.decode()
    runtime_env.runtime_dir.chmod(0o700)
    if os.geteuid():
        pytest.skip("only root can give a directory to another user")
    os.chown(runtime_env.runtime_dir, 65534, 65534)
    done = spearpool(runtime_env, "start")
    os.chown(runtime_env.runtime_dir, 0, 0)
    assert done.returncode == 1
    assert "belongs to user 65534" in done.stderr.decode()


def test_runtime_directory_not_writable(runtime_env: RuntimeEnv) -> None:
    blocked = runtime_env.runtime_dir / "file"
    blocked.write_text("not a directory")
    env = RuntimeEnv(
        runtime_env.runtime_dir,
        runtime_env.state_dir,
        runtime_env.environ | {"SPEARPOOL_RUNTIME_DIR": str(blocked / "below")},
    )
    done = spearpool(env, "start")
    assert done.returncode == 1
    assert str(blocked) in done.stderr.decode()


@pytest.fixture
def tiny_memory(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("only root can mount a small memory filesystem")
    place = tmp_path / "shm"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_memory_filesystem_too_small(runtime_env: RuntimeEnv, tiny_memory: Path) -> None:
    env = RuntimeEnv(
        runtime_env.runtime_dir,
        runtime_env.state_dir,
        runtime_env.environ | {"SPEARPOOL_MONITORING_SHARED_MEMORY_DIR": str(tiny_memory)},
    )
    done = spearpool(env, "start")
    assert done.returncode == 1
    assert str(tiny_memory) in done.stderr.decode()
    assert "bytes" in done.stderr.decode()
    assert not list(tiny_memory.iterdir())


# What tasks do: target, what an execution of it raises, words


def test_instances_that_do_not_come_up(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(
        '[tasks.quits]\ntarget = "agent:/bin/false"\n'
        '[tasks.mute]\ntarget = "agent:/bin/sleep 60"\nstart_timeout_s = 1.0\n'
        f'[tasks.echo]\ntarget = "{HANDLERS}:echo"\n'
    )
    with live_pool(runtime_env, "--config", str(path)) as pool:
        tasks = {task["name"]: task for task in pool.status()["tasks"]}
        assert "exited with code 1" in tasks["quits"]["problem"]
        assert "mute" in pool.log.read_text()
        with pool.client() as client:
            assert client.execute("echo", input=b"still") == b"still"
            eventually(lambda: _refused(lambda: client.execute("quits", timeout=5)), 20)
            with pytest.raises(Draining, match="quits"):
                client.execute("quits", timeout=5)
        assert tasks["mute"]["instances"]["failed"] >= 1


def _refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except Draining:
        return True
    except SpearpoolError:
        return False
    return False


def test_executions_that_cannot_succeed(runtime_env: RuntimeEnv) -> None:
    tasks = {"fail": f"{HANDLERS}:fail", "false": "exec:false", "echo": f"{HANDLERS}:echo"}
    with live_pool(runtime_env, tasks=tasks) as pool, pool.client() as client:
        with pytest.raises(ExecutionFailed, match="this handler always fails"):
            client.execute("fail")
        with pytest.raises(ExecutionFailed) as failed:
            client.execute("false")
        assert failed.value.exit_code == 1
        with pytest.raises(UnknownTask, match="nothing"):
            client.execute("nothing")
        assert client.execute("echo", input=b"after") == b"after"
        totals = pool.status()["totals"]
        assert totals["executions_failed"] == 2
        assert totals["executions_completed"] == 1
        assert pool.cli("execute", "fail").returncode == 1
        assert pool.cli("execute", "nothing").returncode == 1
        timed_out = pool.cli("execute", "--timeout", "0.01", "echo", "--input", "-")
        assert timed_out.returncode in {0, 4}


# What strangers send: bytes, error code of the answer, counter that moves


def _message(kind: str, values: object, **changes: object) -> bytes:
    body: dict[str, Any] = {
        "message_type": kind,
        "request_id": 1,
        "timestamp": {"secs_since_epoch": 1, "nanos_since_epoch": 0},
        "payload": list(json.dumps(values).encode()),
        "version": 1,
    }
    text = json.dumps(body | changes).encode()
    return struct.pack(">I", len(text)) + text


def _auth(token: str) -> bytes:
    values = {"instance_id": "x", "token": token, "client_version": "1", "client_type": "test", "extra_params": {}}
    return _message("AuthRequest", values)


HEARTBEAT = {"timestamp": {"secs_since_epoch": 1, "nanos_since_epoch": 0}, "sequence": 1, "status": "Idle"}
SENT: dict[str, tuple[bytes, str, int | None, str]] = {
    "wrong token": (_auth("wrong-token-12345"), "AuthResponse", None, "auth_failed"),
    "empty token": (_auth(""), "AuthResponse", None, "auth_failed"),
    "forged token": (_auth("v1.launch.agent.eA.0:1.0.bm9uY2U.bWFj"), "AuthResponse", None, "auth_failed"),
    "message before authentication": (_message("Heartbeat", HEARTBEAT), "Error", 401, "errors"),
    "oversize prefix": (b"\xff\xff\xff\xff", "Error", 413, "errors"),
    "empty frame": (b"\0\0\0\0", "Error", 400, "errors"),
    "garbage": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "Error", 413, "errors"),
    "garbage in a frame": (b"\0\0\0\x05hello", "Error", 400, "errors"),
    "payload as text": (_message("AuthRequest", {}, payload="{}"), "Error", 400, "errors"),
    "unknown type": (_message("Frobnicate", {}), "Error", 400, "errors"),
}


def test_strangers(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", "1") as pool:
        for row, (data, kind, code, counter) in SENT.items():
            before = pool.status()["totals"]
            answer = _talk(pool, data)
            assert answer["message_type"] == kind, row
            payload = json.loads(bytes(answer["payload"]))
            if code is None:
                assert payload["success"] is False, row
                assert not payload["session_id"], row
            else:
                assert payload["error_code"] == code, row
            eventually(partial(_counted, pool, counter, before[counter]), 5)
        eventually(lambda: pool.status()["totals"]["connections_open"] == 0, 5)


def _counted(pool: LivePool, counter: str, before: int) -> bool:
    return bool(pool.status()["totals"][counter] > before)


def _talk(pool: LivePool, data: bytes) -> dict[str, Any]:
    """Send bytes, read one answer, and see the connection closed."""
    with socket.create_connection((pool.ready["host"], pool.ready["port"]), timeout=10) as sock:
        sock.sendall(data)
        with contextlib.closing(sock.makefile("rb")) as stream:
            (length,) = struct.unpack(">I", stream.read(4))
            answer: dict[str, Any] = json.loads(stream.read(length))
            with contextlib.suppress(ConnectionResetError):
                while stream.read(1):  # a ConnectionClose may follow; then the end
                    pass
    return answer


def test_half_a_frame_and_silence(runtime_env: RuntimeEnv) -> None:
    env = RuntimeEnv(
        runtime_env.runtime_dir,
        runtime_env.state_dir,
        runtime_env.environ | {"SPEARPOOL_CONNECTIONS_AUTH_TIMEOUT": "0.5"},
    )
    with live_pool(env, "--workers", "1") as pool:
        begin = time.monotonic()
        with socket.create_connection((pool.ready["host"], pool.ready["port"]), timeout=10) as sock:
            sock.sendall(b"\0\0\x01\0{half")
            while sock.recv(4096):
                pass
        assert time.monotonic() - begin >= 0.4
        assert pool.status()["totals"]["connections_open"] == 0


def test_a_client_with_a_wrong_token(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    with live_pool(runtime_env, tasks={"echo": f"{HANDLERS}:echo"}) as pool:
        wrong = tmp_path / "token"
        wrong.write_text("not-a-token-of-this-pool")
        with pytest.raises(AuthenticationError), Client(address=pool.address, token_file=wrong) as client:
            client.execute("echo")
        done = spearpool(runtime_env, "execute", "echo", "--address", pool.address, "--token-file", str(wrong))
        assert done.returncode == 5
