"""The load harness against servers of its own: right answers are counted, and each way to be wrong is noticed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RuntimeEnv, eventually_async

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
TOKEN = "a token of enough bytes"
Document = dict[str, Any]


def frame(kind: str, request_id: int, payload: Document) -> bytes:
    stamp = {"secs_since_epoch": 1, "nanos_since_epoch": 0}
    message = {"message_type": kind, "request_id": request_id, "timestamp": stamp}
    body = json.dumps(message | {"payload": list(json.dumps(payload).encode()), "version": 1}).encode()
    return len(body).to_bytes(4) + body


def executed(request_id: int, output: str | None, status: str = "Completed", **more: object) -> bytes:
    optional = dict.fromkeys(("error", "exit_code", "duration_ms", "resource_usage"))
    return frame(
        "ExecuteResponse", request_id, {"task_id": "t", "status": status, "output": output, **optional, **more}
    )


def error(request_id: int, code: int) -> bytes:
    return frame(
        "Error", request_id, {"error_code": code, "message": "no", "details": None, "related_request_id": None}
    )


Behaviour = Callable[[int, str], bytes | None]
"""Request id and input → what is sent; None closes the connection."""

EVERY = 10


def sometimes(odd: Behaviour) -> Behaviour:
    """Echo, but every tenth execution of a connection is answered by `odd`."""
    return lambda request_id, text: odd(request_id, text) if request_id % EVERY == 0 else executed(request_id, text)


@dataclass
class EchoServer:
    """Knows version 1 and nothing of our code; answers executions as `behaviour` says."""

    behaviour: Behaviour
    address: str = ""
    executions: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await reader.readexactly(4))
                message = json.loads(await reader.readexactly(size))
                payload = json.loads(bytes(message["payload"]) or b"{}")
                answer = self.answer(message["message_type"], message["request_id"], payload)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()

    def answer(self, kind: str, request_id: int, payload: Document) -> bytes | None:
        self.counts[kind] += 1
        match kind:
            case "AuthRequest":
                ok = payload["token"] == TOKEN
                said = {"success": ok, "error_message": None if ok else "authentication failed", "session_id": "s"}
                return frame("AuthResponse", request_id, said | {"server_version": "echo", "supported_features": []})
            case "Heartbeat":
                return frame("Heartbeat", request_id, payload)
            case "ExecuteRequest":
                return self.behaviour(request_id, bytes(payload["input_data"]).decode())
            case _:
                return None


@asynccontextmanager
async def echo_server(behaviour: Behaviour = executed) -> AsyncIterator[EchoServer]:
    echo = EchoServer(behaviour)
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.address = "{}:{}".format(*server.sockets[0].getsockname())
    yield echo
    server.close()
    await server.wait_closed()


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Document:
        found: Document = json.loads(self.stdout)
        return found


def command(address: str, tmp_path: Path, *words: str) -> list[str]:
    (tmp_path / "token").write_text(TOKEN + "\n")
    found = [sys.executable, str(ROOT / "tools" / "loadtest.py"), "--address", address]
    return [*found, "--token-file", str(tmp_path / "token"), *words]


async def load(*words: str) -> Done:
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Done(process.returncode, stdout.decode(), stderr.decode())


EXECUTE = ("--mode", "execute", "--task", "t", "--duration", "0.25", "--connections", "4", "--json")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("pace", "loop"),
    [
        (("--concurrency", "16"), {"rate": None, "concurrency": 16, "latency_from": "send time"}),
        (("--rate", "400"), {"rate": 400.0, "concurrency": None, "latency_from": "intended send time"}),
        (("--processes", "2"), {"rate": None, "concurrency": 4, "processes": 2}),
    ],
)
async def test_right_answers_are_counted_exactly(pace: tuple[str, ...], loop: Document, tmp_path: Path) -> None:
    async with echo_server() as server:
        done = await load(*command(server.address, tmp_path, *EXECUTE, *pace))
    result = done.document
    assert done.code == 0, done
    assert result.items() >= loop.items()
    assert result["completed"] == result["sent"] == server.counts["ExecuteRequest"] > 0
    assert {name: result[name] for name in ("wrong", "duplicate", "stray", "missing")} == dict.fromkeys(
        ("wrong", "duplicate", "stray", "missing"), 0
    )
    assert result["errors"] == {}
    assert result["connections_opened"] == result["authenticated"] == server.counts["AuthRequest"] == 4
    assert result["messages_out"] == server.counts.total()
    assert result["messages_in"] == result["completed"] + 4
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"] <= result["latency_ms"]["max"]
    if loop["rate"]:
        assert result["completed"] == 100 + 1  # one is due at the start


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("expect", "answer"),
    [
        ("upper", lambda request_id, text: executed(request_id, text.upper())),
        ("sha256", lambda request_id, text: executed(request_id, hashlib.sha256(text.encode()).hexdigest() + "  -\n")),
        ("none", lambda request_id, text: executed(request_id, "anything")),
        ("echo", lambda request_id, text: executed(request_id, None, output_data=list(text.encode()))),
        ("echo", lambda request_id, text: executed(request_id, None, "Running") + executed(request_id, text)),
    ],
)
async def test_the_expected_answer_is_derived(expect: str, answer: Behaviour, tmp_path: Path) -> None:
    async with echo_server(answer) as server:
        done = await load(*command(server.address, tmp_path, *EXECUTE, "--expect", expect, "--payload-bytes", "100"))
    assert done.code == 0, done
    assert done.document["completed"] == done.document["sent"] > 0


# What the server does to every tenth execution · where it shows · whether it breaks a promise.
FAULTS: list[tuple[Behaviour, str, bool]] = [
    (lambda request_id, text: executed(request_id, text + "!"), "wrong", True),
    (lambda request_id, text: executed(request_id, ""), "wrong", True),
    (lambda request_id, text: executed(request_id, text.replace(" ", "_", 1)), "wrong", True),
    (lambda request_id, text: executed(request_id, text) * 2, "duplicate", True),
    (lambda request_id, text: executed(request_id, text) + executed(request_id + 10**6, text), "stray", True),
    (lambda request_id, text: b"", "missing", True),
    (lambda request_id, text: executed(request_id, None, "Failed"), "errors/failed", False),
    (lambda request_id, text: executed(request_id, None, "Timeout"), "errors/timeout", False),
    (lambda request_id, text: executed(request_id, None, "Failed", error_code=502), "errors/outcome unknown", False),
    (lambda request_id, text: error(request_id, 429), "errors/error 429", False),
    (lambda request_id, text: None, "errors/connection lost", False),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("odd", "place", "breaks"), FAULTS)
async def test_each_way_to_be_wrong_is_noticed(odd: Behaviour, place: str, breaks: bool, tmp_path: Path) -> None:
    async with echo_server(sometimes(odd)) as server:
        words = command(server.address, tmp_path, *EXECUTE, "--concurrency", "8", "--drain", "0.2")
        done = await load(*words)
    result = done.document
    folder, _, kind = place.rpartition("/")
    found = (result["errors"] if folder else result).get(kind, 0)
    assert found > 0, result
    assert done.code == (1 if breaks else 0)
    assert result["completed"] > 0
    ends = result["completed"] + result["wrong"] + result["missing"] + sum(result["errors"].values())
    assert ends == result["sent"], result
    if kind == "wrong":
        assert "expected b'" in result["wrong_examples"][0]
    if kind == "connection lost":
        assert result["reconnects"] > 0
        assert result["connections_opened"] == result["authenticated"] == 4 + result["reconnects"]


@pytest.mark.asyncio
async def test_a_stall_shows_in_the_latency_of_an_open_loop(tmp_path: Path) -> None:
    """No coordinated omission: while the server sleeps, requests stay due, and each one's wait counts."""
    stalled = False

    def stall(request_id: int, text: str) -> bytes:
        nonlocal stalled
        if request_id == 20 and not stalled:
            stalled = True
            signal.sigtimedwait([], 0.4)  # the whole server stands still
        return executed(request_id, text)

    async with echo_server(stall) as server:
        words = ("--mode", "execute", "--task", "t", "--duration", "1", "--connections", "1", "--json", "--rate", "100")
        result = (await load(*command(server.address, tmp_path, *words))).document
    assert result["completed"] == 101
    assert result["latency_ms"]["p90"] > 200  # 40 of 101 were due during the stall; a closed loop would count one
    assert result["latency_ms"]["max"] >= 350


