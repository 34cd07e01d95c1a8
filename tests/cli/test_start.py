"""`start`: the ready line, in the foreground and as a daemon; what ends a pool; and how a start that fails says so."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spearpool.processes import ProcessIdentity, descendants
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, ROOT, live_pool, spearpool

pytestmark = pytest.mark.process

READY = {"name", "pid", "host", "port", "runtime_dir", "segment", "endpoints", "workers"}

Document = dict[str, Any]


@contextlib.contextmanager
def _started(env: RuntimeEnv, *words: str, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """`spearpool start` in the foreground, handed out with its ready line still unread."""
    with subprocess.Popen(
        [sys.executable, "-m", "spearpool", "start", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        pass_fds=pass_fds,
    ) as process:
        try:
            yield process
        finally:
            for pid in [process.pid, *descendants(process.pid)] if process.poll() is None else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _end(env: RuntimeEnv, process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, and what it still said; of its files nothing is there."""
    out, err = process.communicate(timeout=30 * TIME_SCALE)
    assert not list(env.runtime_dir.iterdir())
    return process.returncode, out, err


# The ready line


def test_ready_line_for_programs_and_sigterm(runtime_env: RuntimeEnv) -> None:
    words = ("--json", "--name", "shop", "--workers", "3", "--host", "127.0.0.1", "--task", f"up={HANDLERS}:upper")
    with _started(runtime_env, *words) as process:
        ready = json.loads(_line(process))
        assert set(ready) == READY
        assert (ready["name"], ready["pid"], ready["host"], ready["workers"]) == ("shop", process.pid, "127.0.0.1", 3)
        assert ready["runtime_dir"] == str(runtime_env.runtime_dir / "shop")
        assert Path(ready["segment"]).exists()
        assert set(ready["endpoints"]) == {"live", "ask"}
        for endpoint in ready["endpoints"].values():
            assert Path(endpoint.removeprefix("ipc://")).is_socket()
        with socket.create_connection((ready["host"], ready["port"]), timeout=10):
            pass
        process.send_signal(signal.SIGTERM)
        code, out, err = _end(runtime_env, process)
    assert (code, out) == (0, "")
    assert not Path(ready["segment"]).exists()
    assert all(json.loads(line)["logger"] for line in err.splitlines())  # a log for machines, as nobody looks


def test_ready_line_for_people_and_ctrl_c(runtime_env: RuntimeEnv) -> None:
    with _started(runtime_env) as process:
        line = _line(process)
        process.send_signal(signal.SIGINT)
        code, out, err = _end(runtime_env, process)
    assert line.startswith("pool default ready on 127.0.0.1:")
    assert line.endswith(f" · 2 workers · pid {process.pid} · {runtime_env.runtime_dir / 'default'}\n")
    assert (code, out) == (0, "")
    assert "Traceback" not in err


