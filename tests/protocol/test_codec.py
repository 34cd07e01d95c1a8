"""Bodies of version 1: byte for byte what the original writes, read back whichever way, and nothing else accepted.

The vectors in `../shared` are frames that the original wrote. Where they are absent, the frames below (copied from
them) and the standard library's JSON still hold the format to the byte.
"""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spearpool.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from spearpool.protocol.codec import JSON_V1, message_type_of
from spearpool.protocol.codec_v2 import MSGPACK_V2
from spearpool.protocol.framing import FrameReader, frame
from spearpool.protocol.messages import (
    PAYLOAD_TYPES,
    U64_MAX,
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
    SignalName,
    SpearMessage,
    StreamData,
    Timestamp,
)
from spearpool.protocol.strict import read_struct

from .any_payload import ids, payloads
from .samples import EXTENSIONS, PLAIN, VALUES, spell, spell_body

T = MessageType
MAX = 64 * 1024 * 1024
TIME_NS = 1_700_000_000_123_456_789
VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "wire-vectors"
NAMES = sorted(path.stem for path in VECTORS.glob("*.bin"))

needs_vectors = pytest.mark.skipif(not NAMES, reason=f"{VECTORS} is absent: the original's frames are not at hand")


def meant_by(kind: MessageType, plain: dict[str, Any]) -> Payload:
    """The payload that plain JSON values mean, without our codec."""
    values = {
        key: bytes(value) if isinstance(value, list) and key in {"data", "input_data", "output_data"} else value
        for key, value in plain.items()
    }
    return msgspec.convert(values, PAYLOAD_TYPES[kind])


def wide(plain: Any) -> Any:
    """msgspec bounds integers at 2⁶³−1; larger ones go in afterwards."""
    return {key: 0 if isinstance(value, int) and value > 2**63 - 1 else value for key, value in plain.items()}


# The original's own frames


@needs_vectors
def test_all_vectors_are_there_and_untouched() -> None:
    assert len(NAMES) == 37
    for line in (VECTORS / "MANIFEST.sha256").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((VECTORS / name.lstrip("*")).read_bytes()).hexdigest() == digest


@needs_vectors
@pytest.mark.parametrize("name", NAMES)
def test_a_vector_is_written_from_its_plain_values(name: str) -> None:
    plain = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    expected = (VECTORS / f"{name}.bin").read_bytes()
    kind = MessageType(plain["message_type"])
    at = Timestamp(plain["timestamp"]["secs_since_epoch"], plain["timestamp"]["nanos_since_epoch"])
    values = plain["payload_json"]
    if isinstance(values, dict):
        payload = msgspec.structs.replace(
            meant_by(kind, wide(values)),
            **{key: value for key, value in values.items() if wide(values)[key] != value},
        )
        assert message_type_of(payload) is kind
        body = JSON_V1.encode(payload, plain["request_id"], at.to_ns())
    else:  # no payload, or one that is not JSON on purpose
        body_plain = json.loads(plain["body_utf8"])
        body = JSON_V1.encode_message(SpearMessage(kind, plain["request_id"], at, bytes(body_plain["payload"])))
    assert frame(body, MAX) == expected


@needs_vectors
@pytest.mark.parametrize("name", NAMES)
def test_a_vector_is_read_and_written_again(name: str) -> None:
    plain = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    data = (VECTORS / f"{name}.bin").read_bytes()
    message = only_message(data)
    assert message == read_struct(SpearMessage, data[4:])
    assert message.message_type.value == plain["message_type"]
    assert message.request_id == plain["request_id"]
    assert msgspec.to_builtins(message.timestamp) == plain["timestamp"]
    assert frame(JSON_V1.encode_message(message), MAX) == data
    if isinstance(plain["payload_json"], dict):
        payload = JSON_V1.decode_payload(message.message_type, message.payload)
        assert payload == read_struct(PAYLOAD_TYPES[message.message_type], message.payload)
        assert frame(JSON_V1.encode(payload, message.request_id, message.timestamp.to_ns()), MAX) == data


