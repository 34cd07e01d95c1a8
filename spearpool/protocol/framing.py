"""Frames: four bytes, unsigned, big-endian, the number of body bytes; then the body.

A body that is too large is refused from its prefix alone, before anything is kept for it.
"""

from __future__ import annotations

import struct

from spearpool.errors import ErrorCode, LocalProtocolError, RemoteProtocolError

__all__ = ["MAX_BODY_BYTES", "PREFIX_BYTES", "FrameReader", "frame", "too_large"]

PREFIX_BYTES = 4
MAX_BODY_BYTES = 2**32 - 1
"""What the prefix can say."""

_PREFIX = struct.Struct(">I")


def frame(body: bytes, max_bytes: int) -> bytes:
    """Put the prefix before a body of 1 to `max_bytes` bytes. Raises `LocalProtocolError`."""
    size = len(body)
    if not size:
        raise LocalProtocolError("a frame needs a body; this one is empty")
    if size > max_bytes:
        raise too_large(size, max_bytes)
    return _PREFIX.pack(size) + body


def too_large(size: int | str, max_bytes: int) -> LocalProtocolError:
    """The error for a message of that size, or of "at least" one."""
    words = f"the message has {size} bytes, the limit is {max_bytes}: send less, or raise max_message_size"
    return LocalProtocolError(words, ErrorCode.TOO_LARGE)


class FrameReader:
    """Cuts a stream of bytes into bodies, however the pieces fall.

    `max_bytes` may be changed at any time and holds from the next prefix on. After an error there is no way to find
    the next frame: every later call of `next_frame` raises it again.
    """

    __slots__ = ("_at", "_buffer", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        # The piece that came last while nothing else is waiting (bytes, not copied again), else what was put together.
        # `_at` is how much of it has been read: cutting the front off for each small frame would be quadratic.
        self._buffer: bytes | bytearray = b""
        self._at = 0

    @property
    def buffered(self) -> int:
        """Bytes held and not yet returned. Not 0 at the end of the stream: half a frame is missing."""
        return len(self._buffer) - self._at

    def rest(self) -> bytes:
        """What is held and not yet returned."""
        return bytes(memoryview(self._buffer)[self._at :])

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece of the stream. The caller may reuse `data` afterwards."""
        if self._at == len(self._buffer):
            self._buffer = data if type(data) is bytes else bytes(data)
            self._at = 0
            return
        if not isinstance(self._buffer, bytearray):
            self._buffer = bytearray(memoryview(self._buffer)[self._at :])
        else:
            del self._buffer[: self._at]
        self._at = 0
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The next whole body, or None when more bytes are needed. Raises `RemoteProtocolError`."""
        buffer = self._buffer
        held = len(buffer)
        start = self._at + PREFIX_BYTES
        if held < start:
            return None
        (size,) = _PREFIX.unpack_from(buffer, self._at)
        if size > self.max_bytes:
            raise RemoteProtocolError(
                f"a frame of {size} bytes was announced, the limit here is {self.max_bytes}", ErrorCode.TOO_LARGE
            )
        if not size:
            raise RemoteProtocolError("a frame of 0 bytes was announced; a frame needs a body")
        end = start + size
        if held < end:
            return None
        self._at = end
        if end == held:
            self._buffer = b""
            self._at = 0
        return buffer[start:end] if type(buffer) is bytes else bytes(memoryview(buffer)[start:end])