@pytest.fixture
def reference_server() -> Iterator[str]:
    words = [sys.executable, str(ROOT / "benchmarks" / "reference_server.py"), "--token", TOKEN]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield f"{ready['host']}:{ready['port']}"
        process.terminate()
    assert process.returncode == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["connect", "heartbeat"])
@pytest.mark.parametrize("pace", [(), ("--rate", "300")], ids=["closed", "open"])
async def test_the_reference_server_holds_up_its_end(
    mode: str, pace: tuple[str, ...], reference_server: str, tmp_path: Path
) -> None:
    words = ("--mode", mode, "--connections", "8", "--duration", "0.25", "--json", *pace)
    done = await load(*command(reference_server, tmp_path, *words))
    result = done.document
    assert done.code == 0, done
    assert result["completed"] == result["sent"] > 8
    assert result["errors"] == {}
    assert result["connections_opened"] == result["authenticated"] == (result["sent"] if mode == "connect" else 8)


@pytest.mark.asyncio
async def test_ctrl_c_ends_early_and_still_reports(tmp_path: Path) -> None:
    async with echo_server() as server:
        words = command(server.address, tmp_path, "--mode", "execute", "--task", "t", "--duration", "60", "--json")
        process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, start_new_session=True)
        await eventually_async(lambda: server.counts["ExecuteRequest"] > 50, timeout_s=20)
        os.killpg(process.pid, signal.SIGINT)
        stdout, _ = await asyncio.wait_for(process.communicate(), 20)
    result = json.loads(stdout)
    assert process.returncode == 0
    assert result["completed"] == result["sent"] == server.counts["ExecuteRequest"]
    assert result["elapsed_s"] < 30


