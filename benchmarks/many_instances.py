#!/usr/bin/env python3
"""Many instances of one Python task: how long until all are ready and until all are gone, and what idling costs.

    python benchmarks/many_instances.py [--instances 300] [--idle 10] [--json]

Three limits of each instance are read back every second all the while. Memory is PSS, of twenty instances: what
processes share is divided among them. CPU is that of the whole supervisor process, in per cent of one CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from pool_process import cpu_seconds, pss_bytes, started_pool

__all__ = ["main"]

SETTINGS = """
[pool]
name = "bench-many"
workers = 2
start_timeout_s = 300
[budget]
instances = {count}
memory_bytes = {memory}
[limits]
memory_bytes = 1073741824
open_files = 256
cpu_seconds = 3600
[tasks.echo]
target = "python:echo_task:echo"
min_instances = {count}
start_timeout_s = 300
"""


def measure(count: int, idle_s: float) -> dict[str, float]:
    with started_pool(SETTINGS.format(count=count, memory=count << 30)) as pool:
        instances = pool.ask("instances")
        if sum(each["state"] == "ready" for each in instances) != count:
            raise SystemExit("not all instances are ready; `status` would say why")
        begin = time.monotonic()
        pool.ask("status")
        status_s = time.monotonic() - begin
        sample = instances[:20]
        weight = sum(pss_bytes(each["pid"]) for each in sample) / len(sample)
        supervisor = pool.ready["pid"]
        used, begin = cpu_seconds(supervisor), time.monotonic()
        time.sleep(idle_s)
        idle = (cpu_seconds(supervisor) - used) / (time.monotonic() - begin)
        ready_s, begin = pool.ready_s, time.monotonic()
    stopped_s = time.monotonic() - begin
    if any(Path(f"/proc/{each['pid']}").exists() for each in instances):
        raise SystemExit("an instance outlived its pool")
    return {
        "instances": count,
        "all_ready_s": ready_s,
        "status_s": status_s,
        "all_stopped_s": stopped_s,
        "instance_pss_mib": weight / 2**20,
        "supervisor_idle_cpu_percent": idle * 100,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=300)
    parser.add_argument("--idle", type=float, default=10.0, metavar="SECONDS", help="how long to watch; default: 10")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {name: round(value, 2) for name, value in measure(options.instances, options.idle).items()}
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:28} {value:10,.2f}")


if __name__ == "__main__":
    main()
