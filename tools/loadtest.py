#!/usr/bin/env python3
"""Put a running pool under load over its public wire, and check every answer.

    python tools/loadtest.py --mode execute --task upper --expect upper --connections 50 --concurrency 200 --duration 10
    python tools/loadtest.py --mode execute --task sum --expect sha256 --rate 500 --duration 30 --json
    python tools/loadtest.py --mode heartbeat --connections 32 --address 127.0.0.1:9100 --token-file client.token

With --rate the loop is open: requests leave at their times whatever the pool does, and a latency counts from the time
at which its request should have left. Without it the loop is closed: --concurrency requests are always under way.
Needs the development extra (`pip install -e '.[dev]'`), for HdrHistogram.
Exit codes: 0 all answers right · 1 a wrong, duplicate, stray or missing answer, or none at all · 2 usage · 3 no such
pool is running · 5 refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import uvloop
from load_driver import Drive
from load_plan import EXPECTATIONS, Outcome, Plan, merge

from spearpool.errors import AuthenticationError, NoSuchPool, PoolError, SpearpoolError
from spearpool.processes import set_parent_death_signal
from spearpool.runtime_dir import RuntimeDir, find_pool

__all__ = ["main"]

FAILED, NOT_RUNNING, REFUSED = 1, 3, 5
BROKEN_PROMISES = ("wrong", "duplicate", "stray", "missing")
CONNECTION_COUNTS = ("connections_opened", "authenticated", "connections_lost", "reconnects")
PROGRESS_S = 0.5
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}


@dataclass(frozen=True, slots=True)
class Ready:
    """From a process: its connections are open."""


@dataclass(frozen=True, slots=True)
class Report:
    """From a process: how far it is; `final` with the last one."""

    outcome: Outcome
    final: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """From a process: it could not begin."""

    reason: str
    exit_code: int


class LoadError(SpearpoolError):
    """The run could not be done."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


# One process


def work(plan: Plan, pipe: Pipe, parent: int) -> None:
    """What a process of the harness does: say `Ready`, wait for the start time, work, report."""
    set_parent_death_signal(signal.SIGKILL, parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the loop takes it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_drive(plan, pipe))
        except* AuthenticationError as group:
            pipe.send(Failed(f"the pool refused the token: {group.exceptions[0]}", REFUSED))
        except* (OSError, TimeoutError, SpearpoolError) as group:
            pipe.send(Failed(f"cannot connect to {plan.host}:{plan.port}: {group.exceptions[0]!r}", FAILED))


async def _drive(plan: Plan, pipe: Pipe) -> None:
    drive = Drive(plan)
    await drive.prepare()
    pipe.send(Ready())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, drive.stop)
    started: asyncio.Future[float] = loop.create_future()
    loop.add_reader(pipe.fileno(), lambda: started.set_result(pipe.recv()))
    start_s = await started
    loop.remove_reader(pipe.fileno())
    running = loop.create_task(drive.run(start_s))
    while not running.done():
        await asyncio.wait([running], timeout=PROGRESS_S)
        if not running.done():
            pipe.send(Report(drive.outcome(), final=False))
    running.result()
    pipe.send(Report(drive.outcome(), final=True))


# All processes


