"""How two sides agree on an encoding: the side that dials asks for it, and the server's answer says that it takes it.

Asked for in the AuthRequest's `extra_params`: `encodings`, names separated by commas, the best first. Taken by the
feature `encoding:NAME` of a successful AuthResponse, which is still of version 1, as everything before it. What the
server says after it, and what the other side says after it has read it, is in the new encoding. Whoever does not ask,
or is not given it, stays with version 1.
"""

from __future__ import annotations

from typing import NamedTuple

from .codec import Codec
from .codec_v2 import MSGPACK_V2
from .messages import AuthRequest

__all__ = ["ASK", "FEATURES", "Encoding", "encoding_asked", "features"]


class Encoding(NamedTuple):
    """What may be agreed on, and the feature that says so."""

    codec: Codec
    feature: str


FEATURES = ("execute", "signal", "heartbeat")
"""What a server of this version supports, besides encodings."""

_KEY = "encodings"
_ENCODINGS = {"msgpack": Encoding(MSGPACK_V2, "encoding:msgpack")}

ASK = {_KEY: "msgpack"}
"""What to put into `extra_params` to be given version 2 by a server that has it."""


def encoding_asked(request: AuthRequest) -> Encoding | None:
    """The first one asked for that is known here."""
    names = request.extra_params.get(_KEY)
    if not names:
        return None
    found = (_ENCODINGS.get(name.strip()) for name in names.split(","))
    return next(filter(None, found), None)


def features(encoding: Encoding | None) -> list[str]:
    """What a server says it supports, to a peer with which it agrees on this encoding."""
    return [*FEATURES] if encoding is None else [*FEATURES, encoding.feature]
