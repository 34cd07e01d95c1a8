"""Version 1 by the letter: what PROTOCOL.md accepts, and a clear refusal of everything that it rejects."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spearpool.errors import ErrorCode, RemoteProtocolError
from spearpool.protocol.messages import (
    PAYLOAD_TYPES,
    U64_MAX,
    UNSET,
    AuthResponse,
    Custom,
    MessageType,
    Payload,
    ResourceUsage,
    Signal,
    SignalName,
    SpearMessage,
    Timestamp,
)
from spearpool.protocol.strict import read_struct

from .samples import MANDATORY, PLAIN, VALUES, spell

ENVELOPE: dict[str, Any] = {
    "message_type": "Heartbeat",
    "request_id": 12,
    "timestamp": {"secs_since_epoch": 1_700_000_000, "nanos_since_epoch": 123},
    "payload": [123, 125],
    "version": 1,
}
MESSAGE = SpearMessage(MessageType.HEARTBEAT, 12, Timestamp(1_700_000_000, 123), b"{}", 1)

SUBJECTS: dict[str, tuple[type[msgspec.Struct], dict[str, Any], msgspec.Struct]] = {
    "envelope": (SpearMessage, ENVELOPE, MESSAGE),
    **{kind.value: (PAYLOAD_TYPES[kind], PLAIN[kind], VALUES[kind]) for kind in MessageType},
}
"""Class, plain values, value."""

KEYS = [(name, key) for name, (_, plain, _) in SUBJECTS.items() for key in plain]
NEEDED = {"envelope": set(ENVELOPE), **{kind.value: keys for kind, keys in MANDATORY.items()}}


def read(name: str, plain: Any) -> Any:
    return read_struct(SUBJECTS[name][0], plain if isinstance(plain, bytes) else spell(plain))


def refused(name: str, plain: Any, *words: str) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        read(name, plain)
    assert caught.value.code is ErrorCode.MALFORMED
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def changed(name: str, *path: str, to: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(SUBJECTS[name][1]))
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return plain


# Accepted


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_canonical_form(name: str) -> None:
    assert read(name, SUBJECTS[name][1]) == SUBJECTS[name][2]


@pytest.mark.parametrize("name", SUBJECTS)
def test_any_order_and_any_white_space(name: str) -> None:
    plain = dict(reversed(SUBJECTS[name][1].items()))
    text = b" \r\n\t" + json.dumps(plain, indent=2, ensure_ascii=True).encode() + b"\n "
    assert read(name, text) == SUBJECTS[name][2]


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("value", [None, 1.5, [], {"a": [{"b": "😀"}]}, "x", 2**70, -1])
def test_unknown_keys_are_ignored(name: str, value: Any) -> None:
    assert read(name, {"zzz": value, **SUBJECTS[name][1], "": value}) == SUBJECTS[name][2]


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, key in KEYS if key not in NEEDED[name]])
def test_an_optional_key_may_be_missing_or_null(name: str, key: str) -> None:
    kind, plain, value = SUBJECTS[name]
    field = next(field for field in msgspec.structs.fields(kind) if field.name == key)
    default = field.default_factory() if callable(field.default_factory) else field.default
    expected = msgspec.structs.replace(value, **{key: default})
    assert read(name, {other: plain[other] for other in plain if other != key}) == expected
    if default is None or default is UNSET:
        assert read(name, {**plain, key: None}) == expected


def test_the_seeds_short_auth_response() -> None:
    assert read("AuthResponse", {"success": True, "error_message": None, "session_id": "s"}) == AuthResponse(
        True, None, "s", "", []
    )


UNITS = [("Heartbeat", "status", "Busy"), ("ExecuteRequest", "mode", "Stream"), ("ExecuteResponse", "status", "Failed")]


@pytest.mark.parametrize(("name", "key", "member"), [*UNITS, ("envelope", "message_type", "Signal")])
def test_a_unit_variant_may_be_an_object_with_null(name: str, key: str, member: str) -> None:
    bare = read(name, changed(name, key, to=member))
    assert read(name, changed(name, key, to={member: None})) == bare
    assert getattr(bare, key).value == member


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("Terminate", SignalName.TERMINATE),
        ({"Pause": None}, SignalName.PAUSE),
        ({"Custom": ""}, Custom("")),
        ({"Custom": "Custom"}, Custom("Custom")),
        ({"Custom": "@nudge:thumb"}, Custom("@nudge:thumb")),
    ],
)
def test_signals(spelled: Any, meant: SignalName | Custom) -> None:
    assert read("Signal", {"signal_type": spelled}) == Signal(meant)


@pytest.mark.parametrize(
    ("seconds", "nanos", "carried"),
    [
        (5, 999_999_999, (5, 999_999_999)),
        (5, 10**9, (6, 0)),
        (5, 2**32 - 1, (9, 294_967_295)),
        (U64_MAX, 999_999_999, (U64_MAX, 999_999_999)),
        (U64_MAX - 1, 10**9, (U64_MAX, 0)),
    ],
)
@pytest.mark.parametrize("name", ["envelope", "Heartbeat"])
def test_nanoseconds_are_carried_into_seconds(name: str, seconds: int, nanos: int, carried: tuple[int, int]) -> None:
    stamp = {"nanos_since_epoch": nanos, "secs_since_epoch": seconds}
    assert read(name, changed(name, "timestamp", to=stamp)).timestamp == Timestamp(*carried)


@pytest.mark.parametrize("version", [0, 1, 2, 255])
def test_any_version_of_a_byte(version: int) -> None:
    assert read("envelope", {**ENVELOPE, "version": version}).version == version


@pytest.mark.parametrize(("text", "value"), [("100", 100.0), ("12.50", 12.5), ("-0", 0.0), ("1e3", 1000.0), ("5", 5.0)])
def test_an_integer_where_a_float_is_expected(text: str, value: float) -> None:
    body = b'{"task_id":"t","status":"Running","resource_usage":{"cpu_percent":%b}}' % text.encode()
    usage = read("ExecuteResponse", body).resource_usage
    assert usage == ResourceUsage(cpu_percent=value)
    assert type(usage.cpu_percent) is float


def test_escapes_and_pairs_of_surrogates() -> None:
    request = read("AuthRequest", b'{"instance_id":"\\u00e9\\ud83d\\ude00\\/\\b","token":"","client_version":"",'
                   b'"client_type":"","extra_params":{"a":"1","a":"2"}}')  # fmt: skip
    assert request.instance_id == "é😀/\b"
    assert request.extra_params == {"a": "2"}  # a map, not a struct: the last one counts


# Rejected: structure


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, key in KEYS if key in NEEDED[name]])
def test_a_mandatory_key_may_not_be_missing_or_null(name: str, key: str) -> None:
    kind, plain, _ = SUBJECTS[name]
    refused(name, {other: plain[other] for other in plain if other != key}, f"{kind.__name__}.{key}", "to be there")
    refused(name, {**plain, key: None}, f"{kind.__name__}.{key}", "null")


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_a_key_twice(name: str, key: str) -> None:
    plain = SUBJECTS[name][1]
    twice = spell(plain)[:-1] + b"," + spell({key: plain[key]})[1:]
    refused(name, twice, "each key once", key)


def test_an_unknown_key_twice() -> None:
    refused("Error", b'{"error_code":1,"x":1,"message":"","x":1}', "each key once", "'x'")


@pytest.mark.parametrize("name", ["envelope", "Heartbeat"])
@pytest.mark.parametrize(
    "stamp",
    [
        b'{"secs_since_epoch":1,"nanos_since_epoch":1,"zone":0}',
        b'{"secs_since_epoch":1,"nanos_since_epoch":1,"secs_since_epoch":1}',
        b'{"secs_since_epoch":1}',
        b'{"nanos_since_epoch":1}',
        b'{"secs_since_epoch":1,"nanos_since_epoch":4294967296}',
        b'{"secs_since_epoch":-1,"nanos_since_epoch":1}',
        b'{"secs_since_epoch":18446744073709551615,"nanos_since_epoch":1000000000}',
        b"[1,1]",
        b"1",
        b'"1970"',
        b"null",
    ],
)
def test_a_timestamp_is_exact(name: str, stamp: bytes) -> None:
    plain = spell({**SUBJECTS[name][1], "timestamp": "HERE"}).replace(b'"HERE"', stamp)
    refused(name, plain, f"{SUBJECTS[name][0].__name__}.timestamp")


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("text", [b"[]", b"null", b"1", b'"x"', b"true", b"[1,2,3,4,5]"])
def test_a_struct_is_an_object(name: str, text: bytes) -> None:
    refused(name, text, "expected a JSON object")


# Rejected: values

INTEGERS: list[tuple[str, tuple[str, ...], int, int]] = [
    ("envelope", ("request_id",), 0, U64_MAX),
    ("envelope", ("version",), 0, 255),
    ("envelope", ("timestamp", "secs_since_epoch"), 0, U64_MAX),
    ("envelope", ("timestamp", "nanos_since_epoch"), 0, 2**32 - 1),
    ("ExecuteRequest", ("timeout",), 0, U64_MAX),
    ("ExecuteRequest", ("deadline_ms",), 0, U64_MAX),
    ("ExecuteRequest", ("hops",), 0, 255),
    ("ExecuteRequest", ("credit",), 0, U64_MAX),
    ("ExecuteResponse", ("exit_code",), -(2**31), 2**31 - 1),
    ("ExecuteResponse", ("duration_ms",), 0, U64_MAX),
    ("ExecuteResponse", ("error_code",), 0, 2**32 - 1),
    *[
        ("ExecuteResponse", ("resource_usage", key), 0, U64_MAX)
        for key in PLAIN[MessageType.EXECUTE_RESPONSE]["resource_usage"]
        if key != "cpu_percent"
    ],
    ("Heartbeat", ("sequence",), 0, U64_MAX),
    ("Heartbeat", ("timestamp", "secs_since_epoch"), 0, U64_MAX),
    ("Heartbeat", ("timestamp", "nanos_since_epoch"), 0, 2**32 - 1),
    ("Error", ("error_code",), 0, 2**32 - 1),
    ("Error", ("related_request_id",), 0, U64_MAX),
    ("StreamData", ("sequence",), 0, U64_MAX),
    ("StreamData", ("credit",), 0, U64_MAX),
]
NO_INTEGERS = [b"1.0", b"1e0", b"1E2", b"-0", b"0.5", b"true", b'"1"', b"[1]", b"{}", b"9" * 5000]


@pytest.mark.parametrize(("name", "path", "low", "high"), INTEGERS)
def test_integers_keep_to_their_range(name: str, path: tuple[str, ...], low: int, high: int) -> None:
    for good in (low, 0, 1, high):
        value = read(name, changed(name, *path, to=good))
        for key in path:
            value = getattr(value, key)
        assert value == (good % 10**9 if path[-1] == "nanos_since_epoch" else good)
    for bad in (low - 1, high + 1, -(2**63) - 1, 2**64, 10**30):
        refused(name, changed(name, *path, to=bad), ".".join(path), f"an integer from {low} to {high}")
    for text in NO_INTEGERS:
        spelled = spell(changed(name, *path, to="HERE")).replace(b'"HERE"', text)
        refused(name, spelled, ".".join(path), f"an integer from {low} to {high}")


@pytest.mark.parametrize(("name", "key", "member"), [*UNITS, ("envelope", "message_type", "Heartbeat")])
def test_names_are_exact(name: str, key: str, member: str) -> None:
    spellings: list[Any] = [member.lower(), member.upper(), member + " ", "", "Custom", 0, None, True, [member], {}]
    for wrong in [*spellings, {member: 1}, {member: {}}, {member.lower(): None}, {member: None, "x": None}]:
        refused(name, changed(name, key, to=wrong), key)
    twice = spell(changed(name, key, to="HERE")).replace(b'"HERE"', spell({member: None})[:-1] + b',"Idle":null}')
    refused(name, twice, key)


@pytest.mark.parametrize(
    "wrong",
    ["Custom", "terminate", {"Custom": None}, {"Custom": 1}, {"Custom": "x", "y": 1}, {"Terminate": 1}, {"custom": "x"},
     {}, [], None, 1],
)  # fmt: skip
def test_signals_are_exact(wrong: Any) -> None:
    refused("Signal", {"signal_type": wrong}, "Signal.signal_type")


TYPES: dict[str, tuple[Any, ...]] = {
    "a string": (1, True, [], {}, 1.5),
    "true or false": (1, 0, "true", [], {}),
    "an array of strings": ("a", {}, [1], ["a", None], 1),
    "an object of strings": ("a", [], {"a": 1}, {"a": None}, 1),
    "an array of integers": ("aGk=", {}, [256], [-1], [1.0], [True], ["1"], [[1]], 1),
    "a JSON object": ("a", [], [1, 2, 3, 4, 5, 6], 1),
    "a number": ("1", True, [], {}),
}
TYPED: list[tuple[str, tuple[str, ...], str]] = [
    ("envelope", ("payload",), "an array of integers"),
    ("AuthRequest", ("instance_id",), "a string"),
    ("AuthRequest", ("token",), "a string"),
    ("AuthRequest", ("client_version",), "a string"),
    ("AuthRequest", ("client_type",), "a string"),
    ("AuthRequest", ("extra_params",), "an object of strings"),
    ("AuthResponse", ("success",), "true or false"),
    ("AuthResponse", ("error_message",), "a string"),
    ("AuthResponse", ("session_id",), "a string"),
    ("AuthResponse", ("server_version",), "a string"),
    ("AuthResponse", ("supported_features",), "an array of strings"),
    ("ExecuteRequest", ("task_id",), "a string"),
    ("ExecuteRequest", ("args",), "an array of strings"),
    ("ExecuteRequest", ("env",), "an object of strings"),
    ("ExecuteRequest", ("working_dir",), "a string"),
    ("ExecuteRequest", ("input_data",), "an array of integers"),
    ("ExecuteRequest", ("execution_id",), "a string"),
    ("ExecuteRequest", ("idempotency_key",), "a string"),
    ("ExecuteResponse", ("output",), "a string"),
    ("ExecuteResponse", ("resource_usage",), "a JSON object"),
    ("ExecuteResponse", ("resource_usage", "cpu_percent"), "a number"),
    ("ExecuteResponse", ("output_data",), "an array of integers"),
    ("Signal", ("data",), "an array of integers"),
    ("Error", ("message",), "a string"),
    ("Error", ("details",), "a string"),
    ("StreamData", ("data",), "an array of integers"),
    ("StreamData", ("is_last",), "true or false"),
    ("ConnectionClose", ("reason",), "a string"),
]


@pytest.mark.parametrize(("name", "path", "expected"), TYPED)
def test_values_have_their_type(name: str, path: tuple[str, ...], expected: str) -> None:
    for wrong in TYPES[expected]:
        refused(name, changed(name, *path, to=wrong), ".".join(path), expected)


def test_numbers_out_of_range() -> None:
    refused("ExecuteResponse", b'{"task_id":"","status":"Running","resource_usage":{"cpu_percent":1e999}}', "a number")


# Rejected: text

ERROR = spell({"error_code": 1, "message": "m"})
DEEP = 200_000
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "white space": b" \n",
    "byte order mark": b"\xef\xbb\xbf" + ERROR,
    "utf-16": ERROR.decode().encode("utf-16"),
    "trailing bytes": ERROR + b"x",
    "trailing NUL": ERROR + b"\0",
    "trailing bracket": ERROR + b"}",
    "second document": ERROR + ERROR,
    "second document on a line of its own": ERROR + b"\n" + ERROR,
    "truncated": ERROR[:-1],
    "truncated string": ERROR[:-2],
    "NaN": ERROR[:-1] + b',"x":NaN}',
    "Infinity": ERROR[:-1] + b',"x":Infinity}',
    "-Infinity": ERROR[:-1] + b',"x":-Infinity}',
    "NaN in a field": b'{"error_code":NaN,"message":"m"}',
    "invalid utf-8 in a field": ERROR.replace(b'"m"', b'"\xff"'),
    "invalid utf-8 in an unknown value": ERROR[:-1] + b',"x":"\xff"}',
    "invalid utf-8 in an unknown key": ERROR[:-1] + b',"\xff":1}',
    "overlong utf-8": ERROR.replace(b'"m"', b'"\xc0\x80"'),
    "surrogate in utf-8": ERROR.replace(b'"m"', b'"\xed\xa0\x80"'),
    "utf-8 cut off": ERROR + b"\xc3",
    "lone high surrogate": ERROR.replace(b'"m"', b'"\\ud800"'),
    "lone low surrogate": ERROR.replace(b'"m"', b'"\\udc00"'),
    "two high surrogates": ERROR.replace(b'"m"', b'"\\ud800\\ud800"'),
    "high surrogate and a letter": ERROR.replace(b'"m"', b'"\\ud800m"'),
    "lone surrogate in an unknown value": ERROR[:-1] + b',"x":"\\ud800"}',
    "lone surrogate in an unknown key": ERROR[:-1] + b',"\\udc00":1}',
    "arrays nested too deeply": ERROR[:-1] + b',"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "objects nested too deeply": ERROR[:-1] + b',"x":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "nested where a string is expected": b'{"error_code":1,"message":' + b"[" * DEEP,
    "nested all over": b"[" * DEEP,
    "single quotes": ERROR.replace(b'"', b"'"),
    "comment": ERROR[:-1] + b"/* */}",
    "trailing comma": ERROR[:-1] + b",}",
    "missing comma": b'{"error_code":1 "message":"m"}',
    "missing colon": b'{"error_code" 1,"message":"m"}',
    "key without quotes": b'{error_code:1,"message":"m"}',
    "key that is a number": ERROR[:-1] + b",1:1}",
    "leading zero": b'{"error_code":01,"message":"m"}',
    "plus": b'{"error_code":+1,"message":"m"}',
    "bad escape": ERROR.replace(b'"m"', b'"\\x41"'),
    "control character": ERROR.replace(b'"m"', b'"\n"'),
    "NUL in a string": ERROR.replace(b'"m"', b'"\0"'),
    "capital literal": ERROR[:-1] + b',"x":True}',
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_not_such_a_text_is_refused(name: str) -> None:
    text = refused("Error", TEXTS[name], "ErrorMessage", "expected")
    assert len(text) < 300


def test_the_message_says_where_what_was_expected_and_what_was_found() -> None:
    assert refused("ExecuteResponse", changed("ExecuteResponse", "resource_usage", "memory_bytes", to=1.5)) == (
        "ExecuteResponse.resource_usage.memory_bytes: expected an integer from 0 to 18446744073709551615, found 1.5"
    )


# Any bytes

SPELLED = [(name, spell(plain)) for name, (_, plain, _) in SUBJECTS.items()]
MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.integers(0, 3),
        st.binary(max_size=2) | st.sampled_from([b'"', b",", b"null", b"1", b"\\u", b'"a":1,', b" ", b"-", b"{}"]),
    ),
    max_size=4,
)


def mutated(text: bytes, mutations: list[tuple[int, int, bytes]]) -> bytes:
    for at, cut, put in mutations:
        at %= len(text) + 1
        text = text[:at] + put + text[at + cut :]
    return text


@settings(max_examples=300)
@given(st.sampled_from(SPELLED), MUTATIONS)
def test_any_text_is_a_value_or_refused_and_what_is_accepted_is_json(
    spelled: tuple[str, bytes], mutations: list[tuple[int, int, bytes]]
) -> None:
    name, text = spelled[0], mutated(spelled[1], mutations)
    try:
        value: Payload = read(name, text)
    except RemoteProtocolError:
        return
    plain = json.loads(text.decode(), parse_constant=pytest.fail)
    json.dumps(plain, ensure_ascii=False).encode()  # no lone surrogate
    for key, item in plain.items():
        if isinstance(item, str | bool) and key in value.__struct_fields__:
            found = getattr(value, key)
            assert item in (found, getattr(found, "value", found))


@given(st.sampled_from(sorted(SUBJECTS)), st.binary(max_size=200))
def test_any_bytes_are_refused(name: str, data: bytes) -> None:
    try:
        read(name, data)
    except RemoteProtocolError:
        return
    json.loads(data)
