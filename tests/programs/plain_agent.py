"""An agent that knows only the wire: plain sockets and json, nothing of spearpool.

It is what a program written for SPEAR looks like. It answers each execution with its input in upper case.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from typing import Any, BinaryIO

__all__ = ["main"]


def send(sock: socket.socket, kind: str, request_id: int, payload: object) -> None:
    now = time.time_ns()
    body = json.dumps(
        {
            "message_type": kind,
            "request_id": request_id,
            "timestamp": {"secs_since_epoch": now // 10**9, "nanos_since_epoch": now % 10**9},
            "payload": list(json.dumps(payload).encode()),
            "version": 1,
        }
    ).encode()
    sock.sendall(struct.pack(">I", len(body)) + body)


def receive(stream: BinaryIO) -> tuple[str, int, Any]:
    prefix = stream.read(4)
    if len(prefix) < 4:
        sys.exit(0)
    message = json.loads(stream.read(struct.unpack(">I", prefix)[0]))
    payload = bytes(message["payload"])
    return message["message_type"], message["request_id"], json.loads(payload) if payload else None


def main() -> None:
    if os.environ.get("SPEAR_COMMUNICATION_TYPE") == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.environ["SPEAR_COMMUNICATION_ADDRESS"])
    else:
        sock = socket.socket()
        sock.connect(("127.0.0.1", int(os.environ["SPEAR_COMMUNICATION_PORT"])))
    stream = sock.makefile("rb")
    send(
        sock,
        "AuthRequest",
        1,
        {
            "instance_id": os.environ["SPEAR_INSTANCE_ID"],
            "token": os.environ["SPEAR_SECRET"],
            "client_version": "1.0.0",
            "client_type": "process",
            "extra_params": {},
        },
    )
    kind, _, answer = receive(stream)
    assert kind == "AuthResponse", kind
    assert answer["success"], answer
    while True:
        kind, request_id, payload = receive(stream)
        if kind == "Heartbeat":
            send(sock, "Heartbeat", request_id, payload)
        elif kind == "Signal" and payload["signal_type"] == "Terminate" and not payload["task_id"]:
            sys.exit(0)
        elif kind == "ExecuteRequest":
            text = bytes(payload["input_data"] or b"").decode()
            answer = {"task_id": payload["task_id"], "status": "Completed", "output": text.upper()}
            send(sock, "ExecuteResponse", request_id, answer)


if __name__ == "__main__":
    main()
