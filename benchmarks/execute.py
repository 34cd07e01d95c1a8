#!/usr/bin/env python3
"""Executions through a pool (client → one worker → two instances) beside `ProcessPoolExecutor(2)`, in one run.

    python benchmarks/execute.py [--rounds 5] [--seconds 2] [--json]

Rounds alternate. One at a time: p50 and p99 of a call. In flight: calls per second with 64 of them under way, by the
same loop over futures for both. The pool's figure is given three times: through our client with one execution in each
instance, with a second one waiting inside it (`prefetch = 1`), and by the load harness over the bare wire. Every answer
is compared with its input. Only the ratios mean anything; the aims are p50 ≤ 1.5 × and throughput ≥ 1.0 ×.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from echo_task import echo_bytes
from pool_process import HERE, PoolProcess, median, started_pool

from spearpool.client import Client

__all__ = ["main"]

IN_FLIGHT = 64
SETTINGS = """
[pool]
name = "bench-execute"
workers = 1
[tasks.echo]
target = "python:echo_task:echo"
min_instances = 2
[tasks.echo-prefetch]
target = "python:echo_task:echo"
min_instances = 2
prefetch = 1
"""

Call = Callable[[bytes], bytes]
Begin = Callable[[bytes], Callable[[], bytes]]


def latencies_us(call: Call, seconds: float) -> list[float]:
    """Of one call after the other."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        sent = b"input number %d, and some more bytes to make it look like something" % len(found)
        answer = call(sent)
        found.append((time.perf_counter() - begin) * 1e6)
        check(sent, answer)
    return found


def begin_on_client(client: Client, task: str) -> Begin:
    """Submit an execution; what is returned waits for its output."""

    def begin(sent: bytes) -> Callable[[], bytes]:
        future = client.submit(task, input=sent)
        return lambda: future.result(30).output

    return begin


def per_second(begin_one: Begin, seconds: float) -> float:
    """Calls per second with `IN_FLIGHT` under way."""
    waiting: deque[tuple[bytes, Callable[[], bytes]]] = deque()
    count, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds or waiting:
        while elapsed < seconds and len(waiting) < IN_FLIGHT:
            sent = b"input number %d, and some more bytes to make it look like something" % (count + len(waiting))
            waiting.append((sent, begin_one(sent)))
        sent, answer = waiting.popleft()
        check(sent, answer())
        count += 1
    return count / (time.perf_counter() - begin)


def check(sent: bytes, answer: bytes) -> None:
    if answer != sent:
        raise SystemExit(f"a wrong answer: sent {sent!r}, got {answer!r}")


def harness_per_second(pool: PoolProcess, task: str, seconds: float) -> float:
    """The load harness's figure, over the bare wire."""
    command = [
        sys.executable,
        str(HERE.parent / "tools" / "loadtest.py"),
        "--json",
        "--mode",
        "execute",
        "--task",
        task,
    ]
    command += ["--address", "{}:{}".format(*pool.address), "--token-file", str(pool.token_file)]
    command += ["--connections", "4", "--concurrency", str(IN_FLIGHT), "--duration", str(seconds)]
    found: float = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["per_second"]
    return found


def run(rounds: int, seconds: float) -> dict[str, list[float]]:
    """All figures of all rounds, by name."""
    found: dict[str, list[float]] = {}
    with ProcessPoolExecutor(2) as executor, started_pool(SETTINGS) as pool:
        for future in [executor.submit(echo_bytes, b"warm") for _ in range(IN_FLIGHT)]:
            future.result()  # its processes are forked here, before the client has threads
        with Client(address="{}:{}".format(*pool.address), token_file=pool.token_file) as client:
            client.execute("echo", input=b"warm")
            calls: dict[str, Call] = {
                "executor": lambda sent: executor.submit(echo_bytes, sent).result(),
                "spearpool": lambda sent: client.execute("echo", input=sent),
            }
            begins: dict[str, Begin] = {
                "executor": lambda sent: executor.submit(echo_bytes, sent).result,
                "spearpool": begin_on_client(client, "echo"),
                "spearpool_prefetch": begin_on_client(client, "echo-prefetch"),
            }
            for _ in range(rounds):
                for name, call in calls.items():
                    times = sorted(latencies_us(call, seconds))
                    found.setdefault(f"{name}_p50_us", []).append(times[len(times) // 2])
                    found.setdefault(f"{name}_p99_us", []).append(times[len(times) * 99 // 100])
                for name, begin in begins.items():
                    found.setdefault(f"{name}_per_second", []).append(per_second(begin, seconds))
                for name, task in (("wire", "echo"), ("wire_prefetch", "echo-prefetch")):
                    rate = harness_per_second(pool, task, seconds)
                    found.setdefault(f"{name}_per_second", []).append(rate)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement; default: 2")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {name: round(median(values), 1) for name, values in run(options.rounds, options.seconds).items()}
    ratios = {
        f"{name}_ratio": round(value / figures[f"executor_{unit}"], 3)
        for name, value in figures.items()
        for unit in ("p50_us", "p99_us", "per_second")
        if name.endswith(unit) and not name.startswith("executor")
    }
    if options.json:
        print(json.dumps(figures | ratios))
        return
    for name, value in figures.items():
        ratio = ratios.get(f"{name}_ratio")
        print(f"{name:32} {value:12,.1f}" + (f"   {ratio:.2f} × executor" if ratio is not None else ""))


if __name__ == "__main__":
    main()