@needs_vectors
@pytest.mark.parametrize("name", NAMES)
def test_a_vector_in_any_spelling_means_the_same(name: str) -> None:
    body = (VECTORS / f"{name}.bin").read_bytes()[4:]
    plain = json.loads(body)
    message = JSON_V1.decode(json.dumps(dict(reversed(plain.items())), indent=1).encode())
    assert message == JSON_V1.decode(body)
    if isinstance(json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))["payload_json"], dict):
        loose = json.dumps(dict(reversed(json.loads(message.payload).items())), ensure_ascii=True, indent=1).encode()
        kind = message.message_type
        assert JSON_V1.decode_payload(kind, loose) == JSON_V1.decode_payload(kind, message.payload)


def only_message(data: bytes) -> SpearMessage:
    """The message of a frame that comes whole, byte by byte, and with another one's first bytes behind it."""
    messages = []
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))], [data + data[:3]]):
        reader = FrameReader(MAX)
        bodies = []
        for piece in pieces:
            reader.feed(piece)
            body = reader.next_frame()
            bodies += [] if body is None else [body]
        assert len(bodies) == 1
        messages.append(JSON_V1.decode(bodies[0]))
        assert JSON_V1.open(bodies[0]) == opened(messages[-1])
    assert messages[0] == messages[1] == messages[2]
    return messages[0]


Opened = tuple[MessageType, int, bytes]


def opened(message: SpearMessage) -> Opened:
    """What `open` has of an envelope."""
    return message.message_type, message.request_id, message.payload


# Frames of the original, copied here: the format for whoever has nothing but this file

COPIED: list[tuple[Payload, int, int, bytes]] = [
    (
        ConnectionClose(),
        15,
        TIME_NS,
        (
            b'\x00\x00\x00\x95{"message_type":"ConnectionClose","request_id":15,"timestamp":{"secs_since_epoch":1700000000,'
            b'"nanos_since_epoch":123456789},"payload":[],"version":1}'
        ),
    ),
    (
        Signal(Custom("reload")),
        8,
        TIME_NS,
        (
            b'\x00\x00\x01\x6a{"message_type":"Signal","request_id":8,"timestamp":{"secs_since_epoch":1700000000,'
            b'"nanos_since_epoch":123456789},"payload":[123,34,115,105,103,110,97,108,95,116,121,112,101,34,58,123,34,67,'
            b"117,115,116,111,109,34,58,34,114,101,108,111,97,100,34,125,44,34,116,97,115,107,95,105,100,34,58,110,117,108,"
            b'108,44,34,100,97,116,97,34,58,110,117,108,108,125],"version":1}'
        ),
    ),
    (
        StreamData("s-1", b"chunk\n\xff", False, 0),
        13,
        TIME_NS,
        (
            b'\x00\x00\x01\xa4{"message_type":"StreamData","request_id":13,"timestamp":{"secs_since_epoch":1700000000,'
            b'"nanos_since_epoch":123456789},"payload":[123,34,115,116,114,101,97,109,95,105,100,34,58,34,115,45,49,34,44,'
            b"34,100,97,116,97,34,58,91,57,57,44,49,48,52,44,49,49,55,44,49,49,48,44,49,48,55,44,49,48,44,50,53,53,93,44,"
            b"34,105,115,95,108,97,115,116,34,58,102,97,108,115,101,44,34,115,101,113,117,101,110,99,101,34,58,48,125],"
            b'"version":1}'
        ),
    ),
]


@pytest.mark.parametrize(("payload", "request_id", "time_ns", "data"), COPIED)
def test_copied_frames(payload: Payload, request_id: int, time_ns: int, data: bytes) -> None:
    assert frame(JSON_V1.encode(payload, request_id, time_ns), MAX) == data
    message = only_message(data)
    assert (message.request_id, message.timestamp.to_ns()) == (request_id, time_ns)
    assert JSON_V1.decode_payload(message.message_type, message.payload) == payload


