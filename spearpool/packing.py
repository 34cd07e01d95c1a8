"""Typed values between spearpool's own processes: frozen records, packed as MessagePack.

The wire that others speak is in `protocol/`; this is for control messages, bus bodies and settings, where both ends are
the same version. `Record` is the base of all of them; a `Packer` packs and unpacks a closed union of records, each
tagged with its class name.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

import msgspec

__all__ = ["Packer", "Record", "Section", "UnpackError", "from_plain", "replace", "to_plain"]

T = TypeVar("T")

UnpackError = msgspec.MsgspecError
"""What `Packer.unpack` and `from_plain` raise; its text names the path and what was expected."""

replace = msgspec.structs.replace


class Record(msgspec.Struct, frozen=True, tag=True):
    """A frozen value; its class name is its tag inside a union."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen section of a configuration; unknown keys are refused by `from_plain`."""


class Packer(Generic[T]):
    """Packs and unpacks one type, usually a union of `Record` classes."""

    def __init__(self, kind: object) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(cast(Any, kind))

    def pack(self, value: T) -> bytes:
        return self._encoder.encode(value)

    def unpack(self, data: bytes | memoryview) -> T:
        """Raises `UnpackError` when `data` is not such a value."""
        return cast(T, self._decoder.decode(data))


def from_plain(value: object, kind: type[T]) -> T:
    """Convert plain dicts, lists and scalars to `kind`, strictly. Raises `UnpackError`."""
    return msgspec.convert(value, kind, strict=True)


def to_plain(value: object) -> Any:
    """Convert records to plain dicts, lists and scalars, ready for JSON."""
    return msgspec.to_builtins(value)
