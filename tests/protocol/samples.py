"""One full message of each type: its plain JSON values, and the payload that they mean.

`spell` writes plain values as the wire's canonical text, by the standard library and nothing of ours.
"""

from __future__ import annotations

import json
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

__all__ = ["EXTENSIONS", "MANDATORY", "PLAIN", "VALUES", "spell", "spell_body"]

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
