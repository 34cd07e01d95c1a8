"""A `ProcessRuntime` under test: with the real warden, a real instances table, and a front desk that agents dial."""

from __future__ import annotations

import itertools
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from spearpool.config import MonitoringConfig, ResourceLimits, TaskConfig
from spearpool.instances.instance import Instance
from spearpool.instances.process_runtime import ProcessRuntime
from spearpool.instances.surroundings import Surroundings
from spearpool.metrics.instances_table import InstanceRow, InstancesTable
from spearpool.metrics.layout import Layout
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.metrics.vocabulary import EventKind
from spearpool.protocol.credentials import Role, TokenKey, Verifier, make_token
from spearpool.protocol.identifiers import ConnectionId, InstanceId
from spearpool.protocol.identity import Identity
from spearpool.protocol.messages import ExecuteRequest, ExecuteResponse, Signal, SignalName
from spearpool.protocol.session import Session, Side
from spearpool.protocol.session_events import AuthenticationRequested, Closed, Received, SessionEvent
from spearpool.protocol.session_settings import SessionSettings
from spearpool.supervisor.warden import Warden
from spearpool.supervisor.warden_messages import FromWarden
from tests.conftest import deadline
from tests.metrics.segments import Record, RingReader, new_segment

__all__ = ["House", "housing", "wire_agent"]

REPOSITORY = Path(__file__).parents[2]
KEY = TokenKey("launch", b"k" * 32)
SETTINGS = SessionSettings(inf, inf, inf, inf, 2**20)


def wire_agent(after: str = "time.sleep(60)", before: str = "") -> str:
    """An `agent:` target in a few lines of Python that dials, authenticates, and then does as it is told."""
    code = f"""
import json, os, signal, socket, struct, sys, time
{before}
me = dict(instance_id=os.environ["SPEAR_INSTANCE_ID"], token=os.environ["SPEAR_SECRET"], client_version="1",
    client_type="process", extra_params={{}})
body = json.dumps(dict(message_type="AuthRequest", request_id=1, version=1,
    timestamp=dict(secs_since_epoch=1, nanos_since_epoch=0), payload=list(json.dumps(me).encode()))).encode()
line = socket.create_connection(("127.0.0.1", int(os.environ["SPEAR_COMMUNICATION_PORT"])))
line.sendall(struct.pack(">I", len(body)) + body)
assert line.recv(65536)
{after}
"""
    return f"agent:{sys.executable} -c '{code}'"


@dataclass(eq=False)
class Visitor:
    """A connection at the front desk."""

    sock: socket.socket
    session: Session
    connected_ns: int
    number: int
    instance: InstanceId | None = None
    answers: list[ExecuteResponse] = field(default_factory=list)


@dataclass(frozen=True)
class End:
    instance: Instance
    reason: str
    failed: bool


