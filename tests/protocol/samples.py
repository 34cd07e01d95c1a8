"""One full message of each type: its plain JSON values, and the payload that they mean.

`spell` writes plain values as the canonical text of version 1, by the standard library and nothing of ours; `pack` as
the canonical bytes of version 2, by MessagePack's specification.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from spearpool.protocol.messages import (
    AuthRequest,
    AuthResponse,
    ConnectionClose,
    Custom,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionMode,
    ExecutionStatus,
    Heartbeat,
    HeartbeatStatus,
    MessageType,
    Payload,
    ResourceUsage,
    Signal,
    StreamData,
    Timestamp,
)

__all__ = ["EXTENSIONS", "MANDATORY", "PLAIN", "VALUES", "binary", "pack", "pack_body", "spell", "spell_body"]

PLAIN: dict[MessageType, dict[str, Any]] = {
    MessageType.AUTH_REQUEST: {
        "instance_id": "inst-é",
        "token": "tok\t",
        "client_version": "1.0.0",
        "client_type": "process",
        "extra_params": {"key": "値"},
    },
    MessageType.AUTH_RESPONSE: {
        "success": True,
        "error_message": "none",
        "session_id": "s-1",
        "server_version": "1.0.0",
        "supported_features": ["execute", "signal"],
    },
    MessageType.EXECUTE_REQUEST: {
        "task_id": "task-1",
        "command": "echo",
        "args": ["hello", "world"],
        "env": {"KEY": "value"},
        "working_dir": "/srv",
        "timeout": 60,
        "mode": "Stream",
        "input_data": [0, 1, 127, 128, 255],
        "execution_id": "0-ab-1-7",
        "idempotency_key": "once",
        "deadline_ms": 1500,
        "hops": 1,
        "credit": 8,
    },
    MessageType.EXECUTE_RESPONSE: {
        "task_id": "task-1",
        "status": "Completed",
        "output": "hello",
        "error": "no",
        "exit_code": -9,
        "duration_ms": 12,
        "resource_usage": {
            "cpu_percent": 12.5,
            "memory_bytes": 1,
            "disk_read_bytes": 2,
            "disk_write_bytes": 3,
            "network_rx_bytes": 4,
            "network_tx_bytes": 5,
        },
        "execution_id": "0-ab-1-7",
        "output_data": [255, 0],
        "error_code": 502,
    },
    MessageType.SIGNAL: {
        "signal_type": {"Custom": "reload"},
        "task_id": "task-1",
        "data": [97, 98],
        "execution_id": "0-ab-1-7",
    },
    MessageType.HEARTBEAT: {
        "timestamp": {"secs_since_epoch": 1_700_000_001, "nanos_since_epoch": 5},
        "sequence": 42,
        "status": "Busy",
    },
    MessageType.ERROR: {"error_code": 429, "message": "full", "details": "250", "related_request_id": 9},
    MessageType.STREAM_DATA: {"stream_id": "s-1", "data": [10], "is_last": False, "sequence": 3, "credit": 2},
    MessageType.CONNECTION_CLOSE: {"reason": "drain"},
}

VALUES: dict[MessageType, Payload] = {
    MessageType.AUTH_REQUEST: AuthRequest("inst-é", "tok\t", "1.0.0", "process", {"key": "値"}),
    MessageType.AUTH_RESPONSE: AuthResponse(True, "none", "s-1", "1.0.0", ["execute", "signal"]),
    MessageType.EXECUTE_REQUEST: ExecuteRequest(
        "task-1",
        "echo",
        ["hello", "world"],
        {"KEY": "value"},
        "/srv",
        60,
        ExecutionMode.STREAM,
        b"\x00\x01\x7f\x80\xff",
        "0-ab-1-7",
        "once",
        1500,
        1,
        8,
    ),
    MessageType.EXECUTE_RESPONSE: ExecuteResponse(
        "task-1",
        ExecutionStatus.COMPLETED,
        "hello",
        "no",
        -9,
        12,
        ResourceUsage(12.5, 1, 2, 3, 4, 5),
        "0-ab-1-7",
        b"\xff\x00",
        502,
    ),
    MessageType.SIGNAL: Signal(Custom("reload"), "task-1", b"ab", "0-ab-1-7"),
    MessageType.HEARTBEAT: Heartbeat(Timestamp(1_700_000_001, 5), 42, HeartbeatStatus.BUSY),
    MessageType.ERROR: ErrorMessage(429, "full", "250", 9),
    MessageType.STREAM_DATA: StreamData("s-1", b"\n", False, 3, 2),
    MessageType.CONNECTION_CLOSE: ConnectionClose("drain"),
}

EXTENSIONS = {"execution_id", "idempotency_key", "deadline_ms", "hops", "credit", "output_data", "error_code"}
"""Keys that are ours, wherever they are not the original's (`error_code` of an Error is)."""

