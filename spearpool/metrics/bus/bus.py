"""The supervisor's end of the bus: both sockets, the gate before them, and the timer that publishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from spearpool.packing import to_plain
from spearpool.runtime_dir import Endpoints

from .ask import Desk, Handler
from .gate import Gate
from .publisher import Describe, Publisher
from .sockets import LoopSocket

if TYPE_CHECKING:
    from spearpool.metrics.rollup import Rollup

__all__ = ["TICK_S", "Bus"]

TICK_S = 0.05
"""How old an event gets before it is published. Without subscribers nothing ticks."""

_HIGH_WATER_MARK = 1000
_GOODBYE_MS = 100
_MAX_REQUEST_BYTES = 1024 * 1024


class Bus:
    """`live` and `ask` of one pool, on a plain asyncio loop.

    `workers` and `instances` describe the pool as `status` does. `handlers` answer commands, next to `snapshot` and
    `schema`, which the bus answers itself. `high_water_mark` is how many frames may wait for one subscriber.
    """

    def __init__(
        self,
        runtime_dir: Path,
        rollup: Rollup,
        workers: Describe,
        instances: Describe,
        handlers: Mapping[str, Handler],
        *,
        high_water_mark: int = _HIGH_WATER_MARK,
    ) -> None:
        self.endpoints = Endpoints(live=f"ipc://{runtime_dir}/live.sock", ask=f"ipc://{runtime_dir}/ask.sock")
        self._rollup = rollup
        self._context = zmq.Context()
        self._gate = Gate(self._context)
        self._live = LoopSocket(self._socket(zmq.XPUB, {zmq.SNDHWM: high_water_mark}), self._subscription)
        self._publisher = Publisher(rollup, workers, instances, self._live.send)
        own: dict[str, Handler] = {"snapshot": self._snapshot, "schema": self._schema}
        self._desk = Desk(self._socket(zmq.ROUTER, {zmq.MAXMSGSIZE: _MAX_REQUEST_BYTES}), {**handlers, **own})
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def _socket(self, kind: int, options: Mapping[int, int]) -> zmq.Socket[bytes]:
        """A socket behind the gate. All options are set before it is bound, where alone they have effect."""
        socket = self._context.socket(kind)
        self._gate.guard(socket)
        socket.setsockopt(zmq.LINGER, 0)
        for option, value in options.items():
            socket.setsockopt(option, value)
        return socket

    @property
    def refused(self) -> int:
        """Connections of other users that were turned away."""
        return self._gate.refused

    @property
    def listened_to(self) -> bool:
        """Whether anybody has subscribed to anything."""
        return self._publisher.wanted

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind both sockets; from now on `loop` serves them. Raises `PoolError`; `close` is due then as well."""
        self._loop = loop
        self._gate.bind(loop)
        self._live.bind(loop, self.endpoints.live)
        self._desk.bind(loop, self.endpoints.ask)

    def close(self) -> None:
        """Publish what is left, say where every topic ended, and go. Slow subscribers hold this up by 0.1 s at most."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is not None and self._publisher.wanted:
            self._publisher.tick(time.monotonic(), time.time_ns())
            self._publisher.heartbeat(time.time_ns())
        self._loop = None
        self._live.close(_GOODBYE_MS)
        self._desk.close(_GOODBYE_MS)
        self._gate.close()
        self._context.term()

    def _subscription(self, frames: list[bytes]) -> None:
        self._publisher.subscription(frames[0], time.time_ns())
        if self._timer is None and self._publisher.wanted:
            self._start_timer()

    def _start_timer(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._publisher.wanted:
            self._start_timer()
            self._publisher.tick(time.monotonic(), time.time_ns())

    def _snapshot(self, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - a handler's signature
        snapshot: dict[str, Any] = to_plain(self._publisher.snapshot(time.time_ns()))
        return snapshot

    def _schema(self, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - a handler's signature
        layout = self._rollup.layout
        return {"schema": layout.schema(), "schema_hash": layout.schema_hash}
