"""What the pool says of itself: the `status` document and what the bus publishes of workers and instances.

Everything is read from snapshots when somebody asks; nothing is kept here.
"""

from __future__ import annotations

import time
from typing import Any

from spearpool import __version__
from spearpool.config import Settings
from spearpool.metrics.instances_table import InstanceRow
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Board, Seat
from spearpool.metrics.vocabulary import ROW_STAGES, ExecutionStage, InstanceStage
from spearpool.protocol.identifiers import ConnectionId

from .premises import Premises
from .roster import Roster
from .staff import Staff

__all__ = ["Report"]

Document = dict[str, Any]

STATES = ("starting", "ready", "busy", "paused", "stopping", "failed")
"""States of an instance, as `status` counts them."""


class Report:
    """Reads roster, staff, segment and listeners."""

    def __init__(
        self,
        settings: Settings,
        premises: Premises,
        roster: Roster,
        staff: Staff,
        rollup: Rollup,
        started_at: float,
    ) -> None:
        self._settings = settings
        self._premises = premises
        self._roster = roster
        self._staff = staff
        self._rollup = rollup
        self._started_at = started_at
        self._board = Board(premises.segment)
        self._seats = [Seat(premises.segment, index) for index in range(2 * settings.pool.slots)]

    def status(self, state: str) -> Document:
        """The `status` document; its keys are a contract."""
        instances = self.instances()
        listeners = self._premises.listeners
        return {
            "name": self._settings.pool.name,
            "version": __version__,
            "pid": self._premises.identity.pid,
            "state": state,
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "host": listeners.host,
            "port": listeners.port,
            "steering": listeners.steering.status,
            "cgroup": None if self._premises.group is None else str(self._premises.group.path),
            "workers": self.workers(),
            "tasks": self._tasks(instances),
            "instances": instances,
            "totals": self._rollup.totals(),
            "warnings": self.warnings(),
        }

    def summary(self) -> str:
        """The pool in a line, as a service manager shows it."""
        listeners, views = self._premises.listeners, self._roster.snapshot().slots
        ready = sum(view.state == "ready" for view in views)
        return f"{ready} of {len(views)} workers ready on {listeners.host}:{listeners.port}"

    def warnings(self) -> list[str]:
        """What a user should know although the pool runs."""
        steering = self._premises.listeners.steering.status
        spread = [f"connections may go to workers that are not ready: {steering}"] if steering != "bpf" else []
        return [*self._staff.warnings(), *spread]

    def workers(self) -> list[Document]:
        return [
            {
                "slot": view.slot,
                "pid": view.pid,
                "state": view.state,
                "incarnation": view.incarnation,
                "restarts": view.restarts,
                "connections": self._rollup.open_connections(view.slot),
                "authenticated": self._rollup.authenticated_now(view.slot),
                "accept_queue": self._premises.listeners.accept_queue(view.slot),
                "last_end": view.last_end,
            }
            for view in self._roster.snapshot().slots
        ]

    def instances(self) -> list[Document]:
        return [self._instance(row) for row in self._premises.table.snapshots()]

    def _instance(self, row: InstanceRow) -> Document:
        in_flight = self._in_flight(row)
        state = self._staff.state_of(row)
        offset_s = time.time() - time.monotonic()
        requested_ns = row.stages_ns[InstanceStage.REQUESTED]
        return {
            "instance_id": row.instance_id,
            "task": row.task,
            "pid": row.pid or None,
            "state": "busy" if state == "ready" and in_flight else state,
            "worker": self._worker(row),
            "started_s": round(requested_ns / 1e9 + offset_s, 3) if requested_ns else None,
            "limits": [
                {
                    "name": limit.name,
                    "value": limit.value,
                    "level": limit.level.name.lower(),
                    "usage": limit.usage,
                    "breaches": limit.breaches,
                }
                for limit in row.limits
            ],
            "external": row.external,
            "in_flight": in_flight,
            "restarts": row.restarts,
            "stages_ms": {
                stage.name.lower(): round((row.stages_ns[stage] - requested_ns) / 1e6, 3)
                for stage in ROW_STAGES
                if row.stages_ns[stage] and requested_ns
            },
        }

    def _worker(self, row: InstanceRow) -> int | None:
        """The slot of the worker that has the agent: what its seat says, else who accepted the connection."""
        for seat in self._seats:
            agent = seat.agent(row.instance.row)
            if row.owner and agent.connections and agent.generation == row.instance.generation:
                return seat.index // 2
        return ConnectionId.unpack(row.owner).slot if row.owner else None

    def _in_flight(self, row: InstanceRow) -> int:
        """What all workers together have in flight at an instance."""
        agents = (seat.agent(row.instance.row) for seat in self._seats)
        return sum(agent.in_flight for agent in agents if agent.generation == row.instance.generation)

    def _tasks(self, instances: list[Document]) -> list[Document]:
        totals = self._rollup.task_totals()
        documents = []
        for name, task in self._staff.tasks.items():
            column = self._premises.segment.task_index(name)
            counts = dict.fromkeys(STATES, 0)
            for instance in instances:
                if instance["task"] == name:
                    counts[instance["state"]] += 1
            staff = self._staff.staff_of(name)
            counts["failed"] = self._staff.failures(name)
            queued = sum(self._board.capacity(seat.index, column)[1] for seat in self._seats)
            stages = totals.get(name, {})
            received = stages.get("received", 0)
            ended = sum(
                stages.get(stage.name.lower(), 0) for stage in ExecutionStage if stage >= ExecutionStage.COMPLETED
            )
            documents.append(
                {
                    "name": name,
                    "target": task.target,
                    "instances": counts,
                    "queued": queued,
                    "in_flight": max(0, received - ended - queued),
                    "min_instances": staff.minimum,
                    "max_instances": staff.maximum,
                    "wanted": staff.wanted,
                    "problem": self._staff.problem(name),
                }
            )
        return documents