class House:
    """Everything that a runtime needs, and what it said."""

    def __init__(self, directory: Path, stack: ExitStack, rows: int, environ: Mapping[str, str]) -> None:
        self.work_dir = directory / "work"
        self.log_dir = directory / "logs"
        self.log_dir.mkdir()
        self.readies: list[Instance] = []
        self.ends: list[End] = []
        self.warmed: list[tuple[str, str]] = []
        self.breaches: list[tuple[Instance, str]] = []
        self.told: list[str] = []
        self.reports: list[FromWarden] = []
        self._visitors: list[Visitor] = []
        self._numbers = itertools.count(1)
        self._warden = Warden.start("test", lambda control: 0)
        stack.callback(self._warden.close)
        segment = stack.enter_context(new_segment(directory, Layout.plan(1, ["t"], 64, rows=rows)))
        self.table = InstancesTable(segment)
        seat = Seat(segment, segment.layout.supervisor_seat)
        seat.occupy(0, os.getpid())
        self.rollup = Rollup(segment)
        self._ring = RingReader(segment, seat.index)
        self._records: list[Record] = []
        self._desk = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._verifier = Verifier([KEY], row_is_alive=self.table.is_alive)
        stack.callback(self._close_visitors)
        self.runtime = ProcessRuntime(
            self._warden,
            self.table,
            Surroundings(
                "127.0.0.1",
                self._desk.getsockname()[1],
                self.work_dir / "agents.sock",
                self.work_dir,
                self.log_dir,
                environ,
            ),
            MonitoringService(seat, MonitoringConfig()),
            task_index=segment.task_index,
            token_for=lambda row, name: make_token(KEY, Role.AGENT, name, f"{row.row}:{row.generation}"),
            tell_agent=self._tell,
            on_ready=self.readies.append,
            on_warm=lambda task, failure: self.warmed.append((task, failure)),
            on_breach=lambda instance, breach: self.breaches.append((instance, breach)),
            on_end=lambda instance, reason, failed: self.ends.append(End(instance, reason, failed)),
        )
        stack.callback(self.runtime.close)

    # What tests do

    def create(self, target: str, limits: ResourceLimits | None = None, **config: Any) -> Instance:
        return self.runtime.create_instance("t", TaskConfig(target=target, **config), limits or ResourceLimits())

    def ready(self, target: str, limits: ResourceLimits | None = None, **config: Any) -> Instance:
        """Create an instance and wait until it serves."""
        instance = self.create(target, limits, **config)

        def begun_or_ended() -> bool:
            begun = instance in self.readies and instance.identity is not None  # its agent may be faster than the word
            return begun or any(end.instance is instance for end in self.ends)

        self.until(begun_or_ended)
        assert instance in self.readies, self.ends
        return instance

    def end_of(self, instance: Instance, timeout_s: float = 20) -> End:
        self.until(lambda: any(end.instance is instance for end in self.ends), timeout_s)
        return next(end for end in self.ends if end.instance is instance)

    def row(self, instance: Instance) -> InstanceRow:
        row = self.table.snapshot(instance.id.row)
        assert row is not None
        return row

    def records(self, instance: Instance) -> list[Record]:
        """What the ring says of the instance."""
        self._records += self._ring.read()
        return [record for record in self._records if record.instance == instance.id.pack()]

    def stages(self, instance: Instance) -> list[str]:
        """The same by name."""
        return [EventKind(record.kind).name.removeprefix("INSTANCE_").lower() for record in self.records(instance)]

    def counted(self) -> dict[str, int]:
        """Counters of instances that are not 0."""
        totals = self.rollup.task_totals()["t"]
        return {name.removeprefix("instances_"): count for name, count in totals.items() if count}

    def execute(self, instance: Instance, *arguments: str, data: bytes = b"") -> ExecuteResponse:
        """Send an execution down the instance's connection, as a worker would."""
        visitor = self._visitor(instance.id)
        assert visitor is not None
        count = len(visitor.answers)
        visitor.session.send(ExecuteRequest("t", "", list(arguments), {}, input_data=data))
        self._flush(visitor)
        self.until(lambda: len(visitor.answers) > count)
        return visitor.answers[-1]

    def hang_up(self, instance: Instance) -> None:
        """The connection is lost, as when a worker dies."""
        visitor = self._visitor(instance.id)
        assert visitor is not None
        self._part(visitor)

    def until(self, condition: Callable[[], object], timeout_s: float = 20) -> None:
        end = deadline(timeout_s)
        while not condition():
            assert time.monotonic() < end, (self.ends, self.runtime.snapshot())
            self._turn(0.01)

    # What the supervisor and its workers do

    def _turn(self, timeout_s: float) -> None:
        self.runtime.tick()
        sources = [self._warden.fileno(), self._desk.fileno(), *(visitor.sock.fileno() for visitor in self._visitors)]
        ready = select.select(sources, [], [], timeout_s)[0]
        if self._warden.fileno() in ready:
            self._hear_warden()
        for visitor in list(self._visitors):
            if visitor.sock.fileno() in ready:
                self._hear(visitor)
        if self._desk.fileno() in ready:
            sock, _ = self._desk.accept()
            now = time.monotonic_ns()
            number = ConnectionId(1, 1, next(self._numbers)).pack()
            self._visitors.append(Visitor(sock, Session(Side.SERVER, SETTINGS, now / 1e9), now, number))

    def _hear_warden(self) -> None:
        for record, pidfd in self._warden.on_readable():
            if pidfd is not None:
                os.close(pidfd)
            self.reports.append(record)
            self.runtime.handle(record)

    def _hear(self, visitor: Visitor) -> None:
        try:
            data = visitor.sock.recv(65536)
        except ConnectionError:
            data = b""
        for event in visitor.session.receive_data(data, time.monotonic()):
            self._react(visitor, event)
        self._flush(visitor)

    def _react(self, visitor: Visitor, event: SessionEvent) -> None:
        match event:
            case AuthenticationRequested(_, request):
                identity = self._verifier.verify(request, time.time())
                if isinstance(identity, Identity) and identity.instance is not None:
                    visitor.session.accept(identity, "session", "test")
                    visitor.instance = identity.instance
                    self.runtime.claimed(identity.instance, visitor.number, visitor.connected_ns, time.monotonic_ns())
                else:
                    visitor.session.refuse("no")
            case Received(_, ExecuteResponse() as answer):
                visitor.answers.append(answer)
            case Closed():
                self._part(visitor)

    def _part(self, visitor: Visitor) -> None:
        visitor.sock.close()
        if visitor in self._visitors:
            self._visitors.remove(visitor)
            if visitor.instance is not None:
                self.runtime.released(visitor.instance)

    def _close_visitors(self) -> None:
        for visitor in self._visitors:
            visitor.sock.close()

    def _tell(self, instance: InstanceId, signal: str) -> bool:
        self.told.append(signal)
        visitor = self._visitor(instance)
        if visitor is not None:
            visitor.session.send(Signal(SignalName(signal)))
            self._flush(visitor)
        return visitor is not None

    def _visitor(self, instance: InstanceId) -> Visitor | None:
        return next((visitor for visitor in self._visitors if visitor.instance == instance), None)

    def _flush(self, visitor: Visitor) -> None:
        if visitor.sock.fileno() >= 0:
            visitor.sock.sendall(visitor.session.data_to_send())


@contextmanager
def housing(directory: Path, rows: int = 8, environ: Mapping[str, str] | None = None) -> Iterator[House]:
    """A house whose instances find this repository's modules, and nothing of them is left at the end."""
    ours = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HIDDEN": "credentials"}
    with ExitStack() as stack:
        yield House(directory, stack, rows, ours if environ is None else environ)