@contextmanager
def crew(plans: Sequence[Plan]) -> Iterator[list[Pipe]]:
    """One forked process per plan; gone at the end."""
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for plan in plans:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(plan, theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        yield pipes
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            process.join()
            process.close()
            pipe.close()


def receive(pipe: Pipe) -> Ready | Report:
    """The next message of a process. Raises `LoadError` when it failed or died."""
    try:
        message = pipe.recv()
    except (EOFError, ConnectionError):
        raise LoadError("a process of the harness died", FAILED) from None
    if isinstance(message, Failed):
        raise LoadError(message.reason, message.exit_code)
    assert isinstance(message, Ready | Report)
    return message


def run(plans: Sequence[Plan], show: Any) -> tuple[Outcome, Any]:
    """Carry out the plans together; `show(outcome, latency)` is called as they go. Raises `LoadError`."""
    with crew(plans) as pipes:
        for pipe in pipes:
            receive(pipe)
        start_s = time.monotonic() + 0.05
        for pipe in pipes:
            pipe.send(start_s)
        latest: dict[Pipe, Outcome] = {}
        working = set(pipes)
        while working:
            for pipe in _readable(working):
                report = receive(pipe)
                assert isinstance(report, Report)
                latest[pipe] = report.outcome
                if report.final:
                    working.remove(pipe)
            show(*merge(latest.values()))
        return merge(latest.values())


def _readable(pipes: set[Pipe]) -> list[Pipe]:
    """Wait for any of them. Ctrl-C reaches the processes too: they end early, and we wait for what they say."""
    while True:
        try:
            return [pipe for pipe in wait(list(pipes)) if isinstance(pipe, Pipe)]
        except KeyboardInterrupt:
            continue


# What people and programs see


def latencies(histogram: Any) -> dict[str, float]:
    """Milliseconds."""
    found = {name: histogram.get_value_at_percentile(percentile) / 1000 for name, percentile in PERCENTILES.items()}
    return found | {"max": histogram.get_max_value() / 1000, "mean": round(histogram.get_mean_value() / 1000, 3)}


def document(options: argparse.Namespace, outcome: Outcome, histogram: Any) -> dict[str, Any]:
    """The result as `--json` prints it."""
    counts, completed = outcome.counts, outcome.counts["completed"]
    return {
        "mode": options.mode,
        "processes": options.processes,
        "connections": options.connections,
        "rate": options.rate,
        "concurrency": None if options.rate else options.concurrency,
        "task": options.task if options.mode == "execute" else None,
        "expect": options.expect if options.mode == "execute" else None,
        "elapsed_s": round(outcome.elapsed_s, 3),
        "completed": completed,
        "per_second": round(completed / outcome.elapsed_s, 1) if outcome.elapsed_s else 0.0,
        "latency_from": "intended send time" if options.rate else "send time",
        "latency_ms": latencies(histogram) if completed else None,
        **{name: counts[name] for name in ("sent", *BROKEN_PROMISES)},
        "errors": {kind: count for kind, count in sorted(outcome.errors.items()) if count},
        "wrong_examples": outcome.wrong_examples,
        **{name: counts[name] for name in CONNECTION_COUNTS},
        **{name: counts[name] for name in ("messages_out", "messages_in", "bytes_out", "bytes_in")},
    }


def print_table(result: dict[str, Any]) -> None:
    """The result for people."""
    loop = f"open loop, {result['rate']:g}/s" if result["rate"] else f"closed loop, {result['concurrency']} at once"
    print(f"{result['mode']}: {result['connections']} connections, {result['processes']} processes, {loop}")
    rows = [
        ("completed", f"{result['completed']:,} in {result['elapsed_s']} s: {result['per_second']:,}/s"),
        *(
            (f"latency {name.replace('_', '.')}", f"{value:,.3f} ms")
            for name, value in (result["latency_ms"] or {}).items()
        ),
        ("answers", ", ".join(f"{result[name]} {name}" for name in BROKEN_PROMISES)),
        ("errors", ", ".join(f"{count} × {kind}" for kind, count in result["errors"].items()) or "none"),
        (
            "connections",
            ", ".join(f"{result[name]:,} {name.removeprefix('connections_')}" for name in CONNECTION_COUNTS),
        ),
        ("messages", f"{result['messages_out']:,} out, {result['messages_in']:,} in"),
        *(("wrong answer", example) for example in result["wrong_examples"]),
    ]
    for name, text in rows:
        print(f"  {name:15} {text}")


def progress_line(outcome: Outcome, histogram: Any) -> str:
    counts, errors = outcome.counts, sum(outcome.errors.values())
    rate = counts["completed"] / outcome.elapsed_s if outcome.elapsed_s else 0.0
    p50, p99 = (histogram.get_value_at_percentile(percentile) / 1000 for percentile in (50.0, 99.0))
    broken = sum(counts[name] for name in BROKEN_PROMISES)
    return (
        f"{outcome.elapsed_s:6.1f} s  {counts['completed']:,} done  {rate:,.0f}/s  p50 {p50:.2f} ms  p99 {p99:.2f} ms  "
        f"{errors} errors  {broken} wrong  {counts['reconnects']} reconnects"
    )


# The command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("connect", "heartbeat", "execute"), default="execute")
    parser.add_argument("--name", default="default", help="the pool; default: default")
    parser.add_argument("--address", metavar="HOST:PORT", help="instead of --name; needs --token-file")
    parser.add_argument("--token-file", type=Path, help="the client's token; default: the pool's own")
    parser.add_argument("--processes", type=_number(int, 1), default=1, help="of this harness; default: 1")
    parser.add_argument("--connections", type=_number(int, 1), default=16, help="in all; connect: at once; default: 16")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_number(float, 0.001), help="open loop: units per second, in all")
    pace.add_argument("--concurrency", type=_number(int, 1), help="closed loop: units at once; default: --connections")
    parser.add_argument("--duration", type=_number(float, 0.01), default=10.0, help="seconds; default: 10")
    parser.add_argument("--drain", type=_number(float, 0.0), default=10.0, help="seconds to wait for the last answers")
    parser.add_argument("--task", help="what to execute")
    parser.add_argument("--payload-bytes", type=_number(int, 0), default=200, help="size of each input; default: 200")
    parser.add_argument("--expect", choices=tuple(EXPECTATIONS), default="echo", help="the answer; default: echo")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    options.concurrency = options.concurrency or options.connections
    if options.mode == "execute" and not options.task:
        parser.error("--mode execute needs --task")
    if options.mode == "connect" and options.concurrency != options.connections:
        parser.error("--mode connect has one unit per connection: give --connections, not --concurrency")
    if options.address and not options.token_file:
        parser.error("--address needs --token-file")
    if options.processes > options.connections:
        parser.error(f"--processes {options.processes} is more than --connections {options.connections}")
    return options


