"""What a subscriber gets: the JSON contract of `metrics tail`, one frozen record per kind of line.

`plain(item)` is the line. Values that do not apply are `null`; times are seconds since 1970, durations seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spearpool.metrics.vocabulary import (
    CLOSE_REASONS,
    DIRECTIONS,
    NO_MESSAGE_TYPE,
    NO_TASK,
    OTHER,
    RECORD_FIELDS,
    RECORD_FLAGS,
    RECORD_FORMAT,
    EventKind,
    InstanceStage,
)
from spearpool.packing import Record, to_plain
from spearpool.protocol.identifiers import ConnectionId, InstanceId
from spearpool.protocol.messages import MessageType

__all__ = [
    "Account",
    "Counters",
    "Event",
    "Gap",
    "Heartbeat",
    "InstanceEvent",
    "InstanceState",
    "Item",
    "WorkerState",
    "decode_events",
    "plain",
]


class Event(Record, frozen=True, tag_field="kind", tag="event"):
    """One record of a ring, unless it is an `InstanceEvent`. `seq` is its position there; `worker` is None for what the
    supervisor recorded."""

    seq: int
    time: float
    worker: int | None
    type: str
    connection_id: str | None
    instance_id: str | None
    message_type: str | None
    direction: str | None
    size_bytes: int | None
    duration_s: float | None
    task: str | None
    reason: str | None
    code: int | None


class InstanceEvent(Record, frozen=True, tag_field="kind", tag="instance"):
    """A launched instance reached a stage, so long (`duration_s`) after the one before; out of the supervisor's ring.

    `connection_id` is its agent's, present or last, and `worker` where that is. Of an end (`exited`, `failed`), `code`
    is the exit code or minus the signal, as of `subprocess`, and `reason` says it in words. `restarted` comes right
    after `requested`: the instance takes the place of one that ended unasked, for the `restarts`-th time, and
    `duration_s` is how long the place was empty.
    """

    seq: int
    time: float
    worker: int | None
    stage: str
    instance_id: str
    task: str
    connection_id: str | None
    duration_s: float | None
    restarts: int | None
    reason: str | None
    code: int | None


class Counters(Record, frozen=True, tag_field="kind", tag="counters"):
    """A slot's cumulative counters and present gauges, and its executions by task; what is zero is left out.

    The supervisor (`worker` is None) counts instances by task.
    """

    time: float
    worker: int | None
    values: dict[str, int]
    tasks: dict[str, dict[str, int]]


class WorkerState(Record, frozen=True, tag_field="kind", tag="worker"):
    """A worker as `status` describes it."""

    time: float
    worker: int
    row: dict[str, Any]


class InstanceState(Record, frozen=True, tag_field="kind", tag="instance"):
    """An instance as `status` describes it; `stopped` is the last word about it. It has no `stage`, other than an
    `InstanceEvent`: how things are, not what happened."""

    time: float
    row: dict[str, Any]


class Heartbeat(Record, frozen=True, tag_field="kind", tag="heartbeat"):
    time: float


class Gap(Record, frozen=True, tag_field="kind", tag="gap"):
    """Items `seq` … `seq + lost_ring + lost_bus - 1` of `topic` will not come. `worker` as in `Event`.

    Lost events are gone; of everything else the pool is asked for the present state, which follows.
    """

    seq: int
    time: float
    worker: int | None
    topic: str
    lost_ring: int
    lost_bus: int


class Account(Record, frozen=True, tag_field="kind", tag="account"):
    """Records of rings (events, and stages of instances) that were delivered, overwritten in a ring before the bus
    read them, and dropped on the bus. What was not asked for counts as none of these, so far as that is known."""

    received: int
    lost_ring: int
    lost_bus: int


Item = Event | InstanceEvent | Counters | WorkerState | InstanceState | Heartbeat | Gap | Account


def plain(item: Item) -> dict[str, Any]:
    """The item as one flat JSON object that begins with its `kind`."""
    document: dict[str, Any] = to_plain(item)
    row: dict[str, Any] = document.pop("row", {})
    return document | row


_RECORD = struct.Struct(RECORD_FORMAT)
_TYPES = {kind.value: kind.name.lower() for kind in EventKind}
_MESSAGE_TYPES = {kind.code: kind.value for kind in MessageType} | {NO_MESSAGE_TYPE: None}
_MESSAGES = frozenset({EventKind.MESSAGE_RECEIVED, EventKind.MESSAGE_SENT})
_INSTANCE_STAGES = {EventKind.INSTANCE_REQUESTED + stage: stage for stage in InstanceStage}
_WORKER_STAGES = frozenset(kind for kind in EventKind if kind >= EventKind.WORKER_SPAWNED)
_CODED = _WORKER_STAGES | {EventKind.ERROR}
_HAS_CODE = RECORD_FLAGS["has_code"]
_KIND = [name for name, _, _ in RECORD_FIELDS].index("kind")

_Record = tuple[int, ...]


def decode_events(
    body: bytes, worker: int | None, names: Sequence[str], tasks: Mapping[int, str]
) -> Iterator[Event | InstanceEvent]:
    """The records of an event frame's body, given the names of its seat and the task columns."""
    for record in _RECORD.iter_unpack(body):
        if record[_KIND] in _INSTANCE_STAGES:
            yield _instance_event(record, names, tasks)
        else:
            yield _event(record, worker, names, tasks)


