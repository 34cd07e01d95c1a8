#!/usr/bin/env python3
"""What clients lose when workers are killed and servers are reloaded: spearpool beside Python's HTTP servers.

    python benchmarks/zero_loss.py [--kills 30] [--reloads 10] [--rate 320] [--burst 16] [--only gunicorn …] [--json]

All with four workers, and the same client: short connections that come in bursts at a fixed rate, one request each,
whatever the server does (a latency counts from when its request was due). Each blow waits until the one before it is
over: until a killed worker is replaced, until no worker of before a reload is left. Counted: connections *refused*,
connections *reset* (also: closed before the answer was whole), answers that say that it *failed* (for spearpool: that
nobody knows what became of the execution), *wrong* answers, requests *unanswered* after 10 s.

The others are installed into an environment of their own (in the user's cache directory; it stays for the next run);
one that does not install is left out. granian replaces killed workers only with --respawn-failed-workers, and its pause
between two replacements is shortened from 3.5 s. Left running: nothing, whatever happens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from struck_servers import (
    COMMANDS,
    REQUEST_S,
    SPEARPOOL,
    WORKERS,
    Server,
    environment,
    http_server,
    install,
    spear_server,
)

from spearpool.processes import become_subreaper, kill_descendants, start_ticks

__all__ = ["main"]

START_S = 20.0
BLOW_S = (0.6, 0.9)
"""Time between two blows, at least and, if the first is over by then, at most: in no step with the bursts."""

OVER_WITHIN_S = 20.0
LOOK_S = 0.02
KINDS = ("refused", "reset", "failed", "wrong", "unanswered")


@dataclass
class Tally:
    """What clients saw while one kind of blow fell. `unfinished` blows were not over in time."""

    blows: int = 0
    unfinished: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0

    def plain(self) -> dict[str, Any]:
        counts = {name: self.counts[name] for name in ("requests", *KINDS)}
        return {"blows": self.blows, "unfinished": self.unfinished, **counts, "worst_ms": round(1e3 * self.worst_s, 1)}


# The client


async def request(server: Server, tally: Tally, due: float) -> None:
    """One connection with one request."""
    tally.counts["requests"] += 1
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(REQUEST_S):
            reader, writer = await asyncio.open_connection(*server.address)
            answer = await server.exchange(reader, writer)
    except ConnectionRefusedError:
        tally.counts["refused"] += 1
    except TimeoutError:
        tally.counts["unanswered"] += 1
    except (OSError, asyncio.IncompleteReadError):
        tally.counts["reset"] += 1
    else:
        if answer != "right":
            tally.counts[answer] += 1
        tally.worst_s = max(tally.worst_s, time.monotonic() - due)
    finally:
        if writer is not None:
            writer.close()


@asynccontextmanager
async def load(server: Server, tally: Tally, options: argparse.Namespace) -> AsyncIterator[None]:
    """Requests come at their rate during the block; at its end those under way are waited for."""
    every_s = options.burst / options.rate
    under_way: set[asyncio.Task[None]] = set()
    begin = time.monotonic()

    async def come() -> None:
        bursts = 0
        while True:
            while (due := begin + bursts * every_s) <= time.monotonic():
                for _ in range(options.burst):
                    task = asyncio.create_task(request(server, tally, due))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                bursts += 1
            await asyncio.sleep(0.001)

    coming = asyncio.create_task(come())
    try:
        yield
    finally:
        coming.cancel()
        await asyncio.gather(coming, *under_way, return_exceptions=True)


# Blows


async def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(LOOK_S)
    return True


async def kill(server: Server) -> bool:
    """The oldest worker: a server that sees the same one die twice in a row may give up. False when it has."""
    victim = min(server.workers(), key=lambda pid: (start_ticks(pid) or 0, pid), default=None)
    if victim is None:
        return False
    os.kill(victim, signal.SIGKILL)
    return await within(OVER_WITHIN_S, lambda: replaced(server.workers(), {victim}))


async def reload(server: Server) -> bool:
    before = set(server.workers())
    assert server.reload is not None
    await server.reload()
    return await within(OVER_WITHIN_S, lambda: replaced(server.workers(), before))


def replaced(workers: Sequence[int], gone: set[int]) -> bool:
    return len(workers) >= WORKERS and gone.isdisjoint(workers)


async def strike(server: Server, blow: Callable[[], Awaitable[bool]], times: int, options: argparse.Namespace) -> Tally:
    """Under load, one blow after another."""
    tally = Tally()
    chance = random.Random(times)
    async with load(server, tally, options):
        await asyncio.sleep(BLOW_S[0])
        for _ in range(times):
            begin = time.monotonic()
            tally.unfinished += not await blow()
            tally.blows += 1
            await asyncio.sleep(max(0.0, begin + chance.uniform(*BLOW_S) - time.monotonic()))
    return tally


# The run


async def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Both kinds of blows on one server."""
    warm = Tally()
    end = time.monotonic() + START_S
    while not (warm.counts["requests"] and warm.counts.total() == warm.counts["requests"]):
        if time.monotonic() > end:
            raise RuntimeError(f"{server.name} does not answer")
        warm = Tally()
        await request(server, warm, time.monotonic())
        await asyncio.sleep(LOOK_S)
    if not await within(START_S, lambda: replaced(server.workers(), set())):
        raise RuntimeError(f"{server.name} did not start {WORKERS} workers")
    kills = await strike(server, lambda: kill(server), options.kills, options)
    found: dict[str, Any] = {"kills": kills.plain(), "reloads": None}
    if server.reload is not None:
        reloads = await strike(server, lambda: reload(server), options.reloads, options)
        found["reloads"] = reloads.plain()
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Name → what was found, or why it was left out."""
    names = [name for name in (SPEARPOOL, *COMMANDS) if not options.only or name in options.only]
    found: dict[str, Any] = {}
    for name in names:
        print(f"zero_loss: {name}", file=sys.stderr, flush=True)
        tools, version = Path(), None
        if name != SPEARPOOL:
            tools = environment()
            version = install(tools, COMMANDS[name][0])
            if version is None:
                found[name] = {"left_out": "pip cannot install it here"}
                continue
        with (
            spear_server() if name == SPEARPOOL else http_server(name, tools) as server,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            found[name] = {"version": version, **runner.run(measure(server, options))}
    return found


def table(found: dict[str, Any]) -> str:
    columns = ("blows", "unfinished", "requests", *KINDS, "worst_ms")
    lines = [f"{'':40}" + "".join(f"{name:>12}" for name in columns)]
    for name, result in found.items():
        if "left_out" in result:
            lines.append(f"{name:40}left out: {result['left_out']}")
            continue
        title = " ".join(filter(None, (name, result["version"])))
        for blow in ("kills", "reloads"):
            row = result[blow]
            cells = (
                "".join(f"{row[column]:12,}" for column in columns) if row else "    left out: it has no such command"
            )
            lines.append(f"{title if blow == 'kills' else '':32}{blow:8}{cells}")
    return "\n".join(lines)


@contextmanager
def ending_everything() -> Iterator[None]:
    """Ctrl-C and SIGTERM unwind; then no process of ours is left."""
    become_subreaper()

    def unwind(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, unwind)
    try:
        yield
    finally:
        kill_descendants(os.getpid())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--reloads", type=int, default=10)
    parser.add_argument("--rate", type=float, default=320.0, help="requests per second; default: 320")
    parser.add_argument("--burst", type=int, default=16, help="requests that come at once; default: 16")
    parser.add_argument("--only", nargs="+", choices=(SPEARPOOL, *COMMANDS), metavar="NAME", help="these servers alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ending_everything():
        found = run(options)
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