def _number(kind: type[int | float], low: float) -> Any:
    def read(text: str) -> float:
        value = kind(text)
        if not low <= value < inf:
            raise ValueError(text)
        return value

    read.__name__ = f"{kind.__name__} of at least {low:g}"  # argparse says: invalid … value
    return read


def destination(options: argparse.Namespace) -> tuple[str, int, str]:
    """Host, port and token. Raises `PoolError` or `LoadError`."""
    if options.address:
        host, _, port = options.address.rpartition(":")
        if not port.isdecimal() or not host:
            raise LoadError(f"--address {options.address}: expected HOST:PORT", 2)
        where = host.strip("[]"), int(port)
    else:
        pool = find_pool(options.name, os.environ)
        where = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(pool.host, pool.host), pool.port
    if not options.token_file:
        return *where, RuntimeDir.locate(options.name, os.environ).read_client_token()
    try:
        return *where, options.token_file.read_text().strip()
    except OSError as error:
        raise LoadError(f"--token-file {options.token_file}: {error.strerror}", 2) from None


def divide(options: argparse.Namespace, host: str, port: int, token: str) -> list[Plan]:
    """Each process's share of connections, concurrency and rate."""
    processes: int = options.processes

    def share(total: int, index: int) -> int:
        each, more = divmod(total, processes)
        return each + (index < more)

    return [
        Plan(
            mode=options.mode,
            index=index,
            host=host,
            port=port,
            token=token,
            connections=share(options.connections, index),
            concurrency=share(options.concurrency, index),
            rate=(options.rate or 0.0) / processes,
            duration_s=options.duration,
            drain_s=options.drain,
            task=options.task or "",
            payload_bytes=options.payload_bytes,
            expect=options.expect if options.mode == "execute" else "none",
        )
        for index in range(processes)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    live = sys.stderr.isatty() and not options.json

    def show(outcome: Outcome, histogram: Any) -> None:
        if live:
            print(f"\r\033[K{progress_line(outcome, histogram)}", end="", file=sys.stderr, flush=True)

    try:
        outcome, histogram = run(divide(options, *destination(options)), show)
    except LoadError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return error.exit_code
    except PoolError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return NOT_RUNNING if isinstance(error, NoSuchPool) else FAILED
    finally:
        if live:
            print(file=sys.stderr)
    result = document(options, outcome, histogram)
    print(json.dumps(result)) if options.json else print_table(result)
    broken = any(result[name] for name in BROKEN_PROMISES)
    return FAILED if broken or not result["completed"] else 0


if __name__ == "__main__":
    sys.exit(main())
