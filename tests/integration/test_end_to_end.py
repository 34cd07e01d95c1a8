"""The main job with real parts: a pool, real programs, real clients, and the metrics of it all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, agent_program, live_pool

pytestmark = pytest.mark.process

CONNECTIONS = 50
EXECUTIONS = 1000


def test_thousand_concurrent_executions_of_each_task(runtime_env: RuntimeEnv) -> None:
    tasks = {"upper": f"{HANDLERS}:upper", "sum": "exec:sha256sum"}
    with live_pool(runtime_env, "--workers", "8", tasks=tasks) as pool:
        inputs = [f"input {number}".encode() for number in range(EXECUTIONS)]
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            shares = [inputs[first::CONNECTIONS] for first in range(CONNECTIONS)]
            answers = [
                pair for share in threads.map(lambda share: _execute_both(pool, share), shares) for pair in share
            ]
        assert len(answers) == EXECUTIONS
        for data, upper, digest in answers:
            assert upper == data.upper()
            assert digest.split()[0].decode() == hashlib.sha256(data).hexdigest()
        totals = pool.status()["totals"]
        assert totals["executions_completed"] == 2 * EXECUTIONS
        assert totals["executions_failed"] == 0


def _execute_both(pool: LivePool, share: list[bytes]) -> list[tuple[bytes, bytes, bytes]]:
    """All of one connection's executions in flight at once."""
    with pool.client() as client:
        upper = [client.submit("upper", input=data) for data in share]
        digests = [client.submit("sum", input=data) for data in share]
        return [
            (data, one.result(60).output, other.result(60).output)
            for data, one, other in zip(share, upper, digests, strict=True)
        ]


def test_tail_sees_every_event_of_a_hundred_connections(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", "4", tasks={"echo": f"{HANDLERS}:echo"}) as pool:
        tail = subprocess.Popen(
            [sys.executable, "-m", "spearpool", "metrics", "tail", "--name", pool.name, "--json", "--kind", "event"],
            stdout=subprocess.PIPE,
            env=runtime_env.environ,
        )
        assert tail.stdout is not None
        lines: list[dict[str, object]] = []
        reader = threading.Thread(target=lambda: lines.extend(map(json.loads, tail.stdout or ())))
        reader.start()
        try:
            with pool.client() as probe:  # the tail is listening when it has seen this one
                eventually(lambda: probe.execute("echo", input=b"?") and lines, 20)
            before = pool.status()["totals"]
            for _ in range(100):
                with pool.client() as client:
                    assert client.execute("echo", input=b"x") == b"x"
            eventually(lambda: pool.status()["totals"]["connections_open"] <= before["connections_open"], 10)
            after = pool.status()["totals"]
            eventually(lambda: _count(lines)["authenticated"] >= after["authenticated"] - before["authenticated"], 10)
        finally:
            eventually(lambda: _quiet(lines), 10)
            tail.send_signal(signal.SIGINT)
            reader.join(20)
            tail.stdout.close()
            assert tail.wait(20) == 0
        account = lines[-1]
        assert account["kind"] == "account"
        assert account["lost_ring"] == 0
        assert account["lost_bus"] == 0
        events = [line for line in lines if line["kind"] == "event"]
        assert account["received"] == len(events)
        clients = {e["connection_id"] for e in events if e["type"] == "connected"}
        ours = [
            c for c in clients if _types_of(events, c)["authenticated"] == 1 and _types_of(events, c)["disconnected"]
        ]
        assert len(ours) >= 100
        for connection in ours[:100]:
            requests = [e for e in events if e["connection_id"] == connection and e["message_type"] == "ExecuteRequest"]
            answers = [e for e in events if e["connection_id"] == connection and e["message_type"] == "ExecuteResponse"]
            assert len(requests) == len(answers) >= 1


def _count(lines: list[dict[str, object]]) -> Counter[object]:
    return Counter(line.get("type") for line in lines)


def _quiet(lines: list[dict[str, object]], seen: list[int] = []) -> bool:  # noqa: B006 - remembers on purpose
    """Whether nothing has come since the last look but one."""
    seen.append(len(lines))
    return len(seen) > 50 and seen[-1] == seen[-50]


def _types_of(events: list[dict[str, object]], connection: object) -> Counter[object]:
    return Counter(e["type"] for e in events if e["connection_id"] == connection)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one CPU: nothing to widen")
def test_limits_are_shown_as_they_are_now(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    """An instance widens its set of CPUs, and is put back to it."""
    cpus = sorted(os.sched_getaffinity(0))
    config = tmp_path / "pool.toml"
    limits = f"[tasks.echo.limits]\ncpu_affinity = [{cpus[0]}]\nopen_files = 100\n"
    config.write_text(f'[tasks.echo]\ntarget = "{HANDLERS}:echo"\n{limits}')
    with live_pool(runtime_env, "--config", str(config)) as pool:

        def shown(name: str) -> tuple[int, str, int]:
            (instance,) = json.loads(pool.cli("instances", "--json").stdout)
            (limit,) = [limit for limit in instance["limits"] if limit["name"] == name]
            return limit["value"], limit["level"], limit["breaches"]

        pid = pool.status()["instances"][0]["pid"]
        assert shown("cpu_affinity") == (1, "enforced", 0)
        os.sched_setaffinity(pid, cpus)
        eventually(lambda: shown("cpu_affinity") == (len(cpus), "watched", 1), 10)
        os.sched_setaffinity(pid, cpus[:1])
        eventually(lambda: shown("cpu_affinity") == (1, "enforced", 1), 10)
        assert shown("open_files") == (100, "enforced", 0)


def test_a_program_that_knows_only_the_wire_is_an_agent(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", "2", tasks={"plain": agent_program("plain_agent.py")}) as pool:
        with pool.client() as client:
            assert [client.execute("plain", input=word) for word in (b"one", b"two")] == [b"ONE", b"TWO"]
        assert pool.status()["instances"][0]["state"] == "ready"


def test_exec_task_over_a_real_file(runtime_env: RuntimeEnv) -> None:
    source = Path(json.__file__)
    with live_pool(runtime_env, tasks={"sum": "exec:sha256sum"}) as pool:
        done = pool.cli("execute", "sum", str(source))
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[0].decode() == hashlib.sha256(source.read_bytes()).hexdigest()


def test_stop_leaves_nothing(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", "3", tasks={"echo": f"{HANDLERS}:echo"}) as pool:
        segment = Path(pool.ready["segment"])
        assert segment.exists()
        assert pool.cli("stop").returncode == 0
        assert pool.process.wait(30) == 0
        assert not segment.exists()
        assert not Path(pool.ready["runtime_dir"]).exists()
        assert pool.cli("status").returncode == 3
