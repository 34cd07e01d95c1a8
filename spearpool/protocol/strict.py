"""Reading version 1 by the letter: everything that may be accepted, and a clear reason for everything else.

This is the reference of the format; `codec` has a faster way for what is in canonical form. An object is read as its
pairs (so that a key given twice is seen, and the value of an unknown key is checked but never built), each value then
by the reader that the field's annotation in `messages` asks for.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable
from enum import Enum
from types import NoneType
from typing import Any, NamedTuple, TypeVar, cast, get_args

import msgspec
from msgspec import UNSET, Raw, UnsetType

from spearpool.errors import RemoteProtocolError

from .byte_arrays import read_bytes
from .messages import I32, U8, U32, U64, AuthResponse, ConnectionClose, Custom, Nanos, SignalName, Timestamp

__all__ = ["U64_MAX", "read_struct"]

T = TypeVar("T", bound=msgspec.Struct)
Reader = Callable[[bytes], Any]

U64_MAX = 2**64 - 1

_RANGES: dict[Any, tuple[int, int]] = {
    U8: (0, 2**8 - 1),
    U32: (0, 2**32 - 1),
    U64: (0, U64_MAX),
    I32: (-(2**31), 2**31 - 1),
    Nanos: (0, 2**32 - 1),
}
_MAY_BE_MISSING: dict[type, set[str]] = {
    AuthResponse: {"server_version", "supported_features"},  # the seed's shorter form
    ConnectionClose: {"reason"},
}
"""Besides what may be null. Any other default in `messages` is for those who construct a value, not for the wire."""

_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,19}")
_PIECE = 64 * 1024
_EXCERPT = 40


class _Wrong(Exception):
    """Something at `path` is not as `expected`; becomes a `RemoteProtocolError` in `read_struct`."""

    def __init__(self, expected: str, found: bytes | str, path: str = "") -> None:
        self.expected = expected
        self.found = found if isinstance(found, str) else found[:_EXCERPT].decode(errors="replace")
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


class _Key:
    """A key of an object. Equal ones stay apart, so that a dict of them keeps duplicates."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _Field(NamedTuple):
    name: str
    read: Reader
    required: bool


def _make_key(kind: type[Any], text: Any) -> Any:
    return kind(text)


_PAIRS = msgspec.json.Decoder(dict[_Key, Raw], dec_hook=_make_key)
_STRING = msgspec.json.Decoder(str)


def read_struct(kind: type[T], text: bytes) -> T:
    """Read a payload, or the envelope, from its JSON. Raises `RemoteProtocolError` saying where and what is wrong."""
    try:
        _check_utf8(text)
        return cast(T, _struct_reader(kind)(text))
    except _Wrong as wrong:
        wrong.path = kind.__name__ + wrong.path
        raise RemoteProtocolError(str(wrong)) from None