def test_flags_win_over_environment_and_file(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text('[pool]\nname = "of-the-file"\nworkers = 3\n[tasks.sum]\ntarget = "exec:sha256sum"\n')
    environ = runtime_env.environ | {"SPEARPOOL_POOL_WORKERS": "2", "SPEARPOOL_POOL_NAME": "of-the-environment"}
    env = RuntimeEnv(runtime_env.runtime_dir, runtime_env.state_dir, environ)
    with live_pool(env, "--config", str(path), "--name", "of-the-flags", "--task", f"up={HANDLERS}:upper") as pool:
        assert (pool.ready["name"], pool.ready["workers"]) == ("of-the-flags", 2)
        assert [task["name"] for task in pool.status()["tasks"]] == ["sum", "up"]


def test_state_dir_is_where_logs_and_keys_are(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with live_pool(runtime_env, "--state-dir", str(state), tasks={"up": f"{HANDLERS}:upper"}):
        assert {path.name for path in (state / "default").iterdir()} >= {"issue.key", "logs"}
        assert list((state / "default" / "logs").iterdir())


def test_warnings_go_to_stderr_and_not_into_the_ready_line(runtime_env: RuntimeEnv) -> None:
    with _started(runtime_env, "--json", "--task", "broken=agent:/bin/false") as process:
        assert set(json.loads(_line(process))) == READY
        process.send_signal(signal.SIGTERM)
        code, _, err = _end(runtime_env, process)
    assert code == 0
    (warning,) = [line for line in err.splitlines() if line.startswith("spearpool: warning: ")]
    assert "task 'broken' has 0 of 1 instances: " in warning
    assert "exited with code 1" in warning


def test_the_pools_name_may_come_from_the_environment(runtime_env: RuntimeEnv) -> None:
    """As for the commands that look for it."""
    named = RuntimeEnv(
        runtime_env.runtime_dir, runtime_env.state_dir, runtime_env.environ | {"SPEARPOOL_NAME": "of-the-environment"}
    )
    with live_pool(named) as pool:
        assert pool.name == "of-the-environment"
        assert spearpool(named, "status").returncode == 0


def test_a_mistyped_variable_is_a_wrong_configuration(runtime_env: RuntimeEnv) -> None:
    environ = runtime_env.environ | {"SPEARPOOL_WORKERS": "8"}
    done = spearpool(RuntimeEnv(runtime_env.runtime_dir, runtime_env.state_dir, environ), "start")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"SPEARPOOL_WORKERS = '8': expected a variable that spearpool knows" in done.stderr
    assert b"did you mean SPEARPOOL_POOL_WORKERS?" in done.stderr


# What ends it


def test_end_of_the_lifeline_stops_the_pool(runtime_env: RuntimeEnv) -> None:
    ours, theirs = os.pipe()
    with _started(runtime_env, "--json", "--lifeline-fd", str(ours), pass_fds=(ours,)) as process:
        os.close(ours)
        assert _line(process)
        os.write(theirs, b"still here")
        status = spearpool(runtime_env, "status", "--json")
        assert json.loads(status.stdout)["state"] == "ready"
        os.close(theirs)
        assert _end(runtime_env, process)[:2] == (0, "")


def _start_up_s(env: RuntimeEnv) -> float:
    """How long this machine takes for a start at present."""
    begin = time.monotonic()
    with _started(env, *EARLY) as process:
        _line(process)
        taken = time.monotonic() - begin
        process.send_signal(signal.SIGTERM)
        assert _end(env, process)[0] == 0
    return taken


EARLY = ("--name", "early", "--task", "sum=exec:sha256sum", "--task", f"up={HANDLERS}:upper")


@pytest.mark.parametrize("times", [5, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_of_a_start(runtime_env: RuntimeEnv, number: signal.Signals, times: int) -> None:
    """It kills as long as there is nothing; from then on it stops the pool in order. Either way nothing is left."""
    chance = random.Random(times)
    name = f"early-{number}-{times}"
    longest_s = 1.2 * _start_up_s(runtime_env)
    ends: Counter[int] = Counter()
    for _ in range(times):
        with _started(runtime_env, *EARLY, "--name", name) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, longest_s))
            process.send_signal(number)
            code, _, err = _end(runtime_env, process)
        ends[code] += 1
        assert code in {0, -number} or (code, err.strip()) == (1, "Aborted!"), err
        assert code < 0 or "Traceback" not in err
        assert not descendants(os.getpid())
        assert not list(Path("/dev/shm").glob(f"spearpool-{os.geteuid()}-{name}-*"))
    assert ends[0], ends


def test_held_signals_are_not_forgotten(runtime_env: RuntimeEnv) -> None:
    """They come while the interpreter that will be the supervisor is not there yet; whoever started it holds them."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *EARLY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=runtime_env.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    ) as process:
        code, out, err = _end(runtime_env, process)
    assert (code, out) == (0, ""), err
    assert "Traceback" not in err


HOLDER = """
import os, signal, sys
from spearpool.cli import main
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
main(["start", *sys.argv[1:]])
"""


# As a daemon


@contextlib.contextmanager
def _daemon(env: RuntimeEnv, *words: str) -> Iterator[subprocess.CompletedProcess[bytes]]:
    """A daemon that is told to stop at the end."""
    done = spearpool(env, "start", "--daemon", *words)
    try:
        yield done
    finally:
        stopped = spearpool(env, "stop", "--timeout", "5")
    assert stopped.returncode == 0, stopped.stderr.decode()


def test_daemon_returns_with_the_ready_line_and_stays(runtime_env: RuntimeEnv) -> None:
    words = ("--json", "--task", f"up={HANDLERS}:upper")
    env = RuntimeEnv(runtime_env.runtime_dir, runtime_env.state_dir, runtime_env.environ | {"PYTHONPATH": str(ROOT)})
    with _daemon(env, *words) as done:
        assert (done.returncode, done.stderr) == (0, b"")
        (line,) = done.stdout.splitlines()
        ready = json.loads(line)
        assert set(ready) == READY
        supervisor = ProcessIdentity.of(ready["pid"])
        assert supervisor.alive()
        assert os.getsid(ready["pid"]) == ready["pid"]  # no terminal can end it
        assert spearpool(env, "execute", "up", "--input", "-", data=b"still here").stdout == b"STILL HERE"
        assert (runtime_env.state_dir / "default" / "logs" / "pool.log").exists()
    assert not supervisor.alive()
    assert not list(runtime_env.runtime_dir.iterdir())


def test_daemon_for_people_with_its_warnings(runtime_env: RuntimeEnv) -> None:
    with _daemon(runtime_env, "--task", "broken=agent:/bin/false") as done:
        assert done.returncode == 0
        assert done.stdout.startswith(b"pool default ready on 127.0.0.1:")
        (warning,) = done.stderr.decode().splitlines()
        assert warning.startswith("spearpool: warning: task 'broken' has 0 of 1 instances: ")


def test_daemon_that_fails_speaks_through_its_parent(runtime_env: RuntimeEnv) -> None:
    log = runtime_env.state_dir / "default" / "logs" / "pool.log"
    log.parent.mkdir(parents=True, mode=0o700)
    log.parent.parent.chmod(0o700)
    log.write_text("what an earlier pool said\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        foreground = spearpool(runtime_env, "start", "--port", port)
        done = spearpool(runtime_env, "start", "--daemon", "--port", port)
    assert (done.returncode, done.stdout) == (foreground.returncode, b"") == (1, b"")
    assert done.stderr.splitlines()[-1] == foreground.stderr.splitlines()[-1]
    assert b"earlier pool" not in done.stderr
    assert log.read_bytes().endswith(done.stderr)
    assert not list(runtime_env.runtime_dir.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_daemon_of_a_parent_that_is_interrupted(runtime_env: RuntimeEnv, number: signal.Signals) -> None:
    words = [sys.executable, "-m", "spearpool", "start", "--daemon", "--task", "mute=agent:/bin/sleep 60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=runtime_env.environ) as parent:
        description = runtime_env.runtime_dir / "default" / "pool.json"
        eventually(description.exists, 20)
        daemon = ProcessIdentity.of(json.loads(description.read_text())["pid"])
        parent.send_signal(number)
        out, err = parent.communicate(timeout=30 * TIME_SCALE)
    assert (parent.returncode, out) == (1, b"")
    assert err.splitlines()[-1] == b"spearpool: error: the daemon was told to stop before it was ready"
    assert not daemon.alive()
    assert not list(runtime_env.runtime_dir.iterdir())


def test_daemon_of_a_wrong_configuration_has_its_exit_code(runtime_env: RuntimeEnv) -> None:
    done = spearpool(runtime_env, "start", "--daemon", "--task", "a=exec:/no/such/program")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"/no/such/program" in done.stderr
    assert b"Traceback" not in done.stderr


def test_daemon_that_is_killed_before_it_is_ready(runtime_env: RuntimeEnv) -> None:
    words = [sys.executable, "-m", "spearpool", "start", "--daemon", "--task", "mute=agent:/bin/sleep 60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=runtime_env.environ) as parent:
        description = runtime_env.runtime_dir / "default" / "pool.json"
        eventually(description.exists, 20)
        daemon = ProcessIdentity.of(json.loads(description.read_text())["pid"])
        everybody = [daemon, *map(ProcessIdentity.of, descendants(daemon.pid))]
        os.kill(daemon.pid, signal.SIGKILL)
        out, err = parent.communicate(timeout=30 * TIME_SCALE)
    assert (parent.returncode, out) == (1, b"")
    assert b"the daemon was ended by signal 9 before it was ready" in err
    eventually(lambda: not [process for process in everybody if process.alive()], 5)
    segment = json.loads(description.read_text())["segment"]
    Path(segment).unlink()  # as the next start of the name would
