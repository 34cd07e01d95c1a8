#!/usr/bin/env python3
"""One spearpool worker, metrics on, beside the least possible server, on the same machine in the same run.

    python benchmarks/wire.py [--rounds 5] [--seconds 2] [--connections 32] [--json]

Rounds alternate between the two, so that a slow moment of the machine hits both. Figures are medians of the rounds:
authenticated connections per second and heartbeat round trips per second, each with the server's CPU time per unit
(which holds even where the client is what limits the rate). Only the ratios mean anything; the aim is 0.6 or more.

The client is as cheap as it can be made, or it would be what is measured: blocking sockets, frames encoded once, and a
window that goes round over the connections, so that the server always has work waiting.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pool_process import HERE, cpu_seconds, median, started_pool

from spearpool.protocol.codec import JSON_V1
from spearpool.protocol.framing import PREFIX_BYTES, frame
from spearpool.protocol.messages import AuthRequest, Heartbeat, HeartbeatStatus, Payload, Timestamp

__all__ = ["main"]

REFERENCE_TOKEN = "the reference server's token"
MAX_BYTES = 64 * 1024
SETTINGS = """
[pool]
name = "bench-wire"
workers = 1
"""
AUTHENTICATED = b'{"message_type":"AuthResponse","request_id":1,'
SUCCESS = ",".join(map(str, b'{"success":true')).encode()
BEAT = b'{"message_type":"Heartbeat","request_id":2,'


@dataclass(frozen=True, slots=True)
class Server:
    """Where to dial, and whose CPU time counts."""

    name: str
    address: tuple[str, int]
    token: str
    pid: int


@dataclass(frozen=True, slots=True)
class Round:
    per_second: float
    cpu_us: float


def encoded(payload: Payload, request_id: int) -> bytes:
    return frame(JSON_V1.encode(payload, request_id, time.time_ns()), MAX_BYTES)


def answer(sock: socket.socket, head: bytes) -> bytes:
    """One frame, whose body must begin with `head`."""
    data = sock.recv(MAX_BYTES)
    while data and (len(data) < PREFIX_BYTES or len(data) < PREFIX_BYTES + int.from_bytes(data[:PREFIX_BYTES])):
        more = sock.recv(MAX_BYTES)
        data = data + more if more else b""
    if not data.startswith(head, PREFIX_BYTES):
        raise SystemExit(f"expected a frame with {head!r}, got {data[:120]!r}")
    return data


class Client:
    """`connections` sockets to a server."""

    def __init__(self, server: Server, connections: int) -> None:
        self._server = server
        self._count = connections
        self._hello = encoded(AuthRequest("bench", server.token, "1", "bench", {}), 1)
        self._sockets: list[socket.socket] = []

    def dial(self, index: int) -> socket.socket:
        """Connect and send the AuthRequest. Each index has a source address of its own: ports do not run out."""
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen by connect
        sock.bind((f"127.0.1.{index % 250 + 1}", 0))
        sock.connect(self._server.address)
        sock.sendall(self._hello)
        return sock

    def welcome(self, sock: socket.socket) -> None:
        if SUCCESS not in answer(sock, AUTHENTICATED):
            raise SystemExit(f"{self._server.name} refused the token")

    def connections(self) -> Iterator[None]:
        """Endlessly: an authenticated connection is welcomed and closed, and another dialled in its place."""
        self._sockets = [self.dial(index) for index in range(self._count)]
        while True:
            for index, sock in enumerate(self._sockets):
                self.welcome(sock)
                sock.close()
                self._sockets[index] = self.dial(index)
                yield

    def heartbeats(self) -> Iterator[None]:
        """Endlessly: a heartbeat comes back, and another goes out in its place."""
        heartbeat = encoded(Heartbeat(Timestamp.from_ns(time.time_ns()), 7, HeartbeatStatus.ACTIVE), 2)
        self._sockets = [self.dial(index) for index in range(self._count)]
        for sock in self._sockets:
            self.welcome(sock)
            sock.sendall(heartbeat)
        while True:
            for sock in self._sockets:
                answer(sock, BEAT)
                sock.sendall(heartbeat)
                yield

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


MEASURES: dict[str, Callable[[Client], Iterator[None]]] = {
    "connections": Client.connections,
    "heartbeats": Client.heartbeats,
}


def measure(server: Server, unit: str, connections: int, seconds: float) -> Round:
    """Units per second and the server's CPU time per unit, over about `seconds`."""
    client = Client(server, connections)
    units = MEASURES[unit](client)
    for _ in range(2 * connections):  # warm
        next(units)
    cpu, begin, count = cpu_seconds(server.pid), time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        for _ in range(connections):
            next(units)
        count += connections
    used = cpu_seconds(server.pid) - cpu
    client.close()
    return Round(count / elapsed, used / count * 1e6)


@contextmanager
def reference() -> Iterator[Server]:
    command = [sys.executable, str(HERE / "reference_server.py"), "--token", REFERENCE_TOKEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        try:
            yield Server("reference", (ready["host"], ready["port"]), REFERENCE_TOKEN, process.pid)
        finally:
            process.terminate()


@contextmanager
def worker() -> Iterator[Server]:
    with started_pool(SETTINGS) as pool:
        pid = pool.ask("status")["workers"][0]["pid"]
        yield Server("spearpool", pool.address, pool.token_file.read_text().strip(), pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round; default: 2")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        servers = [stack.enter_context(reference()), stack.enter_context(worker())]
        rounds: dict[tuple[str, str], list[Round]] = {}
        for _ in range(options.rounds):
            for unit in MEASURES:
                for server in servers:
                    found = measure(server, unit, options.connections, options.seconds)
                    rounds.setdefault((unit, server.name), []).append(found)
    result = {unit: summary(rounds[unit, "reference"], rounds[unit, "spearpool"]) for unit in MEASURES}
    if options.json:
        print(json.dumps(result))
        return
    print(f"{'':12} {'reference':>22} {'spearpool':>22}   ratio (rate · CPU)")
    for unit, row in result.items():
        sides = " ".join(f"{row[f'{side}_per_second']:12,.0f}/s {row[f'{side}_cpu_us']:5.1f} µs" for side in SIDES)
        print(f"{unit:12} {sides}   {row['rate_ratio']:.2f} · {row['cpu_ratio']:.2f}")


SIDES = ("reference", "spearpool")


def summary(base: list[Round], ours: list[Round]) -> dict[str, float]:
    """Medians, and ratios of which more is better: our rate to the reference's, the reference's CPU time to ours."""
    found: dict[str, float] = {}
    for side, rounds in zip(SIDES, (base, ours), strict=True):
        found[f"{side}_per_second"] = median([each.per_second for each in rounds])
        found[f"{side}_cpu_us"] = median([each.cpu_us for each in rounds])
    found["rate_ratio"] = found["spearpool_per_second"] / found["reference_per_second"]
    found["cpu_ratio"] = found["reference_cpu_us"] / found["spearpool_cpu_us"]
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
