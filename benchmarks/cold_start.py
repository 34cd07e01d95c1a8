#!/usr/bin/env python3
"""How long a new instance takes to be ready, by stage and kind of target, beside fresh processes of multiprocessing.

    python benchmarks/cold_start.py [--rounds 50] [--json]

Each round restarts one instance of each kind and takes the stages of its successor from the pool's own events; then it
starts one process each of multiprocessing's spawn and forkserver (told to preload the module), and has it say a first
word. The `python:` handler and the processes import numpy. An `agent:` program is an interpreter of its
own: `own start` is how long the same interpreter takes to import the same program by itself. Milliseconds; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pool_process import HERE, PoolProcess, median, started_pool

from spearpool.metrics.bus import InstanceEvent, Subscriber, ask

__all__ = ["main"]

STAGES = ("spawned", "connected", "authenticated", "ready")
TARGETS = {
    "python": "python:numpy_task:total",
    "exec": "exec:cat",
    "agent": f"agent:{sys.executable} {HERE / 'echo_task.py'}",
}
WITHIN_S = 30.0

Figures = dict[str, list[float]]


@contextmanager
def watched(pool: PoolProcess) -> Iterator[queue.Queue[InstanceEvent]]:
    """The events of instances, as they come."""
    found: queue.Queue[InstanceEvent] = queue.Queue()
    subscriber = Subscriber(pool.ready["endpoints"]["live"], {"instance", "heartbeat"})
    joined = threading.Event()

    def read() -> None:
        for item in subscriber.items():
            joined.set()
            if isinstance(item, InstanceEvent):
                found.put(item)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        if not joined.wait(WITHIN_S):
            raise SystemExit("the bus says nothing")
        yield found
    finally:
        subscriber.stop()
        thread.join()
        subscriber.close()


def restart(pool: PoolProcess, events: queue.Queue[InstanceEvent], instance: str) -> tuple[str, dict[str, float]]:
    """Replace an instance: its successor's name, and how long each of its stages took, in ms."""
    ask(pool.ready["endpoints"]["ask"], "signal", {"instance": instance, "signal": "restart"}, timeout_s=WITHIN_S)
    stages: dict[str, float] = {}
    successor, gone = "", False
    while not (gone and "ready" in stages):
        event = events.get(timeout=WITHIN_S)
        gone = gone or (event.instance_id == instance and event.stage in {"exited", "failed"})
        if event.instance_id != instance and event.stage in STAGES:
            assert event.duration_s is not None
            successor, stages[event.stage] = event.instance_id, event.duration_s * 1e3
    return successor, stages


@contextmanager
def starter() -> Iterator[Callable[[str], float]]:
    """Starts processes of multiprocessing's in a program that imports little else: the milliseconds to a first word."""
    command = [sys.executable, str(HERE / "numpy_task.py")]
    environ = os.environ | {"PYTHONPATH": str(HERE)}  # a forkserver has no other path to what it preloads
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def start(method: str) -> float:
            print(method, file=stdin, flush=True)
            return float(stdout.readline())

        yield start
        stdin.close()


def own_start_ms() -> float:
    """How long the agent's interpreter takes to be where it would dial."""
    code = "import echo_task, time; print(time.monotonic())"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, check=True, capture_output=True)
    return (float(done.stdout) - begin) * 1e3


def collect(rounds: int) -> Figures:
    found: Figures = {}
    tasks = "".join(f'[tasks.{kind}]\ntarget = "{target}"\n' for kind, target in TARGETS.items())
    settings = f'[pool]\nname = "bench-cold"\nworkers = 1\n{tasks}'
    with started_pool(settings) as pool, watched(pool) as events, starter() as start:
        names = {each["task"]: each["instance_id"] for each in pool.ask("instances")}
        for _ in range(rounds):
            for kind in TARGETS:
                names[kind], stages = restart(pool, events, names[kind])
                for stage, took_ms in stages.items():
                    found.setdefault(f"{kind} {stage}", []).append(took_ms)
                found.setdefault(f"{kind} requested to ready", []).append(sum(stages.values()))
            found.setdefault("agent program's own start", []).append(own_start_ms())
            for method in ("spawn", "forkserver"):
                found.setdefault(f"multiprocessing {method}", []).append(start(method))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = collect(options.rounds)
    result = {
        name: {"median": median(values), "min": min(values), "max": max(values)} for name, values in figures.items()
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, row in result.items():
        print(f"{name:28} {row['median']:9.2f}   ({row['min']:.2f} to {row['max']:.2f})")
    beyond = result["agent requested to ready"]["median"] - result["agent program's own start"]["median"]
    print(f"{'agent beyond its own start':28} {beyond:9.2f}")


if __name__ == "__main__":
    main()
