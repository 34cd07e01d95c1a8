#!/usr/bin/env python3
"""How long things take to be there, and what they weigh: instances by stage, eight workers, memory of an idle worker.

    python benchmarks/startup.py [--rounds 5] [--instances 8] [--json]

Stages are milliseconds from the request for an instance, medians over the instances of all rounds, as `spearpool
instances` gives them: `first` with the pool, when zygotes have to be started too, and `again` after a SIGKILL. A
pool's time is from the exec of `spearpool start` to its ready line, beside what an empty `python -c pass` needs in the
same run. Memory is PSS: what processes share is divided among them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from pool_process import HERE, PoolProcess, median, pss_bytes, started_pool

__all__ = ["main"]

KINDS = {
    "python": "python:echo_task:echo",
    "exec": "exec:cat",
    "agent": f"agent:{sys.executable} {HERE / 'echo_task.py'}",
}
WORKERS = 8

Document = dict[str, Any]
Figures = dict[str, list[float]]


def instance_stages(count: int) -> Figures:
    """Cold starts of `count` instances of each kind, all requested at once, and then of one of each."""
    tasks = "".join(
        f'[tasks.{kind}]\ntarget = "{target}"\nmin_instances = {count}\nstart_timeout_s = 60\n'
        for kind, target in KINDS.items()
    )
    found: Figures = {}
    with started_pool(f'[pool]\nname = "bench-instances"\nworkers = 1\nstart_timeout_s = 60\n{tasks}') as pool:
        first = pool.ask("instances")
        again = [replacement(pool, next(each for each in first if each["task"] == kind)) for kind in KINDS]
        for when, instances in (("first", first), ("again", again)):
            for instance in instances:
                for stage, milliseconds in list(instance["stages_ms"].items())[1:]:
                    found.setdefault(f"{instance['task']}_{when}_{stage}_ms", []).append(milliseconds)
    return found


def replacement(pool: PoolProcess, instance: Document) -> Document:
    """Kill an instance and wait for the one that takes its place."""
    known = {each["instance_id"] for each in pool.ask("instances")}
    os.kill(instance["pid"], signal.SIGKILL)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for each in pool.ask("instances", "--task", instance["task"]):
            if each["instance_id"] not in known and "ready" in each["stages_ms"]:
                found: Document = each
                return found
    raise SystemExit(f"nothing took the place of {instance['instance_id']} within 30 s")


def worker_figures() -> Figures:
    """One start of a pool of eight workers without tasks."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    bare_s = time.perf_counter() - begin
    with started_pool(f'[pool]\nname = "bench-workers"\nworkers = {WORKERS}\n') as pool:
        return {
            "bare_python_ms": [bare_s * 1e3],
            f"{WORKERS}_workers_ready_ms": [pool.ready_s * 1e3],
            "supervisor_pss_mib": [pss_bytes(pool.ready["pid"]) / 2**20],
            "worker_pss_mib": worker_pss(pool),
        }


def worker_pss(pool: PoolProcess) -> list[float]:
    return [pss_bytes(worker["pid"]) / 2**20 for worker in pool.ask("status")["workers"]]


def collect(rounds: int, instances: int) -> Figures:
    found: Figures = {}
    for _ in range(rounds):
        for figures in (worker_figures(), instance_stages(instances)):
            for name, values in figures.items():
                found.setdefault(name, []).extend(values)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=8, help="of each kind, at once; default: 8")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, dict[str, Any]] = {
        name: {"median": round(median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}
        for name, values in collect(options.rounds, options.instances).items()
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, row in result.items():
        print(f"{name:28} {row['median']:10,.2f}   ({row['min']:,.2f} to {row['max']:,.2f})")


if __name__ == "__main__":
    main()