PAYLOADS: list[tuple[Payload, str]] = [
    (
        AuthRequest("inst-é", "tok\t\b\f\r", "1.0.0", "process", {'clé"\\\n': "値🦀/\x7f\x01"}),
        (
            '{"instance_id":"inst-é","token":"tok\\t\\b\\f\\r","client_version":"1.0.0","client_type":"process",'
            '"extra_params":{"clé\\"\\\\\\n":"値🦀/\x7f\\u0001"}}'
        ),
    ),
    (
        AuthResponse(False, "Invalid authentication token", None, "1.0.0", []),
        (
            '{"success":false,"error_message":"Invalid authentication token","session_id":null,"server_version":"1.0.0"'
            ',"supported_features":[]}'
        ),
    ),
    (
        ExecuteRequest("t", "", [], {}, mode=ExecutionMode.ASYNC),
        (
            '{"task_id":"t","command":"","args":[],"env":{},"working_dir":null,"timeout":null,"mode":"Async",'
            '"input_data":null}'
        ),
    ),
    (
        ExecuteRequest("t", "c", ["a"], {"K": "v"}, "/", U64_MAX, ExecutionMode.INTERACTIVE, b""),
        (
            '{"task_id":"t","command":"c","args":["a"],"env":{"K":"v"},"working_dir":"/","timeout":18446744073709551615,'
            '"mode":"Interactive","input_data":[]}'
        ),
    ),
    (
        ExecuteResponse("t", ExecutionStatus.RUNNING, resource_usage=ResourceUsage(cpu_percent=100.0)),
        (
            '{"task_id":"t","status":"Running","output":null,"error":null,"exit_code":null,"duration_ms":null,'
            '"resource_usage":{"cpu_percent":100.0,"memory_bytes":null,"disk_read_bytes":null,"disk_write_bytes":null,'
            '"network_rx_bytes":null,"network_tx_bytes":null}}'
        ),
    ),
    (
        ExecuteResponse("task-123", ExecutionStatus.FAILED, None, "boom", -9, 3),
        (
            '{"task_id":"task-123","status":"Failed","output":null,"error":"boom","exit_code":-9,"duration_ms":3,'
            '"resource_usage":null}'
        ),
    ),
    (Signal(SignalName.TERMINATE), '{"signal_type":"Terminate","task_id":null,"data":null}'),
    (Signal(Custom(""), "task-1", b"abc"), '{"signal_type":{"Custom":""},"task_id":"task-1","data":[97,98,99]}'),
    (
        Heartbeat(Timestamp(1_700_000_001, 5), 42, HeartbeatStatus.IDLE),
        '{"timestamp":{"secs_since_epoch":1700000001,"nanos_since_epoch":5},"sequence":42,"status":"Idle"}',
    ),
    (
        ErrorMessage(2**32 - 1, "bad", "d", U64_MAX),
        '{"error_code":4294967295,"message":"bad","details":"d","related_request_id":18446744073709551615}',
    ),
    (StreamData("s-1", b"", True, 1), '{"stream_id":"s-1","data":[],"is_last":true,"sequence":1}'),
    (ConnectionClose(), ""),
    (ConnectionClose("drain"), '{"reason":"drain"}'),
]


@pytest.mark.parametrize(("payload", "text"), PAYLOADS, ids=[type(payload).__name__ for payload, _ in PAYLOADS])
def test_payloads_are_written_to_the_byte_and_read_back(payload: Payload, text: str) -> None:
    kind = message_type_of(payload)
    body = JSON_V1.encode(payload, 7, TIME_NS)
    assert body == spell_body(kind.value, text.encode())
    message = JSON_V1.decode(body)
    assert message == SpearMessage(kind, 7, Timestamp.from_ns(TIME_NS), text.encode(), 1)
    assert JSON_V1.decode_payload(message.message_type, message.payload) == payload


@pytest.mark.parametrize("kind", MessageType)
def test_extensions_are_keys_after_the_originals(kind: MessageType) -> None:
    body = JSON_V1.encode(VALUES[kind], 1, 0)
    assert JSON_V1.decode(body).payload == spell(PLAIN[kind])
    assert JSON_V1.decode_payload(kind, spell(PLAIN[kind])) == VALUES[kind]


