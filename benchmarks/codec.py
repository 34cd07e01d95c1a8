#!/usr/bin/env python3
"""What the protocol costs: nanoseconds per operation of both versions of the wire, and their ratio.

    python benchmarks/codec.py [--seconds 0.2] [--json]

`write` makes a frame of a payload, `read` a payload of a frame, by message type and size of the data inside. Then what
a worker does through its sessions, without sockets: one *execution* (request in and out, response in and out), one
*heartbeat* (in, answer out), one *connection* (made, AuthRequest in, AuthResponse out). Each figure is the least of
many short rounds, in which the versions take turns: only the ratios can be compared between machines.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from math import inf

from spearpool.protocol.codec import JSON_V1, Codec
from spearpool.protocol.codec_v2 import MSGPACK_V2
from spearpool.protocol.framing import PREFIX_BYTES, frame
from spearpool.protocol.identity import Identity, Role
from spearpool.protocol.messages import (
    AuthRequest,
    AuthResponse,
    ConnectionClose,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    HeartbeatStatus,
    Payload,
    Signal,
    SignalName,
    StreamData,
    Timestamp,
)
from spearpool.protocol.negotiation import ASK, FEATURES
from spearpool.protocol.session import Session, SessionSettings, Side

__all__ = ["main"]

MAX_BYTES = 64 * 1024 * 1024
SETTINGS = SessionSettings(5.0, 15.0, 60.0, 300.0, MAX_BYTES)
TIME_NS = 1_700_000_000_123_456_789
SIZES = {"16 B": 16, "1 KB": 1000, "100 KB": 100_000}
TOKEN = "v1.k.client.YWJjZGVmZ2hpamts.submit.1700000000.YWJjZGVm." + "x" * 43
EXECUTION_ID = "0-abcdef-1-123456"
CODECS: dict[str, Codec] = {"v1": JSON_V1, "v2": MSGPACK_V2}

Row = dict[str, float]


def payloads() -> dict[str, Payload]:
    """By what they are called in the table."""
    beat = Heartbeat(Timestamp.from_ns(TIME_NS), 7, HeartbeatStatus.ACTIVE)
    found: dict[str, Payload] = {
        "AuthRequest": AuthRequest("python-1234", TOKEN, "0.1.0", "client", ASK),
        "AuthResponse": AuthResponse(True, None, "s-100000007", "0.1.0", list(FEATURES)),
        "Heartbeat": beat,
        "Signal": Signal(SignalName.TERMINATE, execution_id=EXECUTION_ID),
        "Error": ErrorMessage(429, "the queue of this task is full", "250", 7),
        "ConnectionClose": ConnectionClose("drain"),
    }
    for label, size in SIZES.items():
        data = bytes(range(256)) * (size // 256) + bytes(size % 256)
        found[f"ExecuteRequest {label}"] = request(data)
        found[f"ExecuteResponse {label}"] = response("x" * size)
        found[f"StreamData {label}"] = StreamData("stream-1", data, False, 7)
    return found


def request(data: bytes) -> ExecuteRequest:
    return ExecuteRequest("echo", "", [], {}, input_data=data, execution_id=EXECUTION_ID)


def response(text: str) -> ExecuteResponse:
    return ExecuteResponse("echo", ExecutionStatus.COMPLETED, text, duration_ms=1, execution_id=EXECUTION_ID)


def least_ns(operations: dict[str, Callable[[], object]], seconds: float) -> Row:
    """Of each operation the least time per call over rounds of about a millisecond, taken in turns."""
    calls = {}
    for name, operation in operations.items():
        begin = time.perf_counter_ns()
        operation()
        calls[name] = max(1, 1_000_000 // (time.perf_counter_ns() - begin))
    least = dict.fromkeys(operations, inf)
    end = time.perf_counter() + seconds * len(operations)
    while time.perf_counter() < end:
        for name, operation in operations.items():
            begin = time.perf_counter_ns()
            for _ in range(calls[name]):
                operation()
            least[name] = min(least[name], (time.perf_counter_ns() - begin) / calls[name])
    return least


def writing(codec: Codec, payload: Payload) -> Callable[[], object]:
    return lambda: frame(codec.encode(payload, 7, TIME_NS), MAX_BYTES)


def reading(codec: Codec, payload: Payload) -> Callable[[], object]:
    body = codec.encode(payload, 7, TIME_NS)

    def read() -> Payload:
        kind, _, packed = codec.open(body)
        return codec.decode_payload(kind, packed)

    return read


class Worker:
    """A worker's two sessions, with a client and with an agent, and the bytes that these send."""

    def __init__(self, extra_params: dict[str, str]) -> None:
        self.auth = AuthRequest("python-1234", TOKEN, "0.1.0", "client", extra_params)
        hello = Session(Side.CLIENT, SETTINGS, 0.0)
        hello.send(self.auth)
        self.hello = hello.data_to_send()
        self.identity = Identity(Role.CLIENT, "python-1234", "default", rights=frozenset({"submit"}))
        self.to_client, client = self.joined(self.identity, Side.CLIENT)
        self.to_agent, agent = self.joined(Identity(Role.AGENT, "echo-0-1", "echo-0-1", task="echo"), Side.AGENT)
        self.request, self.response = request(b"x" * 16), response("x" * 16)
        client.send(ExecuteRequest("echo", "", [], {}, input_data=b"x" * 16), 1)
        self.request_in = client.data_to_send()
        agent.send(self.response, 1)
        self.response_in = agent.data_to_send()
        client.send(Heartbeat(Timestamp.from_ns(TIME_NS), 7, HeartbeatStatus.ACTIVE), 2)
        self.beat_in = client.data_to_send()

    def joined(self, identity: Identity, side: Side) -> tuple[Session, Session]:
        server, peer = Session(Side.SERVER, SETTINGS, 0.0), Session(side, SETTINGS, 0.0)
        peer.send(self.auth)
        server.receive_data(peer.data_to_send(), 0.0)
        server.accept(identity, "s-1", "0.1.0")
        peer.receive_data(server.data_to_send(), 0.0)
        server.take_sent()
        return server, peer

    def execution(self) -> None:
        self.to_client.receive_data(self.request_in, 1.0)
        self.to_agent.send(self.request)
        self.to_agent.data_to_send()
        self.to_agent.take_sent()
        self.to_agent.receive_data(self.response_in, 1.0)
        self.to_client.send(self.response, 1)
        self.to_client.data_to_send()
        self.to_client.take_sent()

    def heartbeat(self) -> None:
        self.to_client.receive_data(self.beat_in, 1.0)
        self.to_client.data_to_send()
        self.to_client.take_sent()

    def connection(self) -> None:
        session = Session(Side.SERVER, SETTINGS, 0.0)
        session.receive_data(self.hello, 0.0)
        session.accept(self.identity, "s-100000007", "0.1.0")
        session.data_to_send()
        session.take_sent()


