"""A worker process, from its control channel to its exit code.

The warden calls `run` in a fresh fork, with everything imported already. The supervisor's `Setup` waits in the channel;
it brings the listener, the segment, the settings and the keys. After that this process lives by its loop: connections,
links and the control channel are read by it, and every `BEAT_S` the seat's heartbeat word says that it turns.
The end of the control channel means that the supervisor is dead: nothing is worth finishing then.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from spearpool import log
from spearpool.channel import ChannelClosed
from spearpool.config import Settings
from spearpool.errors import ConfigError, SpearpoolError
from spearpool.metrics import InstancesTable, MonitoringService, Seat, SeatState, Segment
from spearpool.metrics.vocabulary import GAUGE
from spearpool.packing import replace
from spearpool.protocol.credentials import SecretValidator, TokenKey, Verifier

from .acceptor import Acceptor, is_of_our_user
from .connection_manager import ConnectionManager
from .control import (
    EXIT_CANNOT_START,
    STACKS_SIGNAL,
    AgentPaused,
    Disown,
    Drain,
    Drained,
    Empty,
    ExternalRow,
    FromWorker,
    Leave,
    LeaveWanted,
    Link,
    Ready,
    Rescue,
    RescueOver,
    Revocations,
    RowCleared,
    Setup,
    SignalAgent,
    StartFailed,
    TaskState,
    ToWorker,
    WorkerEnd,
    worker_end,
)
from .mover import Mover
from .outbox import Outbox
from .rescue import Rescuer
from .task_execution import TaskExecutionManager

try:
    import uvloop
except ImportError:
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    new_event_loop = uvloop.new_event_loop

__all__ = ["BEAT_S", "EXIT_CANNOT_START", "EXIT_ORPHANED", "load_validator", "run"]

BEAT_S = 0.1
SETUP_TIMEOUT_S = 30.0
LEAVE_GRACE_S = 1.0
"""How long peers may take to go when the worker leaves."""

COLLECT_AFTER = (10_000, 20, 50)
"""Thresholds of the garbage collector. Only a connection that has ended is ever garbage in a cycle; with the defaults
it would look for some at every tenth execution."""

EXIT_ORPHANED = 1
"""Exit code when the supervisor is gone; nobody is left to read it."""

_QUEUE_BYTES = GAUGE["queue_bytes"]

_DESCRIPTORS: dict[type, int] = {Link: 2, Rescue: 1}
"""How many come with a record. A worker whose table of them is full does without the neighbour, and lives on."""


def run(control: socket.socket) -> int:
    """Serve until told to leave; the exit code of the process. Does not return when the supervisor dies."""
    log.configure("worker", json_lines=not sys.stderr.isatty(), stream=sys.stderr)
    faulthandler.register(STACKS_SIGNAL, file=2)  # in C: it works in a loop that never comes back to Python's handlers
    channel = worker_end(control)
    try:
        setup, descriptors = _receive_setup(channel)
    except ChannelClosed:
        return EXIT_ORPHANED
    log.configure(f"worker {setup.slot}", json_lines=not sys.stderr.isatty(), stream=sys.stderr)
    gc.freeze()  # what the fork brought along lives as long as this process
    gc.set_threshold(*COLLECT_AFTER)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_serve(channel, setup, *descriptors))


async def _serve(channel: WorkerEnd, setup: Setup, listener_fd: int, segment_fd: int, agents_fd: int) -> int:
    try:
        segment = Segment.attach(segment_fd)
        worker = Worker(channel, setup, segment)
        await worker.start(socket.socket(fileno=listener_fd), socket.socket(fileno=agents_fd))
    except (SpearpoolError, OSError) as error:
        channel.send(StartFailed(str(error)))
        return EXIT_CANNOT_START
    with segment:
        await worker.serve()
    return 0


def _receive_setup(channel: WorkerEnd) -> tuple[Setup, list[int]]:
    """The first record, and its descriptors. Raises `ChannelClosed`."""
    while True:
        received = channel.receive()
        if received is not None:
            setup, descriptors = received
            return cast(Setup, setup), descriptors
        if not select.select([channel], [], [], SETUP_TIMEOUT_S)[0]:
            raise ChannelClosed(f"no Setup within {SETUP_TIMEOUT_S:g} s")


def load_validator(name: str | None) -> SecretValidator | None:
    """Import `module:function`. Raises `ConfigError`."""
    if name is None:
        return None
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigError("security.validator", name, f"a callable that can be imported ({error!r})") from error
    if not callable(found):
        raise ConfigError("security.validator", name, "a callable")
    return cast(SecretValidator, found)


class Worker:
    """One worker: its parts, and what the supervisor may tell it."""

    def __init__(self, channel: WorkerEnd, setup: Setup, segment: Segment) -> None:
        settings = setup.settings
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._seat = Seat(segment, setup.seat)
        self._left = asyncio.Event()
        self._log = log.get_logger("worker")
        self._next_beat: asyncio.TimerHandle | None = None
        self._openings: set[asyncio.Task[None]] = set()
        self._door: Acceptor | None = None
        outbox = Outbox(self._loop)
        monitoring = MonitoringService(self._seat, settings.monitoring, settings.connections.enable_monitoring)
        self._monitoring = monitoring
        self._executions = TaskExecutionManager(
            slot=setup.slot,
            incarnation=setup.incarnation,
            epoch=setup.epoch,
            tasks={name: replace(task, limits=settings.limits_of(name)) for name, task in settings.tasks.items()},
            config=settings.connections,
            seat=self._seat,
            monitoring=monitoring,
            outbox=outbox,
            tell=self._tell,
        )
        self._connections = ConnectionManager(
            settings.connections,
            _verifier(setup, settings, segment),
            handler=self._executions,
            monitoring=monitoring,
            outbox=outbox,
            slot=setup.slot,
            incarnation=setup.incarnation,
        )
        self._mover = Mover(self._seat, self._connections, self._executions, monitoring)
        self._rescuer = Rescuer(self._loop, self._connections.new_connection)
        self._incarnation = setup.incarnation
        agents = self._executions.agents
        self._heeds: dict[type, Callable[[Any], None]] = {
            RescueOver: lambda record: self._rescuer.over(record.slot),
            Disown: agents.disown,
            RowCleared: agents.row_cleared,
            ExternalRow: agents.external_row,
            SignalAgent: agents.signal,
            AgentPaused: agents.pause,
            TaskState: self._set_task,
            Revocations: lambda record: self._connections.revoke(record.revoked),
            Drain: self._drain,
            Empty: self._empty,
            Leave: lambda _record: self._left.set(),
        }

    async def start(self, listener: socket.socket, agents: socket.socket) -> None:
        """Take the seat and begin to accept: at the slot's own listener, and beside all others at the socket of those
        agents that do not come by TCP. Raises `SpearpoolError` or `OSError`."""
        self._seat.occupy(self._incarnation, os.getpid())
        await self._connections.start_listening(listener)
        self._door = Acceptor(self._loop, agents, self._connections.new_connection, batch=1, admitted=is_of_our_user)

    async def serve(self) -> None:
        """Report ready, and serve until told to leave."""
        self._beat()
        self._seat.state = SeatState.READY
        self._tell(Ready(os.getpid()))
        self._loop.add_reader(self._channel.fileno(), self._hear)
        self._loop.add_signal_handler(signal.SIGTERM, self._tell, LeaveWanted())
        self._mover.start()
        await self._left.wait()
        self._seat.state = SeatState.LEAVING
        self._mover.stop()
        self._stop_accepting()
        self._executions.stop()
        await self._connections.close(grace_s=LEAVE_GRACE_S)
        self._loop.remove_signal_handler(signal.SIGTERM)
        self._loop.remove_reader(self._channel.fileno())
        if self._next_beat is not None:
            self._next_beat.cancel()
        self._seat.vacate()

    def _beat(self, expected_ns: int | None = None) -> None:
        now_ns = time.monotonic_ns()
        self._seat.beat(now_ns)
        self._seat.gauges[_QUEUE_BYTES] = self._executions.dispatcher.snapshot().queued_bytes
        if expected_ns is not None:
            self._monitoring.record_loop_lag(max(0, now_ns - expected_ns))
        self._next_beat = self._loop.call_later(BEAT_S, self._beat, now_ns + int(BEAT_S * 1e9))

    # ------------------------------------------------------------------------------------------------- the supervisor

    def _hear(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                self._heed(*received)
        except ChannelClosed:
            os._exit(EXIT_ORPHANED)

    def _heed(self, record: ToWorker, fds: list[int]) -> None:
        if len(fds) < _DESCRIPTORS.get(type(record), 0):
            self._log.warning("no descriptor is left for what the supervisor sent", record=type(record).__name__)
            for fd in fds:
                os.close(fd)
        elif isinstance(record, Rescue):
            self._rescuer.begin(record.slot, socket.socket(fileno=fds[0]))
        elif isinstance(record, Link):
            self._mover.handover.open(record.seat, fds[1])
            opening = self._loop.create_task(self._executions.links.open(record.incarnation, record.seat, fds[0]))
            self._openings.add(opening)
            opening.add_done_callback(self._openings.discard)
        else:
            self._heeds[type(record)](record)

    def _tell(self, record: FromWorker) -> None:
        try:
            self._channel.send(record)
        except ChannelClosed:
            os._exit(EXIT_ORPHANED)
        if self._channel.wants_write:
            self._loop.add_writer(self._channel.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            self._channel.flush()
        except ChannelClosed:
            os._exit(EXIT_ORPHANED)
        if not self._channel.wants_write:
            self._loop.remove_writer(self._channel.fileno())

    def _set_task(self, record: TaskState) -> None:
        executions = self._executions
        executions.run(executions.dispatcher.set_task(record.task, record.available, record.reason))

    def _drain(self, record: Drain) -> None:
        self._seat.state = SeatState.LEAVING
        self._stop_accepting()
        self._executions.drain(record.deadline_s, lambda abandoned: self._tell(Drained(abandoned)))

    def _empty(self, record: Empty) -> None:
        self._seat.state = SeatState.LEAVING
        self._stop_accepting()
        self._mover.empty(record.deadline_s, self._tell)

    def _stop_accepting(self) -> None:
        self._connections.stop_listening()
        self._rescuer.close()
        if self._door is not None:
            self._door.close()


def _verifier(setup: Setup, settings: Settings, segment: Segment) -> Verifier:
    return Verifier(
        [TokenKey(key.key_id, key.secret) for key in setup.keys],
        row_is_alive=InstancesTable(segment).is_alive,
        revoked=setup.revoked,
        validator=load_validator(settings.security.validator),
    )
