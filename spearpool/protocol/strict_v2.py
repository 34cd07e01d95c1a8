"""Reading payloads of version 2 by the letter: everything that may be accepted, a clear reason for everything else.

As in version 1 an object is read as its pairs, and each value by what the field's annotation asks for. MessagePack says
of what type a value is, so msgspec's own decoders do nearly all of it. Large data is copied once, into its field.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, TypeVar, cast, get_args

import msgspec
from msgspec import Raw

from spearpool.errors import RemoteProtocolError

from .messages import U64
from .strict_struct import Key, Reader, Wrong, absent_and_present, make_key, struct_reader

__all__ = ["UNREADABLE", "WHOLE_U64", "read_struct_v2", "reason"]

T = TypeVar("T", bound=msgspec.Struct)

WHOLE_U64 = Annotated[int, msgspec.Meta(ge=0)]
"""MessagePack's integers end where u64 ends: no upper bound is needed, and msgspec knows none so large."""

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for MessagePack that is broken, or not of the type that is asked for."""

_NIL = 0xC0
_MAPS = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
"""First bytes of maps."""

_PAIRS = msgspec.msgpack.Decoder(dict[Key, Raw], dec_hook=make_key)


def read_struct_v2(kind: type[T], packed: bytes) -> T:
    """Read a payload from its MessagePack map. Raises `RemoteProtocolError` saying where and what is wrong."""
    try:
        return cast(T, _struct_reader(kind)(packed))
    except Wrong as wrong:
        wrong.path = kind.__name__ + wrong.path
        raise RemoteProtocolError(str(wrong)) from None


def reason(error: Exception) -> str:
    """What is wrong, of an error in `UNREADABLE`."""
    return "values nested too deeply" if isinstance(error, RecursionError) else str(error)


def _decode(decoder: msgspec.msgpack.Decoder[Any], packed: bytes | Raw) -> Any:
    try:
        return decoder.decode(packed)
    except UNREADABLE as error:
        raise Wrong(reason(error)) from None


def _pairs(packed: bytes | Raw) -> list[tuple[str, Raw]]:
    pairs = [(key.text, value) for key, value in _decode(_PAIRS, packed).items()]
    for key, _ in pairs:
        if not isinstance(key, str):
            raise Wrong(f"expected strings as keys, found {key!r}")
    return pairs


@functools.cache
def _struct_reader(kind: type[msgspec.Struct]) -> Reader:
    return struct_reader(kind, _pairs, _reader)


def _reader(annotation: Any) -> Reader:
    """The reader that a field's annotation asks for."""
    optional = absent_and_present(annotation)
    if optional is not None:
        return _optional_reader(*optional)
    decoder = msgspec.msgpack.Decoder(WHOLE_U64 if annotation == U64 else annotation)
    for member in (annotation, *get_args(annotation)):
        if isinstance(member, type) and issubclass(member, msgspec.Struct):
            return _struct_or_name_reader(_struct_reader(member), decoder)
    return lambda packed: _decode(decoder, packed)


def _optional_reader(absent: Any, annotation: Any) -> Reader:
    read_present = _reader(annotation)
    return lambda packed: absent if _first(packed) == _NIL else read_present(packed)


def _struct_or_name_reader(read_struct: Reader, decoder: msgspec.msgpack.Decoder[Any]) -> Reader:
    """A map is the struct; what else there may be, or why there may not, is the decoder's to say."""
    return lambda packed: read_struct(packed) if _first(packed) in _MAPS else _decode(decoder, packed)


def _first(packed: Raw) -> int:
    return memoryview(packed)[0]