MANDATORY: dict[MessageType, set[str]] = {
    MessageType.AUTH_REQUEST: {"instance_id", "token", "client_version", "client_type", "extra_params"},
    MessageType.AUTH_RESPONSE: {"success"},
    MessageType.EXECUTE_REQUEST: {"task_id", "command", "args", "env", "mode"},
    MessageType.EXECUTE_RESPONSE: {"task_id", "status"},
    MessageType.SIGNAL: {"signal_type"},
    MessageType.HEARTBEAT: {"timestamp", "sequence", "status"},
    MessageType.ERROR: {"error_code", "message"},
    MessageType.STREAM_DATA: {"stream_id", "data", "is_last", "sequence"},
    MessageType.CONNECTION_CLOSE: set(),
}
"""PROTOCOL.md's keys without a question mark, but for the two that the seed's shorter AuthResponse leaves out."""


def spell(plain: Any) -> bytes:
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()


def spell_body(
    kind: str, payload: bytes, request_id: int = 7, seconds: int = 1_700_000_000, nanos: int = 123_456_789
) -> bytes:
    return spell(
        {
            "message_type": kind,
            "request_id": request_id,
            "timestamp": {"secs_since_epoch": seconds, "nanos_since_epoch": nanos},
            "payload": list(payload),
            "version": 1,
        }
    )


def binary(plain: dict[str, Any]) -> dict[str, Any]:
    """The same values with bytes as bytes: what version 2 packs."""
    return {
        key: bytes(value) if key in {"data", "input_data", "output_data"} and isinstance(value, list) else value
        for key, value in plain.items()
    }


def pack(plain: Any) -> bytes:
    """MessagePack, each value in its shortest form."""
    match plain:
        case None | False | True:
            return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[plain]
        case int():
            return _pack_integer(plain)
        case float():
            return b"\xcb" + struct.pack(">d", plain)
        case str():
            data = plain.encode()
            return _head(len(data), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + data
        case bytes():
            return _head(len(plain), (0, 0), (0xC4, 0xC5, 0xC6)) + plain
        case list():
            return _head(len(plain), (0x90, 16), (0, 0xDC, 0xDD)) + b"".join(map(pack, plain))
        case dict():
            items = b"".join(pack(key) + pack(value) for key, value in plain.items())
            return _head(len(plain), (0x80, 16), (0, 0xDE, 0xDF)) + items
    raise TypeError(plain)


def _head(size: int, short: tuple[int, int], codes: tuple[int, int, int]) -> bytes:
    first, end = short
    if size < end:
        return bytes([first | size])
    for code, form, limit in zip(codes, "BHI", (2**8, 2**16, 2**32), strict=True):
        if code and size < limit:
            return bytes([code]) + struct.pack(f">{form}", size)
    raise ValueError(size)


def _pack_integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack("b" if value < 0 else "B", value)
    forms = (
        zip((0xD0, 0xD1, 0xD2, 0xD3), "bhiq", strict=True)
        if value < 0
        else zip((0xCC, 0xCD, 0xCE, 0xCF), "BHIQ", strict=True)
    )
    for code, form in forms:
        try:
            return bytes([code]) + struct.pack(f">{form}", value)
        except struct.error:
            continue
    raise ValueError(value)


def pack_body(
    kind: MessageType, payload: bytes, request_id: int = 7, seconds: int = 1_700_000_000, nanos: int = 123_456_789
) -> bytes:
    return pack([list(MessageType).index(kind), request_id, seconds, nanos, 2, payload])