def _check_utf8(text: bytes) -> None:
    # msgspec does not look into the strings it skips. In pieces: as one str the text could take four times its size.
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(text), _PIECE):
            decoder.decode(text[at : at + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _Wrong("UTF-8 text", error.reason) from None


def _decode(decoder: msgspec.json.Decoder[Any], text: bytes, expected: str) -> Any:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise _Wrong(expected, text) from None
    except msgspec.DecodeError as error:
        raise _Wrong(expected, f"{text[:_EXCERPT].decode(errors='replace')!r}: {error}") from None
    except RecursionError:
        raise _Wrong(expected, "values nested too deeply") from None


def _pairs(text: bytes) -> list[tuple[str, bytes]]:
    pairs = _decode(_PAIRS, text, "a JSON object")
    return [(key.text, bytes(value)) for key, value in pairs.items()]


@functools.cache
def _struct_reader(kind: type[msgspec.Struct]) -> Reader:
    fields = {field.encode_name: _field(kind, field) for field in msgspec.structs.fields(kind)}
    closed = kind.__struct_config__.forbid_unknown_fields

    def read(text: bytes) -> Any:
        values: dict[str, Any] = {}
        seen: set[str] = set()
        for key, value in _pairs(text):
            if key in seen:
                raise _Wrong("each key once", f"a second {key!r}")
            seen.add(key)
            field = fields.get(key)
            if field is not None:
                try:
                    values[field.name] = field.read(value)
                except _Wrong as wrong:
                    wrong.path = f".{key}{wrong.path}"
                    raise
            elif closed:
                raise _Wrong(f"no other keys than {', '.join(fields)}", repr(key))
        for key, field in fields.items():
            if field.required and field.name not in values:
                raise _Wrong("this key to be there", "nothing", f".{key}")
        return _carried(values) if kind is Timestamp else kind(**values)

    return read


def _field(kind: type[msgspec.Struct], field: Any) -> _Field:
    optional = {NoneType, UnsetType}.intersection(get_args(field.type))
    required = not optional and field.name not in _MAY_BE_MISSING.get(kind, ())
    return _Field(field.name, _reader(field.type), required)


def _carried(values: dict[str, Any]) -> Timestamp:
    seconds, nanos = divmod(values["nanos_since_epoch"], 1_000_000_000)
    seconds += values["secs_since_epoch"]
    if seconds > U64_MAX:
        raise _Wrong(f"at most {U64_MAX} seconds", str(seconds))
    return Timestamp(seconds, nanos)


def _reader(annotation: Any) -> Reader:
    """The reader that a field's annotation asks for."""
    if annotation in _RANGES:
        return _integer_reader(*_RANGES[annotation])
    if annotation is bytes:
        return _read_bytes
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _unit_reader(annotation)
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return _struct_reader(annotation)
    members = set(get_args(annotation))
    if members == {SignalName, Custom}:
        return _read_signal
    if NoneType in members or UnsetType in members:
        absent = None if NoneType in members else UNSET
        (present,) = members - {NoneType, UnsetType}
        return _optional_reader(_reader(present), absent)
    return _plain_reader(annotation)


def _integer_reader(low: int, high: int) -> Reader:
    def read(text: bytes) -> int:
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise _Wrong(f"an integer from {low} to {high}", text)
        return int(text)

    return read


def _optional_reader(present: Reader, absent: Any) -> Reader:
    def read(text: bytes) -> Any:
        return absent if text == b"null" else present(text)

    return read


_PLAIN = {
    str: "a string",
    bool: "true or false",
    float: "a number",
    list[str]: "an array of strings",
    dict[str, str]: "an object of strings",
}


def _plain_reader(kind: Any) -> Reader:
    decoder = msgspec.json.Decoder(kind)
    expected = _PLAIN[kind]
    return lambda text: _decode(decoder, text, expected)


def _read_bytes(text: bytes) -> bytes:
    try:
        return read_bytes(text)
    except ValueError:
        raise _Wrong("an array of integers from 0 to 255", text) from None


def _variant(text: bytes) -> tuple[str, bytes | None]:
    """An enum's value: `"Name"`, or `{"Name": content}` with exactly one key."""
    if not text.startswith(b"{"):
        return _decode(_STRING, text, "a name"), None
    pairs = _pairs(text)
    if len(pairs) != 1:
        raise _Wrong("a name, or an object with one key", text)
    return pairs[0]


def _unit_reader(kind: type[Enum]) -> Reader:
    members = {member.value: member for member in kind}

    def read(text: bytes) -> Enum:
        name, content = _variant(text)
        if name not in members or content not in {None, b"null"}:
            raise _Wrong(f"one of {', '.join(members)}", text)
        return members[name]

    return read


def _read_signal(text: bytes) -> SignalName | Custom:
    name, content = _variant(text)
    if name == "Custom" and content is not None:
        return Custom(_decode(_STRING, content, "a string"))
    return cast(SignalName, _unit_reader(SignalName)(text))
