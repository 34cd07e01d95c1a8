#!/usr/bin/env python3
"""A task whose program exits at once, for a minute: how often it is started, and what a neighbour notices of it.

    python benchmarks/crash_loop.py [--seconds 60] [--json]

The neighbour's executions, one after the other, are timed in a pool without that task and in one with it.
"""

from __future__ import annotations

import argparse
import json
import time

from neighbour import NEIGHBOUR, Neighbour, quantile_ms
from pool_process import started_pool

__all__ = ["main"]

POOL = f'[pool]\nname = "bench-crash"\nworkers = 2\n{NEIGHBOUR}'
CRASHING = '[tasks.crashing]\ntarget = "agent:/bin/false"\n'


def quiet(seconds: float) -> Neighbour:
    with started_pool(POOL) as pool, Neighbour(pool.ready["name"], pool.environ) as neighbour:
        time.sleep(seconds)
    return neighbour


def beside_crashes(seconds: float) -> tuple[Neighbour, int, str]:
    """For so long from the pool's start. Also how often the other task was started, and what `status` says of it."""
    with started_pool(POOL + CRASHING) as pool:
        with Neighbour(pool.ready["name"], pool.environ) as neighbour:
            time.sleep(max(1.0, seconds - pool.ready_s))
        status = pool.ask("status")
        (crashing,) = (task for task in status["tasks"] if task["name"] == "crashing")
        return neighbour, status["totals"]["instances_failed"], crashing["problem"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    before = quiet(min(10.0, options.seconds))
    beside, starts, problem = beside_crashes(options.seconds)
    result = {
        "seconds": options.seconds,
        "starts": starts,
        "neighbour_p50_quiet_ms": quantile_ms(before.seconds, 0.5),
        "neighbour_p50_beside_ms": quantile_ms(beside.seconds, 0.5),
        "p50_ratio": quantile_ms(beside.seconds, 0.5) / quantile_ms(before.seconds, 0.5),
        "neighbour_executions": len(beside.seconds),
        "neighbour_failed": len(beside.wrong),
        "problem": problem.splitlines()[0],
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:28} {value:.2f}" if isinstance(value, float) else f"{name:28} {value}")


if __name__ == "__main__":
    main()
