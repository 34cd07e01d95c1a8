"""Version 2 by the letter: a payload in each possible way to be wrong, and what is said about it."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from spearpool.errors import ErrorCode, RemoteProtocolError
from spearpool.protocol.messages import (
    PAYLOAD_TYPES,
    U64_MAX,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    HeartbeatStatus,
    MessageType,
    ResourceUsage,
    Signal,
    SignalName,
    Timestamp,
)
from spearpool.protocol.strict_v2 import UNREADABLE, read_struct_v2, reason

from .samples import EXTENSIONS, MANDATORY, PLAIN, VALUES, binary, pack

T = MessageType
KEYS = [(kind, key) for kind in T for key in PLAIN[kind]]


def read(kind: MessageType, plain: dict[str, Any] | bytes) -> Any:
    return read_struct_v2(PAYLOAD_TYPES[kind], plain if isinstance(plain, bytes) else pack(plain))


def refused(kind: MessageType, plain: dict[str, Any] | bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        read(kind, plain)
    assert caught.value.code is ErrorCode.MALFORMED
    assert str(caught.value).startswith(PAYLOAD_TYPES[kind].__name__)
    return str(caught.value)


def changed(kind: MessageType, key: str, value: Any) -> dict[str, Any]:
    return binary(PLAIN[kind]) | {key: value}


@pytest.mark.parametrize("kind", T)
def test_the_canonical_form(kind: MessageType) -> None:
    assert read(kind, binary(PLAIN[kind])) == VALUES[kind]


@pytest.mark.parametrize(("kind", "key"), KEYS)
def test_a_key_that_is_missing_or_nil(kind: MessageType, key: str) -> None:
    plain = binary(PLAIN[kind])
    del plain[key]
    if key in MANDATORY[kind]:
        assert refused(kind, plain).endswith(f".{key}: expected this key to be there, found nothing")
        assert f".{key}: Expected" in refused(kind, changed(kind, key, None))
    else:
        absent = read(kind, plain)
        assert getattr(absent, key) == getattr(PAYLOAD_TYPES[kind](**_least(kind)), key)
        if key in EXTENSIONS or getattr(absent, key) is None:
            assert read(kind, changed(kind, key, None)) == absent


def _least(kind: MessageType) -> dict[str, Any]:
    return {key: getattr(VALUES[kind], key) for key in MANDATORY[kind]}


WRONG: list[Any] = [
    True,
    0,
    -1,
    2**64 - 1,
    1.5,
    "text",
    b"bytes",
    [],
    ["x", 1],
    [[]],
    {},
    {"x": 1},
    {"x": "y", "z": []},
]
FITTING = {
    "str": ("text",),
    "bool": (True,),
    "bytes": (b"bytes",),
    "list": ([],),
    "map": ({},),
    "u64": (0, 2**64 - 1),
    "small": (0,),
    "i32": (0, -1),
    "name": (),
    "usage": ({}, {"x": 1}, {"x": "y", "z": []}),
}
FORMS = {
    "success": "bool",
    "is_last": "bool",
    "data": "bytes",
    "input_data": "bytes",
    "output_data": "bytes",
    "args": "list",
    "supported_features": "list",
    "env": "map",
    "extra_params": "map",
    "timeout": "u64",
    "duration_ms": "u64",
    "deadline_ms": "u64",
    "credit": "u64",
    "sequence": "u64",
    "related_request_id": "u64",
    "hops": "small",
    "error_code": "small",
    "exit_code": "i32",
    "mode": "name",
    "status": "name",
    "signal_type": "name",
    "timestamp": "name",
    "resource_usage": "usage",
}


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize(("kind", "key"), KEYS)
def test_a_value_of_another_type_or_range(kind: MessageType, key: str) -> None:
    fitting = FITTING[FORMS.get(key, "str")]
    for value in WRONG:
        plain = changed(kind, key, value)
        if any(same(value, each) for each in fitting):
            assert type(read(kind, plain)) is PAYLOAD_TYPES[kind]
        else:
            assert f"{PAYLOAD_TYPES[kind].__name__}.{key}" in refused(kind, plain)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (T.EXECUTE_REQUEST, "hops", 256),
        (T.EXECUTE_RESPONSE, "exit_code", 2**31),
        (T.EXECUTE_RESPONSE, "exit_code", -(2**31) - 1),
        (T.EXECUTE_RESPONSE, "error_code", 2**32),
        (T.ERROR, "error_code", 2**32),
        (T.EXECUTE_REQUEST, "mode", "sync"),
        (T.EXECUTE_REQUEST, "mode", {"Sync": None}),
        (T.EXECUTE_RESPONSE, "status", "Done"),
        (T.HEARTBEAT, "status", "active"),
        (T.SIGNAL, "signal_type", "Custom"),
        (T.SIGNAL, "signal_type", {"Terminate": None}),
        (T.SIGNAL, "signal_type", {"Custom": 5}),
        (T.SIGNAL, "signal_type", {"Custom": b"x"}),
        (T.HEARTBEAT, "timestamp", {"secs_since_epoch": 1, "nanos_since_epoch": 10**9}),
        (T.HEARTBEAT, "timestamp", {"secs_since_epoch": 1}),
        (T.HEARTBEAT, "timestamp", {"secs_since_epoch": 1, "nanos_since_epoch": 1, "zone": 0}),
        (T.EXECUTE_RESPONSE, "resource_usage", {"cpu_percent": nan}),
        (T.EXECUTE_RESPONSE, "resource_usage", {"cpu_percent": inf}),
        (T.EXECUTE_RESPONSE, "resource_usage", {"cpu_percent": -inf}),
        (T.EXECUTE_RESPONSE, "resource_usage", {"cpu_percent": "1"}),
        (T.EXECUTE_RESPONSE, "resource_usage", {"memory_bytes": -1}),
        (T.EXECUTE_RESPONSE, "resource_usage", {"memory_bytes": 1.0}),
    ],
)
def test_values_out_of_range(kind: MessageType, key: str, value: Any) -> None:
    assert f".{key}" in refused(kind, changed(kind, key, value))


def test_numbers_up_to_their_ends() -> None:
    plain = changed(T.EXECUTE_REQUEST, "timeout", U64_MAX)
    assert read(T.EXECUTE_REQUEST, plain).timeout == U64_MAX
    usage = {"cpu_percent": 7, "memory_bytes": U64_MAX}
    response = read(T.EXECUTE_RESPONSE, {"task_id": "t", "status": "Failed", "resource_usage": usage})
    assert response == ExecuteResponse("t", ExecutionStatus.FAILED, resource_usage=ResourceUsage(7.0, U64_MAX))
    assert type(response.resource_usage.cpu_percent) is float
    assert read(T.SIGNAL, {"signal_type": "Pause"}) == Signal(SignalName.PAUSE)


@pytest.mark.parametrize(
    "nested",
    [
        b"\x82" + pack("secs_since_epoch") + b"\x01" + pack("secs_since_epoch") + b"\x01",
        *(
            head + 2 * (pack("secs_since_epoch") + b"\x01") + pack("nanos_since_epoch") + b"\x01"
            for head in (b"\x83", b"\xde\0\x03", b"\xdf\0\0\0\x03")
        ),
        b"\x83"
        + pack("secs_since_epoch")
        + b"\x01"
        + pack("nanos_since_epoch")
        + b"\x01"
        + pack("nanos_since_epoch")
        + b"\x01",
    ],
)
def test_a_key_that_comes_twice_further_in(nested: bytes) -> None:
    text = b"\x83" + pack("timestamp") + nested + pack("sequence") + b"\x01" + pack("status") + pack("Idle")
    assert "Heartbeat.timestamp: expected each key once" in refused(T.HEARTBEAT, text)


@pytest.mark.parametrize("head", [b"\x82", b"\xde\0\x02", b"\xdf\0\0\0\x02"])
def test_a_map_further_in_may_have_any_head(head: bytes) -> None:
    nested = head + pack("secs_since_epoch") + b"\x01" + pack("nanos_since_epoch") + b"\x02"
    text = b"\x83" + pack("timestamp") + nested + pack("sequence") + b"\x05" + pack("status") + pack("Idle")
    assert read(T.HEARTBEAT, text) == Heartbeat(Timestamp(1, 2), 5, HeartbeatStatus.IDLE)


BROKEN_TEXT: dict[str, tuple[bytes, str]] = {
    "a value": (b"\x82\xaaerror_code\x01\xa7message\xa2\xff\xfe", "ErrorMessage.message: 'utf-8'"),
    "a surrogate": (b"\x82\xaaerror_code\x01\xa7message\xa3\xed\xa0\x80", "ErrorMessage.message: 'utf-8'"),
    "a key": (b"\x83\xaaerror_code\x01\xa7message\xa0\xa1\xff\x01", "ErrorMessage: 'utf-8'"),
    "an integer for a key": (b"\x83\xaaerror_code\x01\xa7message\xa0\x05\x01", "expected strings as keys, found 5"),
    "a bin for a key": (
        b"\x83\xaaerror_code\x01\xc4\x07message\xa0\xa1x\x01",
        "expected strings as keys, found b'message'",
    ),
    "an array for a key": (b"\x81\x90\x01", "expected strings as keys, found"),
    "an array": (b"\x92\x01\xa0", "Expected `object`"),
    "text": (b'{"error_code":1,"message":"m"}', "Expected `object`"),
    "a value behind": (b"\x82\xaaerror_code\x01\xa7message\xa0\xc0", "trailing characters"),
    "half a map": (b"\x82\xaaerror_code\x01", "truncated"),
    "no map": (b"", "truncated"),
    "a byte without meaning": (b"\x83\xaaerror_code\x01\xa7message\xa0\xa1x\xc1", "invalid opcode"),
    "an extension": (b"\x82\xaaerror_code\x01\xa7message\xd4\x01\x01", "ErrorMessage.message: Expected"),
    "depth": (b"\x83\xaaerror_code\x01\xa7message\xa0\xa1x" + b"\x91" * 100_000 + b"\xc0", "nested too deeply"),
}


@pytest.mark.parametrize("name", BROKEN_TEXT)
def test_what_is_no_map_of_text(name: str) -> None:
    text, words = BROKEN_TEXT[name]
    assert words in refused(T.ERROR, text)


def test_maps_of_texts_may_have_a_key_twice_as_in_version_1() -> None:
    env = b"\x82\xa1k\xa11\xa1k\xa12"
    text = b"\x85" + b"".join(pack(key) + pack(value) for key, value in least_request().items()) + pack("env") + env
    assert read(T.EXECUTE_REQUEST, text) == ExecuteRequest("", "", [], {"k": "2"})


def least_request() -> dict[str, Any]:
    return {"task_id": "", "command": "", "args": [], "mode": "Sync"}


def test_reasons_are_plain_words() -> None:
    assert reason(RecursionError("maximum")) == "values nested too deeply"
    assert reason(ValueError("what")) == "what"
    assert RecursionError in UNREADABLE