@pytest.mark.parametrize(
    "kind", [kind for kind in MessageType if kind not in {MessageType.ERROR, MessageType.CONNECTION_CLOSE}]
)
def test_without_extensions_a_message_is_the_originals(kind: MessageType) -> None:
    original = {key: value for key, value in PLAIN[kind].items() if key not in EXTENSIONS}
    payload = JSON_V1.decode_payload(kind, spell(original))
    assert JSON_V1.decode(JSON_V1.encode(payload, 1, 0)).payload == spell(original)


@pytest.mark.parametrize(
    ("value", "text"),
    [(float("nan"), b"null"), (float("inf"), b"null"), (-float("inf"), b"null"), (0.0, b"0.0"), (12.5, b"12.5")],
)
def test_floats(value: float, text: bytes) -> None:
    response = ExecuteResponse("t", ExecutionStatus.RUNNING, resource_usage=ResourceUsage(value))
    assert b'{"cpu_percent":' + text + b"," in JSON_V1.decode(JSON_V1.encode(response, 1, 0)).payload


@given(st.text())
def test_texts_are_escaped_as_the_standard_library_does(text: str) -> None:
    payload = ConnectionClose(text or "x")
    assert JSON_V1.decode(JSON_V1.encode(payload, 1, 0)).payload == spell({"reason": text or "x"})


@pytest.mark.parametrize(
    ("request_id", "at"),
    [(0, Timestamp(0, 0)), (U64_MAX, Timestamp(U64_MAX, 999_999_999)), (2**63, Timestamp(253_402_300_799, 1))],
)
def test_the_ends_of_the_envelopes_ranges(request_id: int, at: Timestamp) -> None:
    message = SpearMessage(MessageType.HEARTBEAT, request_id, at, b"anything \x00\xff", 255)
    assert JSON_V1.decode(JSON_V1.encode_message(message)) == message


# What we may not write


@pytest.mark.parametrize(("request_id", "time_ns"), [(-1, 0), (U64_MAX + 1, 0), (1, -1), (1, 2**64 * 10**9)])
def test_an_envelope_out_of_range_is_not_written(request_id: int, time_ns: int) -> None:
    with pytest.raises(LocalProtocolError, match="out of range"):
        JSON_V1.encode(ConnectionClose(), request_id, time_ns)


@pytest.mark.parametrize(
    "message",
    [
        SpearMessage(MessageType.ERROR, 1, Timestamp(0, 10**9), b""),
        SpearMessage(MessageType.ERROR, 1, Timestamp(0, 0), b"", 256),
        SpearMessage(MessageType.ERROR, 1, Timestamp(-1, 0), b""),
    ],
)
def test_a_message_out_of_range_is_not_written(message: SpearMessage) -> None:
    with pytest.raises(LocalProtocolError, match="out of range"):
        JSON_V1.encode_message(message)


def test_what_is_not_text_is_not_written() -> None:
    with pytest.raises(LocalProtocolError, match=r"this ExecuteRequest cannot be written: .*surrogates"):
        JSON_V1.encode(ExecuteRequest("t", "", ["caf\udce9"], {}), 1, 0)


def test_what_is_not_json_is_not_written() -> None:
    with pytest.raises(LocalProtocolError, match="this Error cannot be written"):
        JSON_V1.encode(ErrorMessage(1, object()), 1, 0)  # type: ignore[arg-type]


# What we read, and refuse


@pytest.mark.parametrize(
    "text", [b"", b'"x"', b"[]", b"null", b"bye", b"\xff"], ids=["none", "string", "array", "null", "text", "bytes"]
)
def test_a_connection_close_may_carry_anything(text: bytes) -> None:
    message = SpearMessage(MessageType.CONNECTION_CLOSE, 1, Timestamp(0, 0), text)
    assert JSON_V1.decode_payload(message.message_type, message.payload) == ConnectionClose()


def test_a_connection_close_with_an_object_is_held_to_it() -> None:
    with pytest.raises(RemoteProtocolError, match=r"ConnectionClose\.reason: expected a string, found 5"):
        JSON_V1.decode_payload(MessageType.CONNECTION_CLOSE, b'{"reason":5}')


