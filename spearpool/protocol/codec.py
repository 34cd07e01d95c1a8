"""Bodies of frames: version 1, compact JSON whose `payload` is the array of the bytes of the payload's own JSON.

What a usual writer sends is *canonical*: compact, all keys, in order. That is read fast: the envelope by one regular
expression, the payload by msgspec, and a payload counts as canonical when writing it again gives the same bytes (so no
duplicate key, odd number or broken text can have slipped through). Everything else goes to `strict`, which knows all
that may be accepted and says what is wrong with the rest. Both ways give the same values.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec
from msgspec import NODEFAULT, Raw, UnsetType

from spearpool.errors import ErrorCode, LocalProtocolError, RemoteProtocolError

from .byte_arrays import read_bytes, write_bytes
from .framing import MAX_BODY_BYTES, too_large
from .messages import PAYLOAD_TYPES, U64_MAX, UNSET, ConnectionClose, MessageType, Payload, SpearMessage
from .strict import read_struct

__all__ = ["JSON_V1", "Codec", "message_type_of"]

_TYPE_OF: dict[type, MessageType] = {payload: kind for kind, payload in PAYLOAD_TYPES.items()}
_NAME_OF = {kind: kind.value.encode() for kind in MessageType}
_TYPE_NAMED = {name: kind for kind, name in _NAME_OF.items()}

_BODY = (
    b'{"message_type":"%b","request_id":%d,"timestamp":{"secs_since_epoch":%d,"nanos_since_epoch":%d}'
    b',"payload":%b,"version":%d}'
)
_HEAD = re.compile(
    rb'\{"message_type":"([A-Za-z]{5,15})","request_id":(0|[1-9][0-9]{0,19})'
    rb',"timestamp":\{"secs_since_epoch":(?:0|[1-9][0-9]{0,18}),"nanos_since_epoch":(?:0|[1-9][0-9]{0,8})\}'
    rb',"payload":'
)
"""Up to the payload. Nineteen digits of seconds are always in range; the twentieth is for `strict` to look at."""
_TAIL = b',"version":1}'

_MESSAGE_PACK_ARRAYS = frozenset({*range(0x90, 0xA0), 0xDC, 0xDD})
"""First bytes of a version-2 body; none of them can begin JSON."""

_BYTES: dict[Any, Any] = {bytes: Raw, bytes | None: Raw, bytes | UnsetType: Raw | UnsetType}
"""Annotations of bytes, and how a twin spells them."""

_LEAST_TEXT_OF_TEXT = 3
"""Bytes of the body for a byte of the payload's JSON, which is at least a space: `32,`."""
_LEAST_TEXT_OF_DATA = 2 * _LEAST_TEXT_OF_TEXT
"""Bytes of the body for a byte of data, `0,` in the payload's JSON."""

_NS = 1_000_000_000
_NO_REASON = ConnectionClose()
_ENCODER = msgspec.json.Encoder()


def message_type_of(payload: Payload) -> MessageType:
    """What the envelope says of this payload."""
    return _TYPE_OF[type(payload)]


