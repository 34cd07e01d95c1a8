"""A bus that lives: a real segment with seats, and `Bus` on a loop in a thread of its own, as in a supervisor."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from spearpool.config import MonitoringConfig
from spearpool.metrics.bus import Bus, Handler
from spearpool.metrics.layout import Layout
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.metrics.segment import Segment
from spearpool.protocol.events import Direction
from spearpool.protocol.identifiers import ConnectionId
from spearpool.protocol.messages import MessageType
from tests.metrics.segments import new_segment

__all__ = ["LivingBus", "living_bus", "monitoring", "write_messages"]

T = TypeVar("T")


def monitoring(segment: Segment, seat: int) -> MonitoringService:
    """A writer in that seat."""
    place = Seat(segment, seat)
    place.occupy(1, os.getpid())
    return MonitoringService(place, MonitoringConfig())


def write_messages(service: MonitoringService, count: int, slot: int = 0, connection: int = 0) -> None:
    connection = connection or ConnectionId(slot, 1, 7).pack()
    for _ in range(count):
        service.record_message_event(connection, MessageType.HEARTBEAT, Direction.INCOMING, 99)


class LivingBus:
    """`workers` and `instances` are what the bus describes; `errors` what its loop was told of."""

    def __init__(
        self, segment: Segment, directory: Path, handlers: Mapping[str, Handler], high_water_mark: int
    ) -> None:
        self.segment = segment
        self.rollup = Rollup(segment)
        self.workers: list[dict[str, Any]] = [{"slot": slot, "state": "ready"} for slot in range(2)]
        self.instances: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.bus = Bus(
            directory,
            self.rollup,
            lambda: list(self.workers),
            lambda: list(self.instances),
            handlers,
            high_water_mark=high_water_mark,
        )
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.closed = False
        self.call(lambda: self.bus.bind(self.loop))

    @property
    def live(self) -> str:
        return self.bus.endpoints.live

    @property
    def ask(self) -> str:
        return self.bus.endpoints.ask

    def call(self, function: Callable[[], T]) -> T:
        """Run something on the loop's thread, and wait for it."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
                done.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return done.result(30)

    def publish(self) -> None:
        """Publish now what there is, counters and states included, whatever is due."""

        def tick() -> None:
            publisher = self.bus._publisher
            publisher._counters_due = publisher._state_due = 0.0
            publisher.tick(time.monotonic(), time.time_ns())

        self.call(tick)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.call(self.bus.close)

    def end(self) -> None:
        self.close()
        self.call(lambda: [task.cancel() for task in asyncio.all_tasks(self.loop)])
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def living_bus(
    directory: Path,
    *,
    ring_records: int = 1024,
    handlers: Mapping[str, Handler] | None = None,
    high_water_mark: int = 1000,
) -> Iterator[LivingBus]:
    """A bus for two slots in `directory`, whose path must be short enough for a socket."""
    with new_segment(directory, Layout.plan(2, ["thumb", "sum"], ring_records, rows=8)) as segment:
        living = LivingBus(segment, directory, handlers or {}, high_water_mark)
        try:
            yield living
        finally:
            living.end()
