"""The values of the SPEAR wire: `SpearMessage` and its payloads, field by field in the order in which they are written.

Optional fields of the original format are written as `null` when absent; spearpool's own extensions default to `UNSET`
and are then not written at all, so that a message without them is the original's, byte for byte.
The annotations are the format: ranges of integers included, they are what a codec reads its rules from.
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "I32",
    "PAYLOAD_TYPES",
    "U8",
    "U32",
    "U64",
    "U64_MAX",
    "UNSET",
    "AuthRequest",
    "AuthResponse",
    "ConnectionClose",
    "Custom",
    "ErrorMessage",
    "ExecuteRequest",
    "ExecuteResponse",
    "ExecutionMode",
    "ExecutionStatus",
    "Finite",
    "Heartbeat",
    "HeartbeatStatus",
    "MessageType",
    "Nanos",
    "Payload",
    "ResourceUsage",
    "Signal",
    "SignalName",
    "SpearMessage",
    "StreamData",
    "Timestamp",
    "UnsetType",
]

U64_MAX = 2**64 - 1

U8 = Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
I32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
U64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""msgspec cannot bound an integer above 2⁶³−1; codecs take the larger ones, up to 2⁶⁴−1, by their own check."""
Nanos = Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]
"""As written. Readers of version 1 take any u32 and carry what is above into the seconds."""
Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""On the wire. A value of ours that is not finite is written as `null`."""


class MessageType(Enum):
    """What a message is. The numbers are the codes of version 2 and of the metrics records."""

    AUTH_REQUEST = "AuthRequest"
    AUTH_RESPONSE = "AuthResponse"
    EXECUTE_REQUEST = "ExecuteRequest"
    EXECUTE_RESPONSE = "ExecuteResponse"
    SIGNAL = "Signal"
    HEARTBEAT = "Heartbeat"
    ERROR = "Error"
    STREAM_DATA = "StreamData"
    CONNECTION_CLOSE = "ConnectionClose"

    __hash__ = object.__hash__  # Enum's own is Python code; this one is looked up several times for each message

    def __init__(self, _name: str) -> None:
        self.code = len(type(self).__members__)
        """0 … 8, in the order above."""


class ExecutionMode(Enum):
    SYNC = "Sync"
    ASYNC = "Async"
    STREAM = "Stream"
    INTERACTIVE = "Interactive"


class ExecutionStatus(Enum):
    """Status of an execution; the last four are final."""

    RECEIVED = "Received"
    STARTED = "Started"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    TIMEOUT = "Timeout"

    __hash__ = object.__hash__

    def __init__(self, name: str) -> None:
        self.final = name not in {"Received", "Started", "Running"}


class HeartbeatStatus(Enum):
    ACTIVE = "Active"
    IDLE = "Idle"
    BUSY = "Busy"
    ERROR = "Error"


class SignalName(Enum):
    TERMINATE = "Terminate"
    PAUSE = "Pause"
    RESUME = "Resume"
    RESTART = "Restart"


class _Payload(msgspec.Struct, frozen=True, gc=False):
    """Base of all payloads. They hold plain values only, never a circle: the collector need not know them."""


class Custom(_Payload, frozen=True):
    """A signal with a name of its own, `{"Custom": name}` on the wire."""

    name: str = msgspec.field(name="Custom")


class Timestamp(_Payload, frozen=True, forbid_unknown_fields=True):
    """Wall-clock time since 1970: u64 seconds and u32 nanoseconds."""

    secs_since_epoch: U64
    nanos_since_epoch: Nanos

    @classmethod
    def from_ns(cls, ns: int) -> Timestamp:
        return cls(*divmod(ns, 1_000_000_000))

    def to_ns(self) -> int:
        return self.secs_since_epoch * 1_000_000_000 + self.nanos_since_epoch


class AuthRequest(_Payload, frozen=True):
    instance_id: str
    token: str
    client_version: str
    client_type: str
    extra_params: dict[str, str]


class AuthResponse(_Payload, frozen=True):
    success: bool
    error_message: str | None = None
    session_id: str | None = None
    server_version: str = ""
    supported_features: list[str] = []


class ExecuteRequest(_Payload, frozen=True):
    """`timeout` is in whole seconds; `deadline_ms` is the time remaining when the message was sent."""

    task_id: str
    command: str
    args: list[str]
    env: dict[str, str]
    working_dir: str | None = None
    timeout: U64 | None = None
    mode: ExecutionMode = ExecutionMode.SYNC
    input_data: bytes | None = None
    execution_id: str | UnsetType = UNSET
    idempotency_key: str | UnsetType = UNSET
    deadline_ms: U64 | UnsetType = UNSET
    hops: U8 | UnsetType = UNSET
    credit: U64 | UnsetType = UNSET


class ResourceUsage(_Payload, frozen=True):
    cpu_percent: Finite | None = None
    memory_bytes: U64 | None = None
    disk_read_bytes: U64 | None = None
    disk_write_bytes: U64 | None = None
    network_rx_bytes: U64 | None = None
    network_tx_bytes: U64 | None = None


class ExecuteResponse(_Payload, frozen=True):
    """`output` when the result is text, `output_data` when it is not; `error_code` tells an unknown outcome (502)."""

    task_id: str
    status: ExecutionStatus
    output: str | None = None
    error: str | None = None
    exit_code: I32 | None = None
    duration_ms: U64 | None = None
    resource_usage: ResourceUsage | None = None
    execution_id: str | UnsetType = UNSET
    output_data: bytes | UnsetType = UNSET
    error_code: U32 | UnsetType = UNSET


class Signal(_Payload, frozen=True):
    signal_type: SignalName | Custom
    task_id: str | None = None
    data: bytes | None = None
    execution_id: str | UnsetType = UNSET


class Heartbeat(_Payload, frozen=True):
    timestamp: Timestamp
    sequence: U64
    status: HeartbeatStatus


class ErrorMessage(_Payload, frozen=True):
    """The payload of an `Error` message; codes are `errors.ErrorCode`."""

    error_code: U32
    message: str
    details: str | None = None
    related_request_id: U64 | None = None


class StreamData(_Payload, frozen=True):
    stream_id: str
    data: bytes
    is_last: bool
    sequence: U64
    credit: U64 | UnsetType = UNSET


class ConnectionClose(_Payload, frozen=True):
    """The original has no payload here (an empty one); ours may say why."""

    reason: str = ""


Payload = (
    AuthRequest
    | AuthResponse
    | ExecuteRequest
    | ExecuteResponse
    | Signal
    | Heartbeat
    | ErrorMessage
    | StreamData
    | ConnectionClose
)

PAYLOAD_TYPES: dict[MessageType, type[Payload]] = {
    MessageType.AUTH_REQUEST: AuthRequest,
    MessageType.AUTH_RESPONSE: AuthResponse,
    MessageType.EXECUTE_REQUEST: ExecuteRequest,
    MessageType.EXECUTE_RESPONSE: ExecuteResponse,
    MessageType.SIGNAL: Signal,
    MessageType.HEARTBEAT: Heartbeat,
    MessageType.ERROR: ErrorMessage,
    MessageType.STREAM_DATA: StreamData,
    MessageType.CONNECTION_CLOSE: ConnectionClose,
}


class SpearMessage(msgspec.Struct, frozen=True, gc=False):
    """The envelope. `payload` is the payload's own encoding, still packed; a codec turns it into a `Payload`."""

    message_type: MessageType
    request_id: U64
    timestamp: Timestamp
    payload: bytes
    version: U8 = 1
