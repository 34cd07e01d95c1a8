"""Which connection an instance's agent has: rows of the instances table as agents come and go.

A worker lets an agent in by itself and then *claims* its row here. The newer claim wins, and the worker that has the
older connection is told to close it. Agents that somebody else started (issued tokens) get a row when they come, and
give it back when they go.
"""

from __future__ import annotations

from dataclasses import dataclass

from spearpool.errors import SegmentError
from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.vocabulary import Pause
from spearpool.protocol.identifiers import InstanceId
from spearpool.worker.control import Claim, Disown, ExternalAgent, ExternalRow, Released, RowCleared

from .crew import Crew, Member

__all__ = ["Owners"]


@dataclass(slots=True)
class _Owner:
    """`incarnation` is that of the worker which has the connection; its id only says which one accepted it."""

    generation: int
    connection: int
    incarnation: int
    authenticated_ns: int


class Owners:
    """Who owns which row. `claim` and `release` return whether the record still speaks of the row's instance."""

    def __init__(self, table: InstancesTable, crew: Crew) -> None:
        self._table = table
        self._crew = crew
        self._owners: dict[int, _Owner] = {}
        self._external: dict[str, InstanceId] = {}
        self._resting: dict[str, Pause] = {}  # external agents that are paused, whatever row they have

    def claim(self, claim: Claim, member: Member) -> bool:
        """An agent authenticated at a worker, or its connection was handed to it; the older of two is closed."""
        if not self._table.is_alive(claim.row, claim.generation):
            return False
        before = self._owners.get(claim.row)
        owner = _Owner(claim.generation, claim.connection, member.incarnation, claim.authenticated_ns)
        if before is not None and before.connection != claim.connection:
            if owner.authenticated_ns < before.authenticated_ns:  # it was on its way while the agent dialled again
                self._disown(claim.row, owner)
                return False
            self._disown(claim.row, before)
        self._owners[claim.row] = owner
        self._table.set_owner(claim.row, claim.connection)
        return True

    def release(self, released: Released) -> bool:
        """An agent's connection ended. False when another connection has the row by now."""
        owner = self._owners.get(released.row)
        if owner is None or owner.connection != released.connection:
            return False
        del self._owners[released.row]
        self._table.set_owner(released.row, 0)
        self._close_external(released.row, released.generation)
        return True

    def died(self, member: Member) -> list[InstanceId]:
        """A worker is gone, and with it the connections of these instances; those that live will come again."""
        lost = []
        for row, owner in list(self._owners.items()):
            if owner.incarnation == member.incarnation:
                del self._owners[row]
                self._table.set_owner(row, 0)
                self._close_external(row, owner.generation)
                lost.append(InstanceId(row, owner.generation))
        return lost

    def forget(self, instance: InstanceId) -> None:
        """The instance ended: its row is void, and workers close what is left of it."""
        self._owners.pop(instance.row, None)
        self._crew.broadcast(RowCleared(instance.row, instance.generation))

    def member_of(self, instance: InstanceId) -> Member | None:
        """The worker that has the instance's agent."""
        owner = self._owners.get(instance.row)
        if owner is None or owner.generation != instance.generation:
            return None
        return self._crew.get(owner.incarnation)

    def admit(self, member: Member, agent: ExternalAgent, task_index: int) -> None:
        """Give an agent that somebody else started a row, in place of the one it may have had."""
        before = self._external.pop(agent.instance_id, None)
        if before is not None:
            self._table.close_row(before.row)
            self.forget(before)
        try:
            row = self._table.open_row(task_index, external=True, label=agent.instance_id)
        except SegmentError:
            self._crew.send(member, ExternalRow(agent.request, 0, 0))
            return
        self._external[agent.instance_id] = row
        self._table.set_pause(row.row, self._resting.get(agent.instance_id, Pause.NONE))
        self._crew.send(member, ExternalRow(agent.request, row.row, row.generation))

    def remember_pause(self, instance: InstanceId, pause: Pause) -> None:
        """An agent that somebody else started gets a new row each time it comes: its pause goes with its name."""
        for name in [name for name, row in self._external.items() if row == instance]:
            if pause:
                self._resting[name] = pause
            else:
                self._resting.pop(name, None)

    def _close_external(self, row: int, generation: int) -> None:
        for name, instance in list(self._external.items()):
            if instance == InstanceId(row, generation):
                del self._external[name]
                self._table.close_row(row)

    def _disown(self, row: int, owner: _Owner) -> None:
        member = self._crew.get(owner.incarnation)
        if member is not None:
            self._crew.send(member, Disown(row, owner.generation, owner.connection))