@pytest.mark.parametrize("first", [0x90, 0x96, 0x9F, 0xDC, 0xDD])
def test_a_version_2_body_is_told_so(first: int) -> None:
    with pytest.raises(RemoteProtocolError, match="version-2") as caught:
        JSON_V1.open(bytes([first]) + b"\x05\x01")
    assert caught.value.code is ErrorCode.VERSION


GOOD = spell_body("Heartbeat", spell(PLAIN[MessageType.HEARTBEAT]))
REFUSED: dict[str, bytes] = {
    "empty": b"",
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "trailing byte": GOOD + b"x",
    "trailing NUL": GOOD + b"\0",
    "second document": GOOD + GOOD,
    "unknown type": GOOD.replace(b'"Heartbeat"', b'"Heartbeats"'),
    "wrong case": GOOD.replace(b'"Heartbeat"', b'"heartbeat"'),
    "empty type": GOOD.replace(b'"Heartbeat"', b'""'),
    "request id twice": GOOD.replace(b'"request_id":7', b'"request_id":7,"request_id":7'),
    "payload twice": GOOD.replace(b',"version"', b',"payload":[],"version"'),
    "payload twice, canonical tail": GOOD.replace(b'"payload":[', b'"payload":[1],"payload":['),
    "version twice": GOOD[:-1] + b',"version":1}',
    "version within": GOOD.replace(b',"payload"', b',"version":1,"payload"'),
    "request id above u64": GOOD.replace(b":7,", b":18446744073709551616,"),
    "request id far above": GOOD.replace(b":7,", b":" + b"9" * 400 + b","),
    "negative request id": GOOD.replace(b":7,", b":-7,"),
    "negative zero": GOOD.replace(b":7,", b":-0,"),
    "leading zero": GOOD.replace(b":7,", b":07,"),
    "float request id": GOOD.replace(b":7,", b":7.0,"),
    "exponent": GOOD.replace(b":7,", b":7e0,"),
    "boolean request id": GOOD.replace(b":7,", b":true,"),
    "seconds above u64": GOOD.replace(b":1700000000,", b":18446744073709551616,"),
    "nanos above u32": GOOD.replace(b":123456789}", b":4294967296}"),
    "version above 255": GOOD.replace(b'"version":1', b'"version":256'),
    "missing version": GOOD.replace(b',"version":1', b""),
    "missing payload": spell({"message_type": "Heartbeat", "request_id": 1, "version": 1}),
    "payload as string": GOOD[: GOOD.index(b"[")] + b'"e30=","version":1}',
    "payload as null": GOOD[: GOOD.index(b"[")] + b'null,"version":1}',
    "payload as object": GOOD[: GOOD.index(b"[")] + b'{},"version":1}',
    "payload nested": GOOD.replace(b'"payload":[', b'"payload":[[').replace(b"],", b"]],"),
    "byte of 256": GOOD.replace(b'"payload":[', b'"payload":[256,'),
    "byte below 0": GOOD.replace(b'"payload":[', b'"payload":[-1,'),
    "byte of -0": GOOD.replace(b'"payload":[', b'"payload":[-0,'),
    "byte as float": GOOD.replace(b'"payload":[', b'"payload":[1.0,'),
    "byte as boolean": GOOD.replace(b'"payload":[', b'"payload":[true,'),
    "NaN": GOOD.replace(b'"payload":[', b'"payload":[NaN,'),
    "trailing comma": GOOD.replace(b'],"version"', b',],"version"'),
    "truncated": GOOD[:-1],
    "truncated payload": GOOD[: GOOD.index(b"]")],
    "invalid utf-8 in an unknown key": GOOD[:-1] + b',"\xff":0}',
    "lone surrogate in an unknown value": GOOD[:-1] + b',"x":"\\udfff"}',
    "nested too deeply": GOOD[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested type": GOOD.replace(b'"Heartbeat"', b'{"Heartbeat":' * 100_000),
    "not an object": b"[]",
    "garbage": bytes(range(128)),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_envelope_is_refused(name: str) -> None:
    assert JSON_V1.open(GOOD) == opened(JSON_V1.decode(GOOD))
    for read in (JSON_V1.open, JSON_V1.decode):
        with pytest.raises(RemoteProtocolError, match=r"SpearMessage.*: expected .*, found") as caught:
            read(REFUSED[name])
        assert caught.value.code is ErrorCode.MALFORMED
        assert len(str(caught.value)) < 400


TWICE = [
    (kind, spell(plain)[:-1] + b"," + spell({key: plain[key]})[1:]) for kind, plain in PLAIN.items() for key in plain
]
ALMOST_CANONICAL = [
    *TWICE,
    (T.EXECUTE_REQUEST, b'{"task_id":"t","command":"","args":[],"env":{},"working_dir":null,"timeout":null}'),
    (T.EXECUTE_REQUEST, spell(PLAIN[T.EXECUTE_REQUEST]).replace(b'"timeout":60', b'"timeout":-0')),
    (T.EXECUTE_REQUEST, spell(PLAIN[T.EXECUTE_REQUEST]).replace(b"[0,1,", b"[-0,1,")),
    (T.EXECUTE_REQUEST, spell(PLAIN[T.EXECUTE_REQUEST]).replace(b'"timeout":60', b'"timeout":18446744073709551616')),
    (T.SIGNAL, b'{"signal_type":{"Custom":"x","Custom":"x"},"task_id":null,"data":null}'),
    (T.SIGNAL, b'{"signal_type":{"Custom":"x","other":1},"task_id":null,"data":null}'),
    (T.STREAM_DATA, b'{"stream_id":"s","data":null,"is_last":true,"sequence":0}'),
    (T.ERROR, b'{"error_code":1,"message":"","details":null,"related_request_id":null,"\xff":0}'),
    (T.ERROR, b'{"error_code":1,"message":"","details":null,"related_request_id":null,"x":"\xff"}'),
    (T.HEARTBEAT, spell(PLAIN[T.HEARTBEAT]).replace(b'_epoch":5}', b'_epoch":5,"zone":0}')),
]


@pytest.mark.parametrize(("kind", "text"), ALMOST_CANONICAL)
def test_what_is_almost_canonical_is_not_taken_for_it(kind: MessageType, text: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=PAYLOAD_TYPES[kind].__name__) as caught:
        JSON_V1.decode_payload(kind, text)
    assert caught.value.code is ErrorCode.MALFORMED


def test_nanoseconds_are_carried_in_canonical_text_too() -> None:
    text = b'{"timestamp":{"secs_since_epoch":1,"nanos_since_epoch":2500000000},"sequence":0,"status":"Idle"}'
    heartbeat = JSON_V1.decode_payload(T.HEARTBEAT, text)
    assert heartbeat == Heartbeat(Timestamp(3, 500_000_000), 0, HeartbeatStatus.IDLE)
    body = spell_body("Heartbeat", text, nanos=2_500_000_000)
    assert JSON_V1.decode(body).timestamp == Timestamp(1_700_000_002, 500_000_000)


def test_depth_is_refused_even_near_the_end_of_the_stack() -> None:
    def deeper(levels: int) -> None:
        if levels:
            deeper(levels - 1)
        else:
            with pytest.raises(RemoteProtocolError):
                JSON_V1.decode(REFUSED["nested too deeply"])

    deeper(500)


# Any bytes

TEXTS = [(kind, spell(plain)) for kind, plain in PLAIN.items()]
EDITS = st.lists(
    st.tuples(st.integers(0, 800), st.integers(0, 3), st.sampled_from([b"", b'"', b",", b"0", b"9", b" ", b"-", b"}"])),
    max_size=3,
)


def edited(text: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, cut, put in edits:
        at %= len(text) + 1
        text = text[:at] + put + text[at + cut :]
    return text


@settings(max_examples=200)
@given(st.sampled_from(TEXTS), EDITS)
def test_both_ways_of_reading_a_payload_agree(
    sample: tuple[MessageType, bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    kind, text = sample[0], edited(sample[1], edits)
    if kind is MessageType.CONNECTION_CLOSE and not text.startswith(b"{"):
        return
    try:
        strictly: Payload | str = read_struct(PAYLOAD_TYPES[kind], text)
    except RemoteProtocolError as error:
        strictly = str(error)
    try:
        found: Payload | str = JSON_V1.decode_payload(kind, text)
    except RemoteProtocolError as error:
        found = str(error)
    assert found == strictly


@settings(max_examples=200)
@given(st.sampled_from(TEXTS), EDITS)
def test_both_ways_of_reading_an_envelope_agree(
    sample: tuple[MessageType, bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    body = edited(spell_body(sample[0].value, sample[1]), edits)
    try:
        strictly: Opened | str = opened(JSON_V1.decode(body))
    except RemoteProtocolError as error:
        strictly = str(error)
    try:
        found: Opened | str = JSON_V1.open(body)
    except RemoteProtocolError as error:
        found = str(error)
    assert found == strictly


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    for kind in MessageType:
        message = SpearMessage(kind, 1, Timestamp(0, 0), data)
        assert JSON_V1.decode(JSON_V1.encode_message(message)) == message
        try:
            payload = JSON_V1.decode_payload(message.message_type, message.payload)
        except RemoteProtocolError:
            continue
        assert type(payload) is PAYLOAD_TYPES[kind]
    with pytest.raises(RemoteProtocolError):
        JSON_V1.decode(data)


@given(payloads, ids, st.integers(0, 2**64 * 10**9 - 1))
def test_every_payload_comes_back(payload: Payload, request_id: int, time_ns: int) -> None:
    body = JSON_V1.encode(payload, request_id, time_ns)
    assert json.dumps(json.loads(body), separators=(",", ":")).encode() == body
    message = JSON_V1.decode(body)
    assert (message.request_id, message.timestamp.to_ns()) == (request_id, time_ns)
    assert JSON_V1.open(body) == opened(message)
    assert JSON_V1.decode_payload(message.message_type, message.payload) == payload


# Size


def test_a_large_payload_takes_a_small_multiple_of_its_frame() -> None:
    data = bytes(range(256)) * 4096
    body = JSON_V1.encode(StreamData("s", data, True, 0), 1, TIME_NS)
    tracemalloc.start()
    try:
        kind, _, packed = JSON_V1.open(body)
        payload = JSON_V1.decode_payload(kind, packed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert payload == StreamData("s", data, True, 0)
    assert peak < 1.5 * len(body)  # as lists of integers it would be 4 times that


@pytest.mark.parametrize(
    "payload",
    [StreamData("s", bytes(2**20), True, 0), ExecuteResponse("t", ExecutionStatus.COMPLETED, " " * 2**21)],
    ids=["data", "text"],
)
def test_what_is_sure_to_be_too_large_is_not_written_first(payload: Payload) -> None:
    limit = 6 * 2**20
    assert len(JSON_V1.encode(payload, 1, TIME_NS)) > limit
    tracemalloc.start()
    try:
        with pytest.raises(LocalProtocolError, match=f"limit is {limit - 1}:") as caught:
            JSON_V1.encode(payload, 1, TIME_NS, limit - 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code is ErrorCode.TOO_LARGE
    assert peak < 2**22


@given(payloads)
@example(ConnectionClose(" " * 10_000))
@example(StreamData("s", bytes(10_000), True, 0))
def test_nothing_that_fits_is_refused(payload: Payload) -> None:
    for codec in (JSON_V1, MSGPACK_V2):
        body = codec.encode(payload, 1, TIME_NS)
        assert codec.encode(payload, 1, TIME_NS, len(body)) == body


def test_a_loose_spelling_of_a_large_payload_does_so_too() -> None:
    body = json.dumps(json.loads(JSON_V1.encode(StreamData("s", b"\xff" * 2**18, True, 0), 1, TIME_NS))).encode()
    tracemalloc.start()
    try:
        message = JSON_V1.decode(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert JSON_V1.decode_payload(message.message_type, message.payload) == StreamData("s", b"\xff" * 2**18, True, 0)
    assert peak < 2.5 * len(body)