def measure(seconds: float) -> dict[str, Row]:
    """By operation; nanoseconds of each version, frame sizes where there is one frame."""
    found: dict[str, Row] = {}
    for name, payload in payloads().items():
        sizes = {f"{v}_bytes": len(c.encode(payload, 7, TIME_NS)) + PREFIX_BYTES for v, c in CODECS.items()}
        found[f"write {name}"] = least_ns({v: writing(c, payload) for v, c in CODECS.items()}, seconds) | sizes
        found[f"read {name}"] = least_ns({v: reading(c, payload) for v, c in CODECS.items()}, seconds) | sizes
    workers = {"v1": Worker({}), "v2": Worker(ASK)}
    for name in ("execution", "heartbeat", "connection"):
        found[name] = least_ns({v: getattr(worker, name) for v, worker in workers.items()}, 2 * seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each operation and version; default: 0.2")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {name: {key: round(value) for key, value in row.items()} for name, row in measure(options.seconds).items()}
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'nanoseconds':30} {'v1':>10} {'v2':>10}  v1 : v2   frame bytes v1, v2")
    for name, row in found.items():
        sizes = f"{row['v1_bytes']:10,} {row['v2_bytes']:10,}" if "v1_bytes" in row else ""
        print(f"{name:30} {row['v1']:10,} {row['v2']:10,}  {row['v1'] / row['v2']:7.1f}   {sizes}")


if __name__ == "__main__":
    main()
