"""What the workers' seats say of an instance's traffic, added up."""

from __future__ import annotations

from spearpool.instances.worker_limits import Traffic
from spearpool.metrics.seat import Seat
from spearpool.metrics.segment import Segment
from spearpool.protocol.identifiers import InstanceId

__all__ = ["TrafficCount"]


class TrafficCount:
    """To be called for an instance; every worker that has or had its agent has counted a part."""

    def __init__(self, segment: Segment) -> None:
        seats = segment.layout.seats
        self._seats = [Seat(segment, index) for index in range(seats) if index != segment.layout.supervisor_seat]

    def __call__(self, instance: InstanceId) -> Traffic:
        agents = [seat.agent(instance.row) for seat in self._seats]
        ours = [agent for agent in agents if agent.generation == instance.generation]
        return Traffic(sum(agent.bytes for agent in ours), sum(agent.throttled for agent in ours))
