"""A server's session that another process can go on with: hand-over moves it, with its connection, to another worker.

Only a conversation in which nothing is under way is moved: the peer is authenticated, all its requests have been
answered and everything that was said is written. What remains of it then is small: who the peer is, the encoding, the
next ids (so that none is used twice, and answers to our heartbeats are known as such), the times that deadlines are
reckoned from (monotonic: processes of one machine share that clock), and the beginning of a frame that has not arrived
as a whole.
"""

from __future__ import annotations

import msgspec

from .codec import JSON_V1, Codec
from .codec_v2 import MSGPACK_V2
from .identity import Identity, Role
from .session import ConnectionState, Session, SessionSettings, Side
from .transitions import rows

__all__ = ["MAX_BEGUN_BYTES", "PortableSession", "SessionRecord"]

MAX_BEGUN_BYTES = 32 * 1024
"""With more of a frame than this already there, the conversation stays until the rest has come."""

_CODECS: dict[int, Codec] = {codec.version: codec for codec in (JSON_V1, MSGPACK_V2)}


class SessionRecord(msgspec.Struct, frozen=True):
    """What goes with a conversation. Times are monotonic seconds."""

    peer: Identity
    version: int
    next_id: int
    next_heartbeat_id: int
    heard_at: float
    used_at: float
    heartbeat_at: float
    begun: bytes
    """Of a frame that is still to come."""


class PortableSession(Session):
    """A session of `Side.SERVER`."""

    __slots__ = ()

    def __init__(self, settings: SessionSettings, now: float) -> None:
        super().__init__(Side.SERVER, settings, now)

    @classmethod
    def resume(cls, record: SessionRecord, settings: SessionSettings, now: float) -> PortableSession:
        """Go on where another process has stopped."""
        session = cls(settings, now)
        peer = session.peer = record.peer
        session.codec = _CODECS[record.version]
        session._rows = rows(Side.SERVER, Side.AGENT if peer.role is Role.AGENT else Side.CLIENT)
        session._authenticated(ConnectionState.AUTHENTICATED)
        session._next_id = record.next_id
        session._next_heartbeat_id = record.next_heartbeat_id
        session._heard_at = record.heard_at
        session._used_at = record.used_at
        session._heartbeat_at = record.heartbeat_at
        session._reader.feed(record.begun)
        return session

    def excuse(self, now: float) -> None:
        """The peer could not speak until now: take it as heard."""
        self._heard_at = now

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way: no request without its answer, nothing to be written, no large frame."""
        calm = self.state is ConnectionState.AUTHENTICATED and not self._in_flight and not self._outgoing
        return calm and self._reader.buffered <= MAX_BEGUN_BYTES

    def record(self) -> SessionRecord:
        """What `resume` needs, of a conversation that is `at_rest`."""
        assert self.peer is not None
        return SessionRecord(
            self.peer,
            self.codec.version,
            self._next_id,
            self._next_heartbeat_id,
            self._heard_at,
            self._used_at,
            self._heartbeat_at,
            self._reader.rest(),
        )
