#!/usr/bin/env python3
"""How evenly long-lived connections end up on eight workers: spearpool beside the plain hashing of SO_REUSEPORT.

    python benchmarks/balance.py [--connections 16 64 400] [--rounds 3] [--json]

Hashing: the connections come to eight listening sockets on one port, and stay where the kernel puts them. spearpool:
they authenticate, and stay; most and mean of the workers are taken at once and when they have settled. `moves` is how
many connections were handed over, `needed` how few would have done it, `settled` the time from the last authentication
to a spread of at most 1.2, which no move follows for three seconds. Figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import ceil, floor
from typing import Any

from pool_process import PoolProcess, median, started_pool

from spearpool.metrics.bus import ask, ask_snapshot
from spearpool.protocol.codec import JSON_V1
from spearpool.protocol.framing import PREFIX_BYTES, frame
from spearpool.protocol.messages import AuthRequest
from spearpool.runtime_dir import find_pool

__all__ = ["main"]

WORKERS = 8
SPREAD = 1.2
MAX_BYTES = 64 * 1024
PATIENCE_S = 10.0
CALM_S = 3.0
"""How long nothing may move for the workers to have settled."""

LOOK_S = 0.02
ANSWER_S = 10.0
SETTINGS = f"""
[pool]
name = "bench-balance"
workers = {WORKERS}
"""

Figures = dict[str, float]


def spread(counts: list[int]) -> float:
    """Most to mean."""
    return max(counts) * len(counts) / sum(counts)


def hashed(count: int) -> list[int]:
    """Where the kernel puts so many connections."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(WORKERS)]
        port = 0
        for listener in listeners:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(1024)
            port = listener.getsockname()[1]
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        counts = [0] * WORKERS
        while waiting := select.select(listeners, [], [], 0)[0]:
            for listener in waiting:
                stack.enter_context(listener.accept()[0])
                counts[listeners.index(listener)] += 1
    return counts


@contextmanager
def connected(pool: PoolProcess, count: int) -> Iterator[None]:
    """So many authenticated clients that stay for the block."""
    token = pool.token_file.read_text().strip()
    with ExitStack() as stack:
        for number in range(count):
            sock = stack.enter_context(socket.create_connection(pool.address, ANSWER_S))
            sock.sendall(frame(JSON_V1.encode(AuthRequest(f"c-{number}", token, "1", "b", {}), 1, 0), MAX_BYTES))
            size = int.from_bytes(sock.recv(PREFIX_BYTES, socket.MSG_WAITALL))
            answer = json.loads(sock.recv(size, socket.MSG_WAITALL))
            if answer["message_type"] != "AuthResponse":
                raise SystemExit(f"balance: not admitted: {answer}")
        yield


def settle(pool: PoolProcess, count: int) -> Figures:
    """Have so many connections made, and watch until nothing moves."""
    endpoint = find_pool(pool.ready["name"], pool.environ).endpoints.ask

    def opened() -> list[int]:
        """By worker, ever."""
        counters = dict.fromkeys(range(WORKERS), 0)
        for _, found in ask_snapshot(endpoint, ANSWER_S).counters_by_topic():
            if found.worker is not None:
                counters[found.worker] = found.values.get("connections_opened", 0)
        return [counters[slot] for slot in range(WORKERS)]

    def look() -> tuple[list[int], int]:
        status = ask(endpoint, "status", {}, ANSWER_S)
        counts = [worker["connections"] for worker in status["workers"]]
        return counts, status["totals"]["connections_handed_over"]

    _, moved_before = look()
    opened_before = opened()
    with connected(pool, count):
        begin = time.monotonic()
        came = [after - before for after, before in zip(opened(), opened_before, strict=True)]
        even_at, moved_at, moves, counts = begin, begin, moved_before, came
        while (now := time.monotonic()) < max(even_at, moved_at) + CALM_S:
            if now > begin + PATIENCE_S:
                raise SystemExit(f"balance: connections still moved after {PATIENCE_S:g} s")
            counts, seen = look()
            if seen != moves:
                moves, moved_at = seen, now
            if sum(counts) < count or spread(counts) > max(SPREAD, ceil(count / WORKERS) * WORKERS / count):
                even_at = now
            time.sleep(LOOK_S)
    low, more = floor(count / WORKERS), count % WORKERS
    wanted = [low + (place < more) for place in range(WORKERS)]
    needed = sum(max(0, was - then) for was, then in zip(sorted(came, reverse=True), wanted, strict=True))
    return {
        "came": spread(came),
        "settled": spread(counts),
        "settled_s": even_at - begin,
        "moves": moves - moved_before,
        "needed": needed,
    }


def emptied(pool: PoolProcess) -> None:
    """Wait until the clients of before are gone."""
    end = time.monotonic() + PATIENCE_S
    while pool.ask("status")["totals"]["connections_open"]:
        if time.monotonic() > end:
            raise SystemExit("balance: closed connections are still counted")
        time.sleep(LOOK_S)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with started_pool(SETTINGS) as pool:
        for count in options.connections:
            rounds = []
            for number in range(options.rounds):
                print(f"balance: {count} connections, round {number + 1}", file=sys.stderr, flush=True)
                rounds.append({"hashing": spread(hashed(count)), **settle(pool, count)})
                emptied(pool)
            rows.append({"connections": count, **{key: median([each[key] for each in rounds]) for key in rounds[0]}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64, 400])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = run(options)
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'':12}{'most / mean of 8 workers':^36}")
    print(f"{'connections':>12}{'hashing':>12}{'at once':>12}{'settled':>12}{'settled s':>12}{'moves':>8}{'needed':>8}")
    for row in rows:
        spreads = "".join(f"{row[key]:12.2f}" for key in ("hashing", "came", "settled", "settled_s"))
        print(f"{row['connections']:12}{spreads}{row['moves']:8g}{row['needed']:8g}")


if __name__ == "__main__":
    main()
