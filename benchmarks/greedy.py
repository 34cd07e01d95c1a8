#!/usr/bin/env python3
"""A greedy program for each limit: what ends it, after how long, and what a neighbour task notices meanwhile.

    python benchmarks/greedy.py [--only NAME …] [--json]

One pool, two workers. Each program in turn: the neighbour's executions are timed without it, then it is let loose, and
the neighbour's are timed until it has ended (for at least two seconds). A neighbour's execution that fails or answers
wrong is counted.
"""

from __future__ import annotations

import argparse
import json
import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cold_start import watched
from neighbour import NEIGHBOUR, Neighbour, quantile_ms
from pool_process import PoolProcess, started_pool

from spearpool.client import Client
from spearpool.errors import SpearpoolError
from spearpool.metrics.bus import InstanceEvent

__all__ = ["main"]

MIB = 1 << 20
QUIET_S = 4.0
LEAST_S = 2.0
WITHIN_S = 60.0
LOG_BYTES = 20 * MIB


@dataclass(frozen=True, slots=True)
class Greedy:
    """One program: a handler of `tests/programs/greedy.py`, the argument it gets, and its limit as TOML."""

    name: str
    handler: str
    amount: str
    limit: str
    setting: str

    @property
    def toml(self) -> str:
        section = "" if self.limit == "log_bytes" else f"[tasks.{self.name}.limits]\n"
        target = f"python:tests.programs.greedy:{self.handler}"
        return f'[tasks.{self.name}]\ntarget = "{target}"\n{section}{self.limit} = {self.setting}\n'


PROGRAMS = (
    Greedy("memory-hog", "hog", str(1024 * MIB), "memory_bytes", str(256 * MIB)),
    Greedy("cpu-burner", "burn", "60", "cpu_cores", "0.5"),
    Greedy("cpu-eater", "burn", "60", "cpu_seconds", "2"),
    Greedy("fd-leaker", "leak", "5000", "open_files", "256"),
    Greedy("file-writer", "write", str(1024 * MIB), "file_size_bytes", str(64 * MIB)),
    Greedy("disk-filler", "fill", str(256 * MIB), "disk_bytes", str(64 * MIB)),
    Greedy("fork-bomb", "bomb", "200", "processes", "32"),
    Greedy("net-flood", "flood", str(16 * MIB), "network_bytes_per_s", str(4 * MIB)),
    Greedy("log-flood", "shout", str(1024 * MIB), "log_bytes", str(LOG_BYTES)),
    Greedy("sleeper", "sleep", "600", "execution_timeout_s", "2"),
)


def measure(pool: PoolProcess, program: Greedy, events: queue.Queue[InstanceEvent]) -> dict[str, Any]:
    with Neighbour(pool.ready["name"], pool.environ) as before:
        time.sleep(QUIET_S)
    (instance,) = pool.ask("instances", "--task", program.name)
    levels = {limit["name"]: limit["level"] for limit in instance["limits"]}
    log = Path(
        pool.environ["XDG_STATE_HOME"], "spearpool", pool.ready["name"], "logs", f"{instance['instance_id']}.log"
    )
    with (
        Neighbour(pool.ready["name"], pool.environ) as beside,
        Client(pool.ready["name"], environ=pool.environ) as client,
    ):
        begin = time.perf_counter()
        said, largest = outcome(client, program, log)
        took_s = time.perf_counter() - begin
        time.sleep(max(0.0, LEAST_S - took_s))
    if largest:
        said = f"its log had {largest / MIB:.0f} MiB at most"
    ended = [event for event in drained(events) if event.task == program.name and event.reason]
    quiet, loud = (quantile_ms(each.seconds, 0.99) for each in (before, beside))
    return {
        "program": program.name,
        "limit": f"{program.limit} = {program.setting}",
        "level": levels.get(program.limit, "watched"),
        "ended_by": f"its log had {largest / MIB:.0f} MiB at most"
        if largest
        else (ended[-1].reason if ended else said),
        "after_s": took_s,
        "quiet_p99_ms": quiet,
        "beside_p99_ms": loud,
        "p99_ratio": loud / quiet,
        "executions": len(beside.seconds),
        "failed": len(beside.wrong),
    }


def outcome(client: Client, program: Greedy, log: Path) -> tuple[str, int]:
    """How the execution ended, in words, and how large the instance's log got, if that is what it is about."""
    future = client.submit(program.name, program.amount, timeout=WITHIN_S)
    largest = 0
    while not future.done():
        if program.limit == "log_bytes":
            largest = max(largest, sum(path.stat().st_size for path in log.parent.glob(f"{log.name}*")))
        time.sleep(0.005)
    try:
        size = len(future.result().output)
    except SpearpoolError as error:
        return str(error).splitlines()[-1], largest
    return f"nothing: it got its {size} bytes, slowly", largest


def drained(events: queue.Queue[InstanceEvent]) -> list[InstanceEvent]:
    time.sleep(0.3)  # what has just happened is published within a tenth of a second
    return [events.get() for _ in range(events.qsize())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[program.name for program in PROGRAMS])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = [program for program in PROGRAMS if options.only is None or program.name in options.only]
    settings = f'[pool]\nname = "bench-greedy"\nworkers = 2\n{NEIGHBOUR}' + "".join(each.toml for each in chosen)
    rows = []
    with started_pool(settings) as pool, watched(pool) as events:
        for program in chosen:
            rows.append(measure(pool, program, events))
            if not options.json:
                print(line(rows[-1]), flush=True)
    if options.json:
        print(json.dumps(rows))


def line(row: dict[str, Any]) -> str:
    p99 = f"p99 {row['quiet_p99_ms']:.2f} → {row['beside_p99_ms']:.2f} ms ({row['p99_ratio']:.1f} ×)"
    failed = f", {row['failed']} FAILED" if row["failed"] else ""
    limit = f"{row['limit']} ({row['level']})"
    return f"{row['program']:12} {limit:46} {row['after_s']:6.2f} s  {p99:36}{failed}  {row['ended_by']}"


if __name__ == "__main__":
    main()
