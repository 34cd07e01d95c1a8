"""Bodies of version 2: what we write, to the byte; what is read of what others may write; what is refused."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from math import inf, nan
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spearpool.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from spearpool.protocol.codec import JSON_V1
from spearpool.protocol.codec_v2 import MSGPACK_V2
from spearpool.protocol.messages import (
    PAYLOAD_TYPES,
    U64_MAX,
    ConnectionClose,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    MessageType,
    Payload,
    ResourceUsage,
    SpearMessage,
    StreamData,
    Timestamp,
)

from .any_payload import ids, payloads
from .samples import PLAIN, VALUES, binary, pack, pack_body
from .vectors_v2 import TIME_NS, VECTORS

T = MessageType


def packed(kind: MessageType) -> bytes:
    return pack(binary(PLAIN[kind]))


# What we write


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_written_and_read(name: str) -> None:
    payload, request_id, text = VECTORS[name]
    body = bytes.fromhex(text)
    assert MSGPACK_V2.encode(payload, request_id, TIME_NS).hex() == body.hex()
    kind, number, payload_bytes = MSGPACK_V2.open(body)
    assert (PAYLOAD_TYPES[kind], number) == (type(payload), request_id)
    assert MSGPACK_V2.decode_payload(kind, payload_bytes) == payload
    plain = msgspec.to_builtins(payload, builtin_types=(bytes,))
    assert body == pack_body(kind, pack(plain), request_id)


def test_there_is_a_vector_of_every_type() -> None:
    assert {type(payload) for payload, _, _ in VECTORS.values()} == set(PAYLOAD_TYPES.values())


@pytest.mark.parametrize("kind", T)
def test_written_are_the_keys_of_version_1_in_their_order_and_shortest_forms(kind: MessageType) -> None:
    assert MSGPACK_V2.encode(VALUES[kind], 7, TIME_NS) == pack_body(kind, packed(kind))
    assert MSGPACK_V2.decode_payload(kind, packed(kind)) == VALUES[kind]


def test_no_reason_is_a_payload_like_any_other_and_none_is_read_as_it() -> None:
    _, _, payload = MSGPACK_V2.open(MSGPACK_V2.encode(ConnectionClose(), 1, TIME_NS))
    assert payload == pack({"reason": ""})
    for text in (payload, pack({}), b""):
        assert MSGPACK_V2.decode_payload(T.CONNECTION_CLOSE, text) == ConnectionClose()
    for kind in set(T) - {T.CONNECTION_CLOSE}:
        with pytest.raises(RemoteProtocolError, match="truncated"):
            MSGPACK_V2.decode_payload(kind, b"")


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_float_that_is_not_finite_is_absent_as_in_version_1(value: float) -> None:
    usage = ResourceUsage(value, 5)
    response = ExecuteResponse("t", ExecutionStatus.COMPLETED, resource_usage=usage)
    for codec in (JSON_V1, MSGPACK_V2):
        kind, _, payload = codec.open(codec.encode(response, 1, TIME_NS))
        assert codec.decode_payload(kind, payload) == ExecuteResponse(
            "t", ExecutionStatus.COMPLETED, resource_usage=ResourceUsage(None, 5)
        )


@pytest.mark.parametrize(
    ("request_id", "at"), [(0, Timestamp(0, 0)), (U64_MAX, Timestamp(U64_MAX, 999_999_999)), (128, Timestamp(1, 1))]
)
def test_the_ends_of_the_envelopes_ranges(request_id: int, at: Timestamp) -> None:
    message = SpearMessage(T.ERROR, request_id, at, b"\x80", 2)
    body = MSGPACK_V2.encode_message(message)
    assert body == pack_body(T.ERROR, b"\x80", request_id, at.secs_since_epoch, at.nanos_since_epoch)
    assert MSGPACK_V2.decode(body) == message
    assert MSGPACK_V2.open(body) == (T.ERROR, request_id, b"\x80")


@pytest.mark.parametrize(("request_id", "time_ns"), [(-1, 0), (U64_MAX + 1, 0), (0, -1), (0, 2**64 * 10**9)])
def test_an_envelope_out_of_range_is_not_written(request_id: int, time_ns: int) -> None:
    with pytest.raises(LocalProtocolError, match="out of range"):
        MSGPACK_V2.encode(ConnectionClose(), request_id, time_ns)


def test_a_payload_that_is_too_large_is_not_put_into_an_envelope() -> None:
    payload = StreamData("s", bytes(1000), True, 0)
    size = len(MSGPACK_V2.encode(payload, 1, TIME_NS))
    assert len(MSGPACK_V2.encode(payload, 1, TIME_NS, size)) == size
    with pytest.raises(LocalProtocolError, match="limit is 1000:") as caught:
        MSGPACK_V2.encode(payload, 1, TIME_NS, 1000)
    assert caught.value.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("text", ["caf\udce9", object(), 2**64])
def test_what_messagepack_cannot_say_is_not_written(text: Any) -> None:
    with pytest.raises(LocalProtocolError, match="this Error cannot be written"):
        MSGPACK_V2.encode(ErrorMessage(1, text), 1, 0)


# What we read


def reversed_keys(plain: Any) -> Any:
    return {key: reversed_keys(plain[key]) for key in reversed(plain)} if isinstance(plain, dict) else plain


@pytest.mark.parametrize("kind", T)
def test_keys_in_any_order_and_unknown_ones(kind: MessageType) -> None:
    plain = reversed_keys(binary(PLAIN[kind]))
    assert MSGPACK_V2.decode_payload(kind, pack(plain)) == VALUES[kind]
    if kind is not T.HEARTBEAT:
        assert MSGPACK_V2.decode_payload(kind, pack({"x": [1, {"y": b"z"}]} | plain)) == VALUES[kind]


LONG_FORMS = {
    "envelope": b"\xdd\0\0\0\x06\xcd\0\x02\xcf"
    + struct.pack(">Q", 7)
    + b"\xd3"
    + struct.pack(">Q", 1)
    + b"\x02\xcc\x02",
    "payload": b"\xdf\0\0\0\x04"
    b"\xdb\0\0\0\x07task_id\xda\0\x01t"
    b"\xd9\x07command\xa0"
    b"\xa4args\xdc\0\0"
    b"\xa3env\xde\0\0"
    b"\xa4mode\xd9\x04Sync"
    b"\xa7timeout\xcf\0\0\0\0\0\0\0\x05"
    b"\xaainput_data\xc6\0\0\0\x01i",
}


def test_forms_that_are_longer_than_they_need_be() -> None:
    text = LONG_FORMS["payload"].replace(b"\xdf\0\0\0\x04", b"\xdf\0\0\0\x07")
    body = LONG_FORMS["envelope"] + b"\xc5" + struct.pack(">H", len(text)) + text
    assert MSGPACK_V2.decode(body) == SpearMessage(T.EXECUTE_REQUEST, 7, Timestamp(1, 2), text, 2)
    assert MSGPACK_V2.decode_payload(T.EXECUTE_REQUEST, text) == ExecuteRequest(
        "t", "", [], {}, timeout=5, input_data=b"i"
    )


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000, 262_000, 263_000])
def test_data_of_any_size(size: int) -> None:
    payload = StreamData("s", bytes(range(256)) * (size // 256) + bytes(size % 256), True, 2**63)
    kind, _, text = MSGPACK_V2.open(MSGPACK_V2.encode(payload, 1, TIME_NS))
    found = MSGPACK_V2.decode_payload(kind, text)
    assert found == payload
    assert isinstance(found, StreamData)
    assert type(found.data) is bytes


# What we refuse

GOOD = pack_body(T.HEARTBEAT, packed(T.HEARTBEAT))


def envelope(*items: Any) -> bytes:
    return pack(list(items))


REFUSED: dict[str, bytes] = {
    "empty": b"",
    "trailing byte": GOOD + b"\0",
    "second body": GOOD + GOOD,
    "truncated": GOOD[:-1],
    "only a head": GOOD[:1],
    "too few items": envelope(5, 7, 1, 2, 2),
    "too many items": envelope(5, 7, 1, 2, 2, b"", 0),
    "a map": pack({"message_type": 5}),
    "nil": b"\xc0",
    "code above": envelope(9, 7, 1, 2, 2, b""),
    "code below": envelope(-1, 7, 1, 2, 2, b""),
    "type by name": envelope("Heartbeat", 7, 1, 2, 2, b""),
    "negative request id": envelope(5, -7, 1, 2, 2, b""),
    "float request id": envelope(5, 7.0, 1, 2, 2, b""),
    "boolean request id": envelope(5, True, 1, 2, 2, b""),
    "nil request id": envelope(5, None, 1, 2, 2, b""),
    "negative seconds": envelope(5, 7, -1, 2, 2, b""),
    "nanos of a second": envelope(5, 7, 1, 10**9, 2, b""),
    "version above 255": envelope(5, 7, 1, 2, 256, b""),
    "payload as text": envelope(5, 7, 1, 2, 2, "{}"),
    "payload as a map": envelope(5, 7, 1, 2, 2, {}),
    "payload as an array": envelope(5, 7, 1, 2, 2, [1]),
    "payload nil": envelope(5, 7, 1, 2, 2, None),
    "payload beyond the end": envelope(5, 7, 1, 2, 2, b"")[:-2] + b"\xc6\xff\xff\xff\xff",
    "array beyond the end": b"\xdd\xff\xff\xff\xff",
    "nested": b"\x91" * 100_000,
    "a byte that means nothing": b"\x96\xc1",
    "extension type": b"\x96\xd4\x01\x01" + GOOD[2:],
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "garbage": bytes(range(128, 256)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_envelope_is_refused(name: str) -> None:
    assert MSGPACK_V2.open(GOOD) == (T.HEARTBEAT, 7, packed(T.HEARTBEAT))
    for read in (MSGPACK_V2.open, MSGPACK_V2.decode):
        with pytest.raises(RemoteProtocolError, match=r"^envelope: ") as caught:
            read(REFUSED[name])
        assert caught.value.code is ErrorCode.MALFORMED
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (JSON_V1.encode(VALUES[T.HEARTBEAT], 1, TIME_NS), "a version-1 body"),
        (b"{", "a version-1 body"),
        (envelope(5, 7, 1, 2, 1, b""), "of version 1, expected 2"),
        (envelope(5, 7, 1, 2, 3, b""), "of version 3, expected 2"),
    ],
)
def test_a_body_of_another_version_is_told_so(body: bytes, words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        MSGPACK_V2.open(body)
    assert caught.value.code is ErrorCode.VERSION


@pytest.mark.parametrize("kind", T)
def test_a_body_of_version_2_is_told_so_by_version_1(kind: MessageType) -> None:
    with pytest.raises(RemoteProtocolError, match="version-2") as caught:
        JSON_V1.open(MSGPACK_V2.encode(VALUES[kind], 1, TIME_NS))
    assert caught.value.code is ErrorCode.VERSION


TWICE = [
    (kind, bytes([packed(kind)[0] + 1]) + packed(kind)[1:] + pack(key) + pack(value))
    for kind in T
    for key, value in binary(PLAIN[kind]).items()
]


@pytest.mark.parametrize(("kind", "text"), TWICE)
def test_a_key_that_comes_twice(kind: MessageType, text: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="expected each key once"):
        MSGPACK_V2.decode_payload(kind, text)


def test_depth_is_refused_even_near_the_end_of_the_stack() -> None:
    deep = b"\x83" + packed(T.HEARTBEAT)[1:] + b"\xa1x" + b"\x91" * 50_000 + b"\xc0"

    def deeper(levels: int) -> None:
        if levels:
            deeper(levels - 1)
            return
        with pytest.raises(RemoteProtocolError):
            MSGPACK_V2.open(REFUSED["nested"])
        with pytest.raises(RemoteProtocolError):
            MSGPACK_V2.decode_payload(T.HEARTBEAT, deep)

    deeper(500)


# Any payload, any bytes


@given(payloads, ids, st.integers(0, 2**64 * 10**9 - 1))
def test_both_versions_bring_every_payload_back(payload: Payload, request_id: int, time_ns: int) -> None:
    found = []
    for codec in (JSON_V1, MSGPACK_V2):
        body = codec.encode(payload, request_id, time_ns)
        message = codec.decode(body)
        assert (message.request_id, message.timestamp.to_ns(), message.version) == (request_id, time_ns, codec.version)
        assert codec.open(body) == (message.message_type, request_id, message.payload)
        assert codec.encode_message(message) == body
        found.append(codec.decode_payload(message.message_type, message.payload))
    assert found == [payload, payload]


BODIES = [(kind, packed(kind)) for kind in T]
EDITS = st.lists(st.tuples(st.integers(0, 800), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3)


def edited(text: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, cut, put in edits:
        at %= len(text) + 1
        text = text[:at] + put + text[at + cut :]
    return text


@settings(max_examples=500)
@given(st.sampled_from(BODIES), EDITS)
def test_a_payload_with_other_bytes_is_a_value_or_refused(
    sample: tuple[MessageType, bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    kind, text = sample[0], edited(sample[1], edits)
    try:
        payload = MSGPACK_V2.decode_payload(kind, text)
    except RemoteProtocolError:
        return
    assert type(payload) is PAYLOAD_TYPES[kind]
    _, _, again = MSGPACK_V2.open(MSGPACK_V2.encode(payload, 1, 0))
    assert MSGPACK_V2.decode_payload(kind, again) == payload


@settings(max_examples=300)
@given(st.sampled_from(BODIES), EDITS)
def test_an_envelope_with_other_bytes_is_a_message_or_refused(
    sample: tuple[MessageType, bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    body = edited(pack_body(*sample), edits)
    try:
        message = MSGPACK_V2.decode(body)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            MSGPACK_V2.open(body)
    else:
        assert MSGPACK_V2.open(body) == (message.message_type, message.request_id, message.payload)
        assert MSGPACK_V2.decode(MSGPACK_V2.encode_message(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    for kind in T:
        with suppress(RemoteProtocolError):
            assert type(MSGPACK_V2.decode_payload(kind, data)) is PAYLOAD_TYPES[kind]
    with suppress(RemoteProtocolError):
        assert isinstance(MSGPACK_V2.decode(data), SpearMessage)


# Size


def test_a_large_payload_is_copied_no_more_often_than_it_has_layers() -> None:
    body = MSGPACK_V2.encode(StreamData("s", bytes(2**22), True, 0), 1, TIME_NS)
    tracemalloc.start()
    try:
        kind, _, text = MSGPACK_V2.open(body)
        payload = MSGPACK_V2.decode_payload(kind, text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert payload == StreamData("s", bytes(2**22), True, 0)
    assert peak < 2.1 * len(body)  # out of the envelope, and out of the payload


@pytest.mark.parametrize("head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xde\xff\xff"])
@pytest.mark.parametrize("key", ["args", "env", "x"])
def test_a_length_beyond_the_end_takes_no_memory(head: bytes, key: str) -> None:
    text = b"\x81" + pack(key) + head
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            MSGPACK_V2.decode_payload(T.EXECUTE_REQUEST, text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000