def _event(record: _Record, worker: int | None, names: Sequence[str], tasks: Mapping[int, str]) -> Event:
    seq, time_ns, connection, instance, duration_ns, size, name, code, task, kind, message, direction, _, _ = record
    task_name = None if task == NO_TASK else tasks.get(task, OTHER)
    label = _label(name, names)
    failed = kind == EventKind.AUTHENTICATION_FAILED  # its name is the cause: strangers are not named
    if instance and not label:
        label = InstanceId.unpack(instance).name(task_name or OTHER)
    about_worker = kind in _WORKER_STAGES  # told by the supervisor; the word says which worker
    place = ConnectionId.unpack(connection)
    return Event(
        seq=seq,
        time=time_ns / 1e9,
        worker=place.slot if about_worker else worker,
        type=_TYPES.get(kind, f"kind_{kind}"),
        connection_id=str(place) if connection and not about_worker else None,
        instance_id=None if failed else label,
        message_type=_MESSAGE_TYPES.get(message),
        direction=DIRECTIONS[direction] or None,
        size_bytes=size if kind in _MESSAGES else None,
        duration_s=duration_ns / 1e9 if duration_ns else None,
        task=task_name,
        reason=label if failed else CLOSE_REASONS[code].value if kind == EventKind.DISCONNECTED else None,
        code=code if kind in _CODED else None,
    )


def _instance_event(record: _Record, names: Sequence[str], tasks: Mapping[int, str]) -> InstanceEvent:
    seq, time_ns, connection, instance, duration_ns, _, name, code, task, kind, _, _, flags, _ = record
    stage, task_name = _INSTANCE_STAGES[kind], tasks.get(task, OTHER)
    restarted, coded = stage is InstanceStage.RESTARTED, flags & _HAS_CODE
    place = ConnectionId.unpack(connection)
    return InstanceEvent(
        seq=seq,
        time=time_ns / 1e9,
        worker=place.slot if connection else None,
        stage=stage.name.lower(),
        instance_id=InstanceId.unpack(instance).name(task_name),
        task=task_name,
        connection_id=str(place) if connection else None,
        duration_s=duration_ns / 1e9 if duration_ns else None,
        restarts=code if coded and restarted else None,
        reason=_label(name, names),
        code=_signed(code) if coded and not restarted else None,
    )


def _label(name: int, names: Sequence[str]) -> str | None:
    """The name at that place of the seat's table, None for no name."""
    return None if not name else names[name] if name < len(names) else OTHER


def _signed(code: int) -> int:
    """The two's complement of 16 bits."""
    return code - 0x1_0000 if code >= 0x8000 else code
