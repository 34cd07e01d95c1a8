"""A whole pool as its supervisor runs it: status, tokens in real use, draining, stopping, and starts that fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from spearpool.client import Client
from spearpool.client.outcome import ExecutionResult
from spearpool.errors import (
    AuthenticationError,
    Draining,
    ErrorCode,
    OutcomeUnknown,
    RequestRefused,
    SpearpoolError,
    UnknownTask,
)
from spearpool.metrics.bus import ask
from spearpool.metrics.layout import EventKind
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.segment import Segment
from spearpool.processes import ProcessIdentity
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, ROOT, LivePool, live_pool, private_env, spearpool

pytestmark = pytest.mark.process

CONFIG = f"""
[pool]
workers = 2
[tasks.upper]
target = "{HANDLERS}:upper"
[tasks.guest]
target = "{HANDLERS}:upper"
min_instances = 0
"""

Document = dict[str, Any]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePool]:
    root = tmp_path_factory.mktemp("pool")
    env = private_env(root)
    config = root / "pool.toml"
    config.write_text(CONFIG)
    with live_pool(env, "--config", str(config)) as pool:
        yield pool


def _ask(pool: LivePool, command: str, **arguments: Any) -> Document:
    return ask(pool.ready["endpoints"]["ask"], command, arguments, timeout_s=10.0)


# What it answers


def test_status_over_the_bus(pool: LivePool) -> None:
    status = _ask(pool, "status")
    assert (status["name"], status["pid"], status["state"]) == ("default", pool.process.pid, "ready")
    assert status["port"] == pool.ready["port"]
    assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
    assert status["steering"] == "bpf"
    assert [(task["name"], task["instances"]["ready"]) for task in status["tasks"]] == [("upper", 1), ("guest", 0)]
    assert status["warnings"] == []


def test_connections_that_wait_to_be_accepted_are_seen(pool: LivePool) -> None:
    """Both workers are stopped for as long as three connections come."""
    stopped = [worker["pid"] for worker in _ask(pool, "status")["workers"]]
    with ExitStack() as stack:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
            stack.callback(os.kill, pid, signal.SIGCONT)
        for _ in range(3):
            stack.enter_context(socket.create_connection((pool.ready["host"], pool.ready["port"]), timeout=10))
        eventually(lambda: sum(worker["accept_queue"] for worker in _ask(pool, "status")["workers"]) == 3, 10)
    eventually(lambda: [worker["accept_queue"] for worker in _ask(pool, "status")["workers"]] == [0, 0], 10)


@pytest.mark.parametrize("timeout_s", ["soon", -1, float("inf"), float("nan")])
def test_a_wrong_time_stops_nothing(pool: LivePool, timeout_s: object) -> None:
    with pytest.raises(RequestRefused, match=r"timeout_s = .*: expected a finite number of seconds"):
        _ask(pool, "stop", timeout_s=timeout_s)
    assert _ask(pool, "status")["state"] == "ready"


def test_other_commands_are_refused(pool: LivePool) -> None:
    with pytest.raises(UnknownTask, match="no command 'dance'; there are"):
        _ask(pool, "dance")
    with pytest.raises(RequestRefused, match="no task is named 'nothing'; there are: upper, guest"):
        _ask(pool, "token_issue", instance_id="a", task="nothing")


# Tokens in real use


@contextmanager
def _agent(pool: LivePool, *program: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of somebody's own, with a token from the command line, that serves the task `guest`."""
    issued = spearpool(pool.env, "token", "issue", "--name", pool.name, "--instance-id", name, "--task", "guest")
    assert issued.returncode == 0, issued.stderr.decode()
    environ = pool.env.environ | {
        "PYTHONPATH": str(ROOT),
        "SPEAR_COMMUNICATION_PORT": str(pool.ready["port"]),
        "SPEAR_INSTANCE_ID": name,
        "SPEAR_SECRET": issued.stdout.decode().strip(),
    }
    with subprocess.Popen([sys.executable, *program], env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


AGENTS = {
    "of our library": ("-c", "from spearpool.agent import serve; serve(lambda request: request.input.upper())"),
    "that knows only the wire": (str(ROOT / "tests" / "programs" / "plain_agent.py"),),
}


def _guests(pool: LivePool) -> list[Document]:
    return [row for row in _ask(pool, "status")["instances"] if row["task"] == "guest"]


def _guests_ready(pool: LivePool) -> list[Document]:
    return [row for row in _guests(pool) if row["state"] == "ready"]


@pytest.mark.parametrize("kind", AGENTS)
def test_an_agent_that_somebody_else_started(pool: LivePool, kind: str) -> None:
    with _agent(pool, *AGENTS[kind], name="gpu-1"), pool.client() as client:
        (row,) = eventually(lambda: _guests_ready(pool), 20)
        assert (row["instance_id"], row["external"]) == ("gpu-1", True)
        assert row["worker"] in {0, 1}
        for number in range(10):
            data = f"number {number}".encode()
            assert client.execute("guest", input=data, timeout=20) == data.upper()
    eventually(lambda: not _guests(pool), 10)


def test_an_agent_that_comes_twice_is_one_instance(pool: LivePool) -> None:
    program = AGENTS["that knows only the wire"]
    with _agent(pool, *program, name="gpu-2") as first:
        eventually(lambda: _guests_ready(pool), 20)
        with _agent(pool, *program, name="gpu-2"):
            assert first.wait(20) == 0  # the newer connection won; its end is the older one's signal to go
            eventually(lambda: len(_guests_ready(pool)) == len(_guests(pool)) == 1, 10)
            with pool.client() as client:
                assert client.execute("guest", input=b"x", timeout=20) == b"X"
    eventually(lambda: not _guests(pool), 10)


def _token(pool: LivePool, *words: str) -> str:
    done = spearpool(pool.env, "token", "issue", "--name", pool.name, "--instance-id", "ci", *words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_a_client_with_the_right_to_submit(pool: LivePool) -> None:
    with Client(address=pool.address, token=_token(pool, "--client", "--right", "submit")) as client:
        assert client.execute("upper", input=b"x", timeout=20) == b"X"


def test_a_client_without_the_right_to_submit(pool: LivePool, tmp_path: Path) -> None:
    token = _token(pool, "--client", "--right", "observe")
    with (
        Client(address=pool.address, token=token) as client,
        pytest.raises(RequestRefused, match="submit") as refused,
    ):
        client.execute("upper", input=b"x", timeout=20)
    assert refused.value.code == ErrorCode.REFUSED
    (tmp_path / "token").write_text(token)
    words = ("execute", "upper", "--address", pool.address, "--token-file", str(tmp_path / "token"))
    done = spearpool(pool.env, *words)
    assert done.returncode == 5
    assert b"submit" in done.stderr
    assert done.stdout == b""


def test_a_token_of_another_key_is_refused(pool: LivePool) -> None:
    token = _token(pool, "--client")
    forged = f"{token[:-4]}{'AAAA' if not token.endswith('AAAA') else 'BBBB'}"
    with Client(address=pool.address, token=forged) as client, pytest.raises(AuthenticationError):
        client.execute("upper", timeout=20)


# How it stops

SLEEPERS = """
[pool]
stop_timeout_s = 30.0
[tasks.sleep]
target = "exec:sh -c 'sleep $0; echo slept'"
stop_timeout_s = 0.2
"""


@contextmanager
def _working(env: RuntimeEnv, seconds: float) -> Iterator[tuple[LivePool, Client, Future[ExecutionResult]]]:
    """A pool with one execution in flight, for which it would wait 30 s."""
    config = env.runtime_dir.parent / "pool.toml"
    config.write_text(SLEEPERS)
    with live_pool(env, "--config", str(config)) as pool, pool.client() as client:
        waiting = client.submit("sleep", str(seconds))
        eventually(lambda: [row for row in _ask(pool, "status")["instances"] if row["state"] == "busy"], 10)
        yield pool, client, waiting


def _gone(pool: LivePool, within_s: float) -> None:
    """It ends well, in time, and of its files nothing is there."""
    assert pool.process.wait(within_s * TIME_SCALE) == 0, pool.log.read_text()
    _no_files(pool)


def _no_files(pool: LivePool) -> None:
    assert not Path(pool.ready["runtime_dir"]).exists()
    assert not Path(pool.ready["segment"]).exists()


def test_stop_finishes_what_is_in_flight_and_refuses_what_is_new(runtime_env: RuntimeEnv) -> None:
    with _working(runtime_env, 1) as (pool, client, waiting):
        reply = _ask(pool, "stop", timeout_s=20)
        assert 20 < reply["deadline_s"] < 60
        eventually(lambda: _ask(pool, "status")["state"] == "stopping", 5)
        with pytest.raises(Draining):
            client.execute("sleep", "0", timeout=10)
        assert not waiting.done()
        assert waiting.result(20).output == b"slept\n"
        _gone(pool, 10)


def test_stop_with_a_deadline_does_not_wait_for_longer(runtime_env: RuntimeEnv) -> None:
    with _working(runtime_env, 60) as (pool, _, waiting):
        begin = time.monotonic()
        _ask(pool, "stop", timeout_s=0.3)
        with pytest.raises(SpearpoolError):
            waiting.result(20)
        assert time.monotonic() - begin >= 0.3
        _gone(pool, 20)


DEAF = f"""
[pool]
stop_timeout_s = 60.0
[tasks.deaf]
target = "{HANDLERS}:deaf"
stop_timeout_s = 60.0
[tasks.daemon]
target = "{HANDLERS}:daemonise"
"""


@pytest.mark.parametrize("signals", [2, 50], ids=["a second one", "many more"])
def test_one_more_signal_kills_everything_at_once(runtime_env: RuntimeEnv, signals: int) -> None:
    """Although the pool, and the instance after it, would be given a minute each, and the instance ignores SIGTERM."""
    config = runtime_env.runtime_dir.parent / "pool.toml"
    config.write_text(DEAF)
    with live_pool(runtime_env, "--config", str(config)) as pool, pool.client() as client:
        grandchild = int(client.execute("daemon", timeout=20))
        waiting = client.submit("deaf", "600")
        eventually(lambda: [row for row in _ask(pool, "status")["instances"] if row["state"] == "busy"], 10)
        everybody = [ProcessIdentity.of(pid) for pid in pool.processes()]
        assert grandchild in {process.pid for process in everybody}
        pool.process.send_signal(signal.SIGINT)
        eventually(lambda: _ask(pool, "status")["state"] == "stopping", 5)
        assert not waiting.done()
        for _ in range(signals - 1):
            pool.process.send_signal(signal.SIGTERM)
        assert pool.process.wait(10 * TIME_SCALE) == 1, pool.log.read_text()
        assert not [process for process in everybody if process.alive()]
        with pytest.raises(OutcomeUnknown):
            waiting.result(10)
        _no_files(pool)
        said = pool.log.read_text()
        assert _last_line(said) == "spearpool: error: SIGTERM while stopping: what was in flight has been killed"
        assert "Traceback" not in said


def test_a_signal_after_a_stop_command_kills_as_well(runtime_env: RuntimeEnv) -> None:
    with _working(runtime_env, 60) as (pool, _, waiting):
        _ask(pool, "stop", timeout_s=50)
        eventually(lambda: _ask(pool, "status")["state"] == "stopping", 5)
        assert not waiting.done()
        pool.process.send_signal(signal.SIGTERM)
        assert pool.process.wait(10 * TIME_SCALE) == 1, pool.log.read_text()
        _no_files(pool)


def test_signals_do_not_cut_the_end_short(runtime_env: RuntimeEnv) -> None:
    """However many come and whenever: it ends by itself, with its files, and says how."""
    with live_pool(runtime_env, tasks={"upper": f"{HANDLERS}:upper"}) as pool:
        while pool.process.poll() is None:
            pool.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                pool.process.wait(0.0005)
        assert pool.process.returncode in {0, 1}, pool.log.read_text()
        assert "Traceback" not in pool.log.read_text()
        _no_files(pool)


# Starts that fail


def _start(env: RuntimeEnv, *words: str, stdout: int | Path = subprocess.PIPE, **environ: str) -> tuple[int, str]:
    """A pool that does not come up: its exit code, and what it says."""
    output = os.open(stdout, os.O_WRONLY) if isinstance(stdout, Path) else stdout
    try:
        done = subprocess.run(
            [sys.executable, "-m", "spearpool", "start", "--json", *words],
            stdout=output,
            stderr=subprocess.PIPE,
            env=env.environ | environ,
            timeout=60,
            check=False,
        )
    finally:
        if isinstance(stdout, Path):
            os.close(output)
    assert not done.stdout
    assert not list(env.runtime_dir.iterdir())
    assert not list(Path("/dev/shm").glob(f"spearpool-{os.geteuid()}-failing-*"))
    return done.returncode, done.stderr.decode()


def _last_line(said: str) -> str:
    return said.splitlines()[-1]


def test_a_worker_that_cannot_start(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    (tmp_path / "broken_validator.py").write_text("raise RuntimeError('the key store is not mounted')\n")
    code, said = _start(
        runtime_env,
        "--name",
        "failing",
        PYTHONPATH=f"{ROOT}:{tmp_path}",
        SPEARPOOL_SECURITY_VALIDATOR="broken_validator:check",
    )
    assert code == 1
    assert "cannot serve" in _last_line(said)
    assert "the key store is not mounted" in _last_line(said)
    assert "Traceback" not in said


def test_a_ready_line_that_cannot_be_written(runtime_env: RuntimeEnv) -> None:
    code, said = _start(runtime_env, "--name", "failing", stdout=Path("/dev/full"))
    assert code == 1
    assert _last_line(said).startswith("spearpool: error: internal error: ")
    assert "No space left on device" in _last_line(said)


def test_stopped_before_it_is_ready(runtime_env: RuntimeEnv) -> None:
    """An instance that does not come keeps the pool starting; a stop need not wait for it."""
    words = ["start", "--json", "--name", "failing", "--task", "mute=agent:/bin/sleep 60"]
    with subprocess.Popen(
        [sys.executable, "-m", "spearpool", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=runtime_env.environ,
    ) as process:
        description = runtime_env.runtime_dir / "failing" / "pool.json"
        eventually(description.exists, 20)
        endpoint = json.loads(description.read_text())["endpoints"]["ask"]
        eventually(lambda: ask(endpoint, "status", {}, timeout_s=10)["instances"], 10)
        assert ask(endpoint, "status", {}, timeout_s=10)["state"] == "starting"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30 * TIME_SCALE)
    assert (out, process.returncode) == (b"", 0), err.decode()
    assert not description.parent.exists()


# Bugs

FAULTY = """
import sys
from spearpool.cli import main
from spearpool.errors import PoolStartError
from spearpool.supervisor import {module}

def faulty(*arguments, **options):
    raise {error}

{module}.{place} = faulty
main(["start", "--json", "--name", "failing", *sys.argv[1:]])
"""

FAULTS = {
    "a worker's record": ("owners", "Owners.claim"),
    "the warden's record": ("workers", "Workers.handle"),
    "the clock": ("staff", "Staff.sample_usage"),
    "the first turn": ("roster", "Roster.handle"),
    "a signal": ("staff", "Staff.hire_no_more"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bug_ends_the_pool_and_says_where(runtime_env: RuntimeEnv, fault: str) -> None:
    """Whatever callback it is in: logged with its traceback, told in the last line, and nothing is left."""
    module, place = FAULTS[fault]
    program = FAULTY.format(module=module, place=place, error="ZeroDivisionError('a bug')")
    words = ["--task", f"upper={HANDLERS}:upper"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=runtime_env.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        if fault == "a signal":
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30 * TIME_SCALE)
    assert process.returncode == 1
    assert "in faulty" in said.decode()
    assert _last_line(said.decode()) == "spearpool: error: internal error: ZeroDivisionError('a bug')"
    assert not list(runtime_env.runtime_dir.iterdir())
    assert not list(Path("/dev/shm").glob(f"spearpool-{os.geteuid()}-failing-*"))


def test_an_error_on_purpose_speaks_for_itself(runtime_env: RuntimeEnv) -> None:
    program = FAULTY.format(module="crew", place="Crew.spawn", error="PoolStartError('the settings are too large')")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=runtime_env.environ, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"spearpool: error: the settings are too large\n"
    assert not list(runtime_env.runtime_dir.iterdir())


def test_a_bug_in_a_command_is_its_senders_to_know(runtime_env: RuntimeEnv) -> None:
    program = FAULTY.format(module="report", place="Report.status", error="ZeroDivisionError('a bug')")
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=runtime_env.environ
    ) as process:
        assert process.stdout is not None
        endpoint = json.loads(process.stdout.readline())["endpoints"]["ask"]
        with pytest.raises(RequestRefused, match="internal error: ZeroDivisionError"):
            ask(endpoint, "status", {}, timeout_s=10)
        with pytest.raises(UnknownTask):
            ask(endpoint, "dance", {}, timeout_s=10)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30 * TIME_SCALE)
    assert process.returncode == 0
    assert b"in faulty" in said


# Its own seat


def test_the_life_of_workers_is_on_record(runtime_env: RuntimeEnv) -> None:
    with (
        live_pool(runtime_env, "--workers", "1") as pool,
        closing(Segment.open(Path(pool.ready["segment"]))) as segment,
    ):
        os.kill(pool.status()["workers"][0]["pid"], signal.SIGKILL)
        eventually(lambda: pool.status()["workers"][0]["restarts"] == 1 and _serving(pool), 10)
        _, records, lost = Rollup(segment).new_records(segment.layout.supervisor_seat)
        kinds = [EventKind(kind).name.lower() for kind in records["kind"]]
        del records
        assert lost == 0
        life = ["worker_spawned", "worker_ready"]
        assert kinds == [*life, "worker_killed", *life]


def _serving(pool: LivePool) -> bool:
    return bool(pool.status()["workers"][0]["state"] == "ready")
