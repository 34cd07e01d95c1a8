"""What goes with a connection from one worker to another: all that the two of them know of it."""

from __future__ import annotations

from spearpool.packing import Packer, Record
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.portable import SessionRecord

__all__ = ["BELONGINGS", "AgentRecord", "Belongings"]


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
