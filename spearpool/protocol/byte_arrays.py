"""Bytes as version 1 writes them: a JSON array of integers from 0 to 255.

A list of Python integers takes 8 bytes for each byte of data, so large arrays are written and read in pieces.
"""

from __future__ import annotations

import msgspec

__all__ = ["read_bytes", "write_bytes"]

_PIECE = 64 * 1024

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(list[int])


def write_bytes(data: bytes) -> bytes:
    """`b"hi"` becomes `[104,105]`."""
    if len(data) <= _PIECE:
        return _ENCODER.encode(list(data))
    pieces = (_ENCODER.encode(list(data[at : at + _PIECE]))[1:-1] for at in range(0, len(data), _PIECE))
    return b"[" + b",".join(pieces) + b"]"


def read_bytes(text: bytes, start: int = 0, end: int | None = None) -> bytes:
    """The array at `text[start:end]`; white space is allowed. Raises `ValueError` for anything else."""
    end = len(text) if end is None else end
    if end - start <= _PIECE:
        return _read_piece(text[start:end])
    if text[start] != ord("[") or text[end - 1] != ord("]"):
        raise _not_an_array()
    first, last = start + 1, end - 1
    data = bytearray()
    at = first
    while True:
        comma = text.find(b",", min(at + _PIECE, last), last)
        stop = last if comma < 0 else comma
        piece = _read_piece(b"[" + text[at:stop] + b"]")
        if not piece and (at, stop) != (first, last):
            raise _not_an_array()  # nothing between two commas; only the whole array may be empty
        data += piece
        if stop == last:
            return bytes(data)
        at = stop + 1


def _read_piece(text: bytes) -> bytes:
    if b"-" in text:  # msgspec reads -0 as 0
        raise _not_an_array()
    try:
        return bytes(bytearray(_DECODER.decode(text)))  # bytes of a list takes twice as long
    except (msgspec.MsgspecError, ValueError):
        raise _not_an_array() from None


def _not_an_array() -> ValueError:
    return ValueError("expected an array of integers from 0 to 255")
