"""What a struct may look like on the wire, whatever the version: each key once, none missing, unknown ones skipped.

`strict` and `strict_v2` bring how keys are told apart and how values are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any, get_args

import msgspec
from msgspec import UnsetType

from .messages import U64_MAX, AuthResponse, ConnectionClose, Timestamp

__all__ = ["Key", "Reader", "Wrong", "absent_and_present", "make_key", "struct_reader"]

Reader = Callable[[Any], Any]
"""Turns a value as it is on the wire into the value that it means, or raises `Wrong`."""

_MAY_BE_MISSING: dict[type, set[str]] = {
    AuthResponse: {"server_version", "supported_features"},  # the seed's shorter form
    ConnectionClose: {"reason"},
}
"""Besides what may be null. Any other default in `messages` is for those who construct a value, not for the wire."""


class Wrong(Exception):
    """What was expected and what was found, at `path` in the payload."""

    def __init__(self, words: str, path: str = "") -> None:
        super().__init__(words)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.args[0]}"


class Key:
    """A key of an object. Equal ones stay apart, so that a dict of them keeps duplicates."""

    __slots__ = ("text",)

    def __init__(self, text: Any) -> None:
        self.text = text


def make_key(kind: type[Any], text: Any) -> Any:
    """The `dec_hook` of decoders of `dict[Key, …]`."""
    return kind(text)


def struct_reader(
    kind: type[msgspec.Struct], pairs: Callable[[Any], Iterable[tuple[str, Any]]], reader: Callable[[Any], Reader]
) -> Reader:
    """Reads values of `kind`: `pairs` takes an object apart, `reader` finds the reader that an annotation asks for."""
    fields = msgspec.structs.fields(kind)
    known = {field.encode_name: (field.name, reader(field.type)) for field in fields}
    required = [field.encode_name for field in fields if _required(kind, field)]
    closed = kind.__struct_config__.forbid_unknown_fields

    def read(text: Any) -> Any:
        values: dict[str, Any] = {}
        seen: set[str] = set()
        for key, value in pairs(text):
            if key in seen:
                raise Wrong(f"expected each key once, found a second {key!r}")
            seen.add(key)
            if key in known:
                name, read_value = known[key]
                try:
                    values[name] = read_value(value)
                except Wrong as wrong:
                    wrong.path = f".{key}{wrong.path}"
                    raise
            elif closed:
                raise Wrong(f"expected no other keys than {', '.join(known)}, found {key!r}")
        for key in required:
            if key not in seen:
                raise Wrong("expected this key to be there, found nothing", f".{key}")
        return _carried(values) if kind is Timestamp else kind(**values)

    return read


def absent_and_present(annotation: Any) -> tuple[Any, Any] | None:
    """What an optional annotation has for null, and the annotation of anything else. None when it is not optional."""
    members = get_args(annotation)
    for kind, absent in ((NoneType, None), (UnsetType, msgspec.UNSET)):
        if kind in members:
            (present,) = (member for member in members if member is not kind)
            return absent, present
    return None


def _required(kind: type, field: msgspec.structs.FieldInfo) -> bool:
    return absent_and_present(field.type) is None and field.name not in _MAY_BE_MISSING.get(kind, ())


def _carried(values: dict[str, Any]) -> Timestamp:
    seconds, nanos = divmod(values["nanos_since_epoch"], 1_000_000_000)
    seconds += values["secs_since_epoch"]
    if seconds > U64_MAX:
        raise Wrong(f"expected at most {U64_MAX} seconds, found {seconds}")
    return Timestamp(seconds, nanos)