class Codec(Protocol):
    """Turns payloads into bodies and back. Writing raises only `LocalProtocolError`, reading `RemoteProtocolError`."""

    @property
    def version(self) -> int: ...

    def encode(self, payload: Payload, request_id: int, time_ns: int, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """The body of a message written at `time_ns` (wall clock). Ranges inside the payload are the caller's care.

        One that is sure to exceed `max_bytes` is refused (413) before it takes any memory; `frame` measures the others.
        """
        ...

    def encode_message(self, message: SpearMessage) -> bytes:
        """The body of an envelope whose payload is packed already."""
        ...

    def decode(self, body: bytes) -> SpearMessage:
        """The whole envelope; its payload stays packed."""
        ...

    def open(self, body: bytes) -> tuple[MessageType, int, bytes]:
        """Of the envelope what a session needs, in much less time: message type, request id, packed payload."""
        ...

    def decode_payload(self, kind: MessageType, packed: bytes) -> Payload:
        """The payload of an envelope that `decode` or `open` read."""
        ...


class _PayloadForm:
    """How one payload type is written, and how it is read where the text is canonical.

    msgspec takes `bytes` for base64. So the one field of bytes that a payload may have, at `index`, is written as raw
    JSON, and read as raw JSON into a twin of the class.
    """

    __slots__ = ("_decoder", "_index", "_kind", "_name", "_nullable")

    def __init__(self, kind: type[Payload]) -> None:
        self._kind = kind
        self._name = ""
        self._index = -1
        self._nullable = False
        definition: list[Any] = []
        for index, field in enumerate(msgspec.structs.fields(kind)):
            annotation: Any = field.type
            if annotation in _BYTES:
                self._name, self._index, self._nullable = field.name, index, annotation == bytes | None
                annotation = _BYTES[annotation]
            definition.append((field.name, annotation, UNSET if field.default is UNSET else NODEFAULT))
        twin = msgspec.defstruct(kind.__name__, definition) if self._name else kind
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(twin)

    def write(self, payload: Any, max_bytes: int) -> bytes:
        if self._name:
            data = getattr(payload, self._name)
            if data is not None and data is not UNSET:
                if len(data) * _LEAST_TEXT_OF_DATA > max_bytes:
                    raise too_large(f"at least {len(data) * _LEAST_TEXT_OF_DATA}", max_bytes)
                payload = msgspec.structs.replace(payload, **{self._name: Raw(write_bytes(data))})
        return _ENCODER.encode(payload)

    def read(self, text: bytes) -> Any:
        """None when the text is not canonical."""
        try:
            value = self._decoder.decode(text)
            if _ENCODER.encode(value) != text:
                return None
            if not self._name:
                return value
            values = list(msgspec.structs.astuple(value))
            raw = values[self._index]
            if raw is not UNSET:
                array = bytes(raw)
                values[self._index] = None if self._nullable and array == b"null" else read_bytes(array)
            return self._kind(*values)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None


class _JsonV1:
    version = 1

    def __init__(self) -> None:
        self._forms = {kind: _PayloadForm(payload) for kind, payload in PAYLOAD_TYPES.items()}

    def encode(self, payload: Payload, request_id: int, time_ns: int, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        kind = _TYPE_OF[type(payload)]
        try:
            text = (
                b""
                if kind is MessageType.CONNECTION_CLOSE and payload == _NO_REASON
                else self._forms[kind].write(payload, max_bytes)
            )
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            raise LocalProtocolError(f"this {kind.value} cannot be written: {error}") from None
        if len(text) * _LEAST_TEXT_OF_TEXT > max_bytes:
            raise too_large(f"at least {len(text) * _LEAST_TEXT_OF_TEXT}", max_bytes)
        return _body(kind, request_id, *divmod(time_ns, _NS), text, 1)

    def encode_message(self, message: SpearMessage) -> bytes:
        at = message.timestamp
        return _body(
            message.message_type,
            message.request_id,
            at.secs_since_epoch,
            at.nanos_since_epoch,
            message.payload,
            message.version,
        )

    def decode(self, body: bytes) -> SpearMessage:
        if body and body[0] in _MESSAGE_PACK_ARRAYS:
            raise RemoteProtocolError(
                "a version-2 body: ask for it first (extra_params encodings=msgpack)", ErrorCode.VERSION
            )
        return read_struct(SpearMessage, body)

    def open(self, body: bytes) -> tuple[MessageType, int, bytes]:
        head = _HEAD.match(body)
        if head is not None and body.endswith(_TAIL):
            name, digits = head.groups()
            kind, request_id = _TYPE_NAMED.get(name), int(digits)
            if kind is not None and request_id <= U64_MAX:
                try:
                    return kind, request_id, read_bytes(body, head.end(), len(body) - len(_TAIL))
                except ValueError:
                    pass  # `strict` says what is wrong
        message = self.decode(body)
        return message.message_type, message.request_id, message.payload

    def decode_payload(self, kind: MessageType, packed: bytes) -> Payload:
        if kind is MessageType.CONNECTION_CLOSE and not packed.startswith(b"{"):
            return _NO_REASON  # the original has no payload here, and does not look at one
        value: Payload | None = self._forms[kind].read(packed)
        return read_struct(PAYLOAD_TYPES[kind], packed) if value is None else value


def _body(kind: MessageType, request_id: int, seconds: int, nanos: int, payload: bytes, version: int) -> bytes:
    if not (0 <= request_id <= U64_MAX and 0 <= seconds <= U64_MAX and 0 <= nanos < _NS and 0 <= version <= 255):
        raise LocalProtocolError(
            f"{kind.value}: request id {request_id}, time {seconds} s {nanos} ns or version {version} is out of range"
        )
    return _BODY % (_NAME_OF[kind], request_id, seconds, nanos, write_bytes(payload), version)


JSON_V1: Codec = _JsonV1()
