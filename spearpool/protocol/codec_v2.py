"""Bodies of frames: version 2, a MessagePack array whose last item is a bin with the payload's own MessagePack map.

    [message_type code, request_id, seconds, nanos, 2, payload]

The map has the keys of version 1, in the same order; `bytes` are bins; names, nil for what is absent and the map of a
`Custom` signal are as there. As the payload is a bin, whoever passes a message on need not look into it.

Written are the shortest forms, and all keys but those extensions that are not set. Read are all forms that MessagePack
has for a value, in any order of keys, without those that may be absent, with unknown ones, whose values are skipped.
Refused are: a second value behind the first, a mandatory key that is missing, a key given twice, a key that is no text,
invalid UTF-8, arrays for maps, bins for text and text for bins, floats and booleans for integers, numbers out of range,
nanos from 10⁹ on, floats that are not finite, unknown names and codes, lengths beyond the end, and nesting that would
exhaust the stack.

A payload is read fast and taken for good when writing it again gives the same bytes: msgspec alone would not see a key
given twice. Everything else goes to `strict_v2`.
"""

from __future__ import annotations

from math import isfinite
from typing import Annotated

import msgspec
from msgspec import Meta

from spearpool.errors import ErrorCode, LocalProtocolError, RemoteProtocolError

from .codec import Codec, message_type_of
from .framing import MAX_BODY_BYTES, too_large
from .messages import (
    PAYLOAD_TYPES,
    U8,
    U64_MAX,
    ConnectionClose,
    ExecuteResponse,
    MessageType,
    Nanos,
    Payload,
    ResourceUsage,
    SpearMessage,
    Timestamp,
)
from .strict_v2 import UNREADABLE, WHOLE_U64, read_struct_v2, reason

__all__ = ["MSGPACK_V2"]

_VERSION = 2
_NS = 1_000_000_000

_TYPES = tuple(MessageType)
_CODES: dict[type, int] = {payload: kind.code for kind, payload in PAYLOAD_TYPES.items()}
_Code = Annotated[int, Meta(ge=0, le=len(_TYPES) - 1)]
_ENVELOPE = msgspec.msgpack.Decoder(tuple[_Code, WHOLE_U64, WHOLE_U64, Nanos, U8, bytes])
_ENCODER = msgspec.msgpack.Encoder()

_REWRITABLE_BYTES = 256 * 1024
"""Larger payloads are read by the letter at once: for them, copying the data once more would take longer."""


class _MsgpackV2:
    version = _VERSION

    def __init__(self) -> None:
        self._decoders = {kind: msgspec.msgpack.Decoder(payload) for kind, payload in PAYLOAD_TYPES.items()}

    def encode(self, payload: Payload, request_id: int, time_ns: int, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        if type(payload) is ExecuteResponse and payload.resource_usage is not None:
            payload = _with_finite_usage(payload, payload.resource_usage)
        try:
            packed = _ENCODER.encode(payload)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            raise LocalProtocolError(f"this {message_type_of(payload).value} cannot be written: {error}") from None
        if len(packed) > max_bytes:
            raise too_large(f"at least {len(packed)}", max_bytes)
        return _body(_CODES[type(payload)], request_id, time_ns, packed)

    def encode_message(self, message: SpearMessage) -> bytes:
        return _body(message.message_type.code, message.request_id, message.timestamp.to_ns(), message.payload)

    def open(self, body: bytes) -> tuple[MessageType, int, bytes]:
        try:
            code, request_id, _, _, version, packed = _ENVELOPE.decode(body)
        except UNREADABLE as error:
            raise _unreadable(body, error) from None
        if version != _VERSION:
            raise _other_version(version)
        return _TYPES[code], request_id, packed

    def decode(self, body: bytes) -> SpearMessage:
        kind, request_id, packed = self.open(body)
        _, _, seconds, nanos, version, _ = _ENVELOPE.decode(body)
        return SpearMessage(kind, request_id, Timestamp(seconds, nanos), packed, version)

    def decode_payload(self, kind: MessageType, packed: bytes) -> Payload:
        if len(packed) <= _REWRITABLE_BYTES:
            try:
                payload: Payload = self._decoders[kind].decode(packed)
                if _ENCODER.encode(payload) == packed:
                    return payload
            except UNREADABLE:
                pass  # what is wrong, if anything is, `strict_v2` says
        if not packed and kind is MessageType.CONNECTION_CLOSE:
            return ConnectionClose()
        return read_struct_v2(PAYLOAD_TYPES[kind], packed)


def _unreadable(body: bytes, error: Exception) -> RemoteProtocolError:
    if body[:1] == b"{":
        words = "a version-1 body, after both sides had agreed on version 2 (encoding:msgpack)"
        return RemoteProtocolError(words, ErrorCode.VERSION)
    return RemoteProtocolError(f"envelope: {reason(error)}")


def _other_version(version: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"a MessagePack body of version {version}, expected {_VERSION}", ErrorCode.VERSION)


def _body(code: int, request_id: int, time_ns: int, packed: bytes) -> bytes:
    seconds, nanos = divmod(time_ns, _NS)
    if not (0 <= request_id <= U64_MAX and 0 <= seconds <= U64_MAX):
        name = _TYPES[code].value
        raise LocalProtocolError(f"{name}: request id {request_id} or time {seconds} s {nanos} ns is out of range")
    return _ENCODER.encode((code, request_id, seconds, nanos, _VERSION, packed))


def _with_finite_usage(response: ExecuteResponse, usage: ResourceUsage) -> ExecuteResponse:
    if usage.cpu_percent is None or isfinite(usage.cpu_percent):
        return response
    return msgspec.structs.replace(response, resource_usage=msgspec.structs.replace(usage, cpu_percent=None))


MSGPACK_V2: Codec = _MsgpackV2()
