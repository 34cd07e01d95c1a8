"""Records of a connection: what goes with it from one worker to another, and what can be seen of it."""

from __future__ import annotations

from dataclasses import dataclass

from spearpool.packing import Packer, Record
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.portable import SessionRecord
from spearpool.protocol.session import ConnectionState

__all__ = ["BELONGINGS", "AgentRecord", "Belongings", "ConnectionSnapshot"]


class AgentRecord(Record, frozen=True):
    """Of an agent that has nothing to do at the moment. `capacity` 0: it gets nothing any more."""

    task: str
    capacity: int
    instance: InstanceId


class Belongings(Record, frozen=True):
    """Times are monotonic seconds; `number` is the packed connection id, which stays."""

    number: int
    session: SessionRecord
    session_id: str | None
    client_type: str | None
    client_version: str | None
    connected_at: float
    authenticated_at: float
    last_activity: float
    heartbeat_sequence: int
    agent: AgentRecord | None


BELONGINGS: Packer[Belongings] = Packer(Belongings)


@dataclass(frozen=True, slots=True)
class ConnectionSnapshot:
    """The seed's `ConnectionState`, at one moment. Times are monotonic seconds; `status` is the session's state."""

    connection_id: str
    instance_id: str | None
    remote_addr: str
    connected_at: float
    last_activity: float
    authenticated: bool
    client_type: str | None
    client_version: str | None
    session_id: str | None
    status: ConnectionState
    heartbeat_sequence: int
