"""The values of the wire: codes, field order, and what tells original fields from extensions."""

from __future__ import annotations

import msgspec
import pytest

from spearpool.protocol.messages import (
    PAYLOAD_TYPES,
    UNSET,
    AuthResponse,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    MessageType,
    Timestamp,
)

EXTENSIONS = {
    "ExecuteRequest": {"execution_id", "idempotency_key", "deadline_ms", "hops", "credit"},
    "ExecuteResponse": {"execution_id", "output_data", "error_code"},
    "Signal": {"execution_id"},
    "StreamData": {"credit"},
}


def test_codes_are_fixed() -> None:
    assert [(kind.value, kind.code) for kind in MessageType] == [
        ("AuthRequest", 0),
        ("AuthResponse", 1),
        ("ExecuteRequest", 2),
        ("ExecuteResponse", 3),
        ("Signal", 4),
        ("Heartbeat", 5),
        ("Error", 6),
        ("StreamData", 7),
        ("ConnectionClose", 8),
    ]


def test_each_type_has_its_payload() -> None:
    assert list(PAYLOAD_TYPES) == list(MessageType)
    assert len(set(PAYLOAD_TYPES.values())) == len(MessageType)


@pytest.mark.parametrize("kind", PAYLOAD_TYPES.values(), ids=lambda kind: kind.__name__)
def test_extensions_are_unset_by_default_and_come_last(kind: type[msgspec.Struct]) -> None:
    fields = msgspec.structs.fields(kind)
    unset = [field.default is UNSET for field in fields]
    assert {field.name for field in fields if field.default is UNSET} == EXTENSIONS.get(kind.__name__, set())
    assert unset == sorted(unset)


def test_final_statuses() -> None:
    assert {status.value for status in ExecutionStatus if status.final} == {
        "Completed",
        "Failed",
        "Cancelled",
        "Timeout",
    }


def test_payloads_are_frozen_and_compare_by_value() -> None:
    request = ExecuteRequest("task", "", [], {})
    assert request == ExecuteRequest("task", "", [], {})
    with pytest.raises(AttributeError):
        request.task_id = "other"  # type: ignore[misc]


def test_defaults_are_not_shared() -> None:
    assert AuthResponse(True).supported_features is not AuthResponse(True).supported_features


def test_absent_differs_from_unset() -> None:
    response = ExecuteResponse("task", ExecutionStatus.COMPLETED)
    assert response.output is None
    assert response.output_data is UNSET


@pytest.mark.parametrize("ns", [0, 1, 999_999_999, 1_000_000_000, 1_700_000_000_123_456_789, 2**64 * 10**9 - 1])
def test_timestamps_keep_nanoseconds(ns: int) -> None:
    stamp = Timestamp.from_ns(ns)
    assert 0 <= stamp.nanos_since_epoch < 1_000_000_000
    assert stamp.to_ns() == ns


def test_types_work_as_keys() -> None:
    counted = dict.fromkeys(MessageType, 0)
    counted[MessageType("Signal")] += 1
    assert counted[MessageType.SIGNAL] == 1
