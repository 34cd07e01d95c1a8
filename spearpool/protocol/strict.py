"""Reading version 1 by the letter: everything that may be accepted, and a clear reason for everything else.

This is the reference of the format; `codec` has a faster way for what is in canonical form. An object is read as its
pairs (so that a key given twice is seen, and the value of an unknown key is checked but never built), each value then
by the reader that the field's annotation in `messages` asks for.
"""

from __future__ import annotations

import codecs
import functools
import re
from enum import Enum
from typing import Any, TypeVar, cast, get_args

import msgspec
from msgspec import Raw

from spearpool.errors import RemoteProtocolError

from .byte_arrays import read_bytes
from .messages import I32, U8, U32, U64, U64_MAX, Custom, Finite, Nanos, SignalName
from .strict_struct import Key, Reader, Wrong, absent_and_present, make_key, struct_reader

__all__ = ["read_struct"]

T = TypeVar("T", bound=msgspec.Struct)

_RANGES: dict[Any, tuple[int, int]] = {
    U8: (0, 2**8 - 1),
    U32: (0, 2**32 - 1),
    U64: (0, U64_MAX),
    I32: (-(2**31), 2**31 - 1),
    Nanos: (0, 2**32 - 1),
}

_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,19}")
_PIECE = 64 * 1024
_EXCERPT = 40

_PAIRS = msgspec.json.Decoder(dict[Key, Raw], dec_hook=make_key)
_STRING = msgspec.json.Decoder(str)


def read_struct(kind: type[T], text: bytes) -> T:
    """Read a payload, or the envelope, from its JSON. Raises `RemoteProtocolError` saying where and what is wrong."""
    try:
        _check_utf8(text)
        return cast(T, _struct_reader(kind)(text))
    except Wrong as wrong:
        wrong.path = kind.__name__ + wrong.path
        raise RemoteProtocolError(str(wrong)) from None


def _wrong(expected: str, found: bytes | str) -> Wrong:
    shown = found if isinstance(found, str) else found[:_EXCERPT].decode(errors="replace")
    return Wrong(f"expected {expected}, found {shown}")


def _check_utf8(text: bytes) -> None:
    # msgspec does not look into the strings it skips. In pieces: as one str the text could take four times its size.
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(text), _PIECE):
            decoder.decode(text[at : at + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _wrong("UTF-8 text", error.reason) from None


def _decode(decoder: msgspec.json.Decoder[Any], text: bytes, expected: str) -> Any:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise _wrong(expected, text) from None
    except msgspec.DecodeError as error:
        raise _wrong(expected, f"{text[:_EXCERPT].decode(errors='replace')!r}: {error}") from None
    except RecursionError:
        raise _wrong(expected, "values nested too deeply") from None


def _pairs(text: bytes) -> list[tuple[str, bytes]]:
    pairs = _decode(_PAIRS, text, "a JSON object")
    return [(key.text, bytes(value)) for key, value in pairs.items()]


@functools.cache
def _struct_reader(kind: type[msgspec.Struct]) -> Reader:
    return struct_reader(kind, _pairs, _reader)


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
    optional = absent_and_present(annotation)
    if optional is not None:
        absent, present = optional
        return _optional_reader(_reader(present), absent)
    return _plain_reader(annotation)


def _integer_reader(low: int, high: int) -> Reader:
    def read(text: bytes) -> int:
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise _wrong(f"an integer from {low} to {high}", text)
        return int(text)

    return read


def _optional_reader(present: Reader, absent: Any) -> Reader:
    def read(text: bytes) -> Any:
        return absent if text == b"null" else present(text)

    return read


_PLAIN = {
    str: "a string",
    bool: "true or false",
    Finite: "a number",
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
        raise _wrong("an array of integers from 0 to 255", text) from None


def _variant(text: bytes) -> tuple[str, bytes | None]:
    """An enum's value: `"Name"`, or `{"Name": content}` with exactly one key."""
    if not text.startswith(b"{"):
        return _decode(_STRING, text, "a name"), None
    pairs = _pairs(text)
    if len(pairs) != 1:
        raise _wrong("a name, or an object with one key", text)
    return pairs[0]


def _unit_reader(kind: type[Enum]) -> Reader:
    members = {member.value: member for member in kind}

    def read(text: bytes) -> Enum:
        name, content = _variant(text)
        if name not in members or content not in {None, b"null"}:
            raise _wrong(f"one of {', '.join(members)}", text)
        return members[name]

    return read


def _read_signal(text: bytes) -> SignalName | Custom:
    name, content = _variant(text)
    if name == "Custom" and content is not None:
        return Custom(_decode(_STRING, content, "a string"))
    return cast(SignalName, _unit_reader(SignalName)(text))