@pytest.mark.asyncio
async def test_a_terminal_sees_progress_and_a_table(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    async with echo_server() as server:
        words = command(server.address, tmp_path, "--mode", "execute", "--task", "t", "--duration", "1.2")
        process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=theirs)
        stdout, _ = await asyncio.wait_for(process.communicate(), 30)
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()
    os.close(ours)
    assert seen.count("\r\x1b[K") >= 2
    assert " done " in seen
    assert "0 wrong" in seen
    assert b"execute: 16 connections, 1 processes, closed loop, 16 at once\n" in stdout
    assert b"answers         0 wrong, 0 duplicate, 0 stray, 0 missing\n" in stdout


BAD_CALLS = [
    (("--mode", "execute"), 2, "--mode execute needs --task"),
    (("--mode", "fly"), 2, "invalid choice: 'fly'"),
    (("--rate", "5", "--concurrency", "5"), 2, "not allowed with argument"),
    (("--mode", "connect", "--concurrency", "5"), 2, "give --connections, not --concurrency"),
    (("--mode", "connect", "--connections", "0"), 2, "invalid int of at least 1 value: '0'"),
    (("--mode", "connect", "--processes", "3", "--connections", "2"), 2, "--processes 3 is more than --connections 2"),
    (("--mode", "connect", "--address", "127.0.0.1:1"), 2, "--address needs --token-file"),
    (("--mode", "connect", "--address", "nowhere", "--token-file", "/dev/null"), 2, "expected HOST:PORT"),
    (("--mode", "connect", "--address", "[::1]:1", "--token-file", "/no/file"), 2, "No such file or directory"),
    (("--mode", "heartbeat", "--name", "nobody"), 3, "no pool 'nobody' is running"),
    (
        ("--mode", "heartbeat", "--address", "127.0.0.1:1", "--token-file", "/dev/null"),
        1,
        "cannot connect to 127.0.0.1:1",
    ),
]


@pytest.mark.parametrize(("words", "code", "said"), BAD_CALLS)
def test_a_bad_call_is_explained(words: tuple[str, ...], code: int, said: str, runtime_env: RuntimeEnv) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "loadtest.py"), *words],
        capture_output=True,
        text=True,
        env=runtime_env.environ,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.asyncio
async def test_a_refused_token_is_an_exit_code_of_its_own(tmp_path: Path) -> None:
    async with echo_server() as server:
        words = command(server.address, tmp_path, "--mode", "heartbeat", "--connections", "3", "--duration", "1")
        (tmp_path / "token").write_text("not the token")
        done = await load(*words)
    assert done.code == 5
    assert "the pool refused the token: authentication failed" in done.stderr
