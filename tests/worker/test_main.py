"""`main.run` in a process of its own; the test is its supervisor, its clients and its agents."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from spearpool.channel import ChannelClosed
from spearpool.config import ConnectionManagerConfig, SecurityConfig, Settings, TaskConfig
from spearpool.errors import ConfigError, ErrorCode
from spearpool.metrics import InstancesTable, Layout, Seat, SeatState, Segment
from spearpool.processes import start_ticks
from spearpool.protocol.credentials import Grant, TokenKey, make_token
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.identity import Role
from spearpool.protocol.messages import (
    AuthRequest,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Payload,
)
from spearpool.protocol.session import (
    AuthenticationAnswered,
    Closed,
    Received,
    Session,
    SessionEvent,
    SessionSettings,
    Side,
)
from spearpool.worker.control import (
    EXIT_CANNOT_START,
    Claim,
    Disown,
    Drain,
    Drained,
    Emptied,
    Empty,
    ExternalAgent,
    ExternalRow,
    FromWorker,
    Key,
    Leave,
    Link,
    Ready,
    Released,
    Rescue,
    RescueOver,
    Revocations,
    RowCleared,
    Setup,
    StartFailed,
    SupervisorEnd,
    TaskState,
    ToWorker,
    supervisor_end,
)
from spearpool.worker.main import BEAT_S, EXIT_ORPHANED, load_validator
from tests.conftest import TIME_SCALE, eventually

from .peers import request

pytestmark = pytest.mark.process

R = TypeVar("R", bound=FromWorker)
P = TypeVar("P", bound=Payload)

EPOCH = 11
KEY = TokenKey("launch", b"k" * 32)
TASKS = {"echo": TaskConfig(target="python:a:b")}
PROGRAM = """
import socket, sys
from spearpool.worker.main import run
sys.exit(run(socket.socket(fileno=int(sys.argv[1]))))
"""
INFINITE = SessionSettings(float("inf"), float("inf"), float("inf"), float("inf"), 1 << 26)


def accept_tests(_instance_id: str, token: str) -> Grant | None:
    """The validator of these tests' configuration."""
    return Grant(Role.CLIENT, rights=("submit",)) if token == "from the tests" else None


class Caller:
    """A blocking agent or client."""

    def __init__(self, address: tuple[str, int] | str, side: Side) -> None:
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.settimeout(5.0 * TIME_SCALE)
        self.sock.connect(address)
        self.session = Session(side, INFINITE, 0.0)
        self.events: list[SessionEvent] = []

    def authenticate(self, name: str, token: str, **extra: str) -> bool:
        self.send(AuthRequest(name, token, "test", "test", extra))
        event = self._next_event()
        assert isinstance(event, AuthenticationAnswered), event
        return event.response.success

    def send(self, payload: Payload, number: int | None = None) -> None:
        self.session.send(payload, number)
        self.sock.sendall(self.session.data_to_send())

    def next(self, kind: type[P]) -> tuple[int, P]:
        event = self._next_event()
        assert isinstance(event, Received), event
        assert isinstance(event.payload, kind), event.payload
        return event.request_id, event.payload

    def until_closed(self) -> str:
        while not isinstance(event := self._next_event(), Closed):
            pass
        return event.detail

    def complete(self, number: int, asked: ExecuteRequest, output: str) -> None:
        answer = ExecuteResponse(asked.task_id, ExecutionStatus.COMPLETED, output, execution_id=asked.execution_id)
        self.send(answer, number)

    def _next_event(self) -> SessionEvent:
        while not self.events:
            self.events += self.session.receive_data(self.sock.recv(65536), 0.0)
            self.sock.sendall(self.session.data_to_send())
        return self.events.pop(0)


class Member:
    """A worker process, as its supervisor sees it."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, seat: Seat) -> None:
        self.process = process
        self.channel = supervisor_end(control)
        self.seat = seat
        self.told: list[FromWorker] = []

    def tell(self, record: ToWorker, fds: list[int] | None = None) -> None:
        self.channel.send(record, fds or [])

    def hear(self, kind: type[R], timeout_s: float = 10.0) -> R:
        """The next record of this kind; others are kept."""
        end = time.monotonic() + timeout_s * TIME_SCALE
        while True:
            for record in self.told:
                if isinstance(record, kind):
                    self.told.remove(record)
                    return record
            assert select.select([self.channel], [], [], max(0.0, end - time.monotonic()))[0], f"no {kind.__name__}"
            received = self.channel.receive()
            if received is not None:
                self.told.append(received[0])

    def exit_code(self) -> int:
        return self.process.wait(10.0 * TIME_SCALE)


class Supervisor:
    """Listener and segment of a pool, and the workers that it starts."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        layout = Layout.plan(4, list(TASKS), 1024, rows=64)
        pid = os.getpid()
        self.segment = stack.enter_context(Segment.create(directory, "main", layout, EPOCH, pid, start_ticks(pid) or 0))
        stack.callback(self.segment.unlink)
        self.table = InstancesTable(self.segment)
        self._stack = stack
        self._listeners: dict[int, socket.socket] = {}
        self._agents = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        self.local_name = f"\0spearpool test {pid} {id(self)}"  # it is no path
        self._agents.bind(self.local_name)
        self._agents.listen()
        self._incarnations = 0

    def spawn(self, slot: int = 0, parity: int = 0, settings: Settings | None = None, segment_fd: int = -1) -> Member:
        if slot not in self._listeners:
            self._listeners[slot] = self._stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
            self._listeners[slot].setblocking(False)
        self._incarnations += 1
        ours, theirs = SupervisorEnd.pair()
        member_seat = Seat(self.segment, 2 * slot + parity)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        member = Member(process, ours, member_seat)
        self._stack.callback(member.channel.close)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        setup = Setup(
            slot,
            member_seat.index,
            self._incarnations,
            EPOCH,
            settings or Settings(tasks=TASKS),
            [Key(KEY.key_id, KEY.secret)],
            ["revoked before the start"],
        )
        fd = self.segment.fd if segment_fd < 0 else segment_fd
        member.tell(setup, [self._listeners[slot].fileno(), fd, self._agents.fileno()])
        return member

    def ready(self, slot: int = 0, parity: int = 0, settings: Settings | None = None) -> Member:
        member = self.spawn(slot, parity, settings)
        assert member.hear(Ready).pid == member.process.pid
        return member

    def listener(self, slot: int) -> socket.socket:
        return self._listeners[slot]

    def link(self, one: tuple[int, Member], other: tuple[int, Member]) -> None:
        pairs = (socket.socketpair(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        for (_, member), (slot, neighbour), ends in zip(
            (one, other), (other, one), zip(*pairs, strict=True), strict=True
        ):
            member.tell(Link(slot, neighbour.seat.index, neighbour.seat.incarnation), [end.fileno() for end in ends])
            for end in ends:
                end.close()

    def dial(self, side: Side, slot: int = 0) -> Caller:
        return self._call(self._listeners[slot].getsockname(), side)

    def dial_locally(self, side: Side) -> Caller:
        """At the Unix socket that all workers share."""
        return self._call(self.local_name, side)

    def _call(self, address: tuple[str, int] | str, side: Side) -> Caller:
        caller = Caller(address, side)
        self._stack.enter_context(caller.sock)
        return caller

    def client(self, slot: int = 0, name: str = "client") -> Caller:
        caller = self.dial(Side.CLIENT, slot)
        assert caller.authenticate(name, make_token(KEY, Role.CLIENT, name, "submit"))
        return caller

    def instance(self) -> tuple[InstanceId, str, str]:
        instance = self.table.open_row(0)
        name = instance.name("echo")
        return instance, name, make_token(KEY, Role.AGENT, name, f"{instance.row}:{instance.generation}")

    def agent(self, name: str, token: str, slot: int = 0, **extra: str) -> Caller:
        caller = self.dial(Side.AGENT, slot)
        assert caller.authenticate(name, token, **extra)
        return caller


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with ExitStack() as stack:
        yield Supervisor(tmp_path, stack)


# ---------------------------------------------------------------------------------------------------- begin and end


def test_serves_and_leaves(supervisor: Supervisor) -> None:
    member = supervisor.ready()
    assert member.seat.state == SeatState.READY
    assert (member.seat.pid, member.seat.incarnation) == (member.process.pid, 1)
    instance, name, token = supervisor.instance()
    agent, client = supervisor.agent(name, token), supervisor.client()
    claim = member.hear(Claim)
    assert (claim.row, claim.generation) == (instance.row, instance.generation)
    client.send(request(input=b"x"))
    number, asked = agent.next(ExecuteRequest)
    agent.complete(number, asked, "done")
    assert client.next(ExecuteResponse)[1].output == "done"
    member.tell(Leave())
    assert client.until_closed() == agent.until_closed() == "drain"
    assert member.hear(Released).connection == claim.connection
    for caller in (client, agent):
        caller.sock.close()
    assert member.exit_code() == 0
    assert eventually(lambda: member.seat.state) == SeatState.GONE
    assert member.seat.open_connections() == 0


def test_its_heart_beats(supervisor: Supervisor) -> None:
    member = supervisor.ready()
    first = member.seat.heartbeat_ns
    eventually(lambda: member.seat.heartbeat_ns > first + 2 * BEAT_S * 1e9)


def test_the_supervisors_death_is_its_own(supervisor: Supervisor) -> None:
    member = supervisor.ready()
    client = supervisor.client()
    client.send(request())
    begin = time.monotonic()
    member.channel.close()
    assert member.exit_code() == EXIT_ORPHANED
    assert time.monotonic() - begin < 2.0 * TIME_SCALE
    assert client.sock.recv(1) == b""


def test_without_a_supervisor_it_does_not_begin() -> None:
    ours, theirs = SupervisorEnd.pair()
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    ours.close()
    assert process.wait(10.0 * TIME_SCALE) == EXIT_ORPHANED


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("validator", "no_such_module"), ("seat", "expected EMPTY or GONE"), ("segment", "0 bytes")],
)
def test_a_worker_that_cannot_start_says_why(supervisor: Supervisor, tmp_path: Path, wrong: str, words: str) -> None:
    settings, segment_fd = Settings(tasks=TASKS), -1
    with (tmp_path / "no segment").open("w+b") as file:
        if wrong == "validator":
            settings = Settings(tasks=TASKS, security=SecurityConfig(validator="no_such_module:check"))
        elif wrong == "seat":
            Seat(supervisor.segment, 0).occupy(99, os.getpid())
        else:
            segment_fd = file.fileno()
        member = supervisor.spawn(settings=settings, segment_fd=segment_fd)
        assert words in member.hear(StartFailed).reason
        assert member.exit_code() == EXIT_CANNOT_START


# ------------------------------------------------------------------------------------------------ the supervisor's word


def test_drains_and_its_heir_serves_who_waited_at_the_door(supervisor: Supervisor) -> None:
    member = supervisor.ready()
    _, name, token = supervisor.instance()
    agent, client = supervisor.agent(name, token), supervisor.client()
    client.send(request())
    number, asked = agent.next(ExecuteRequest)
    member.tell(Drain(30.0))
    eventually(lambda: member.seat.state is SeatState.LEAVING)
    client.send(request())
    assert client.next(ErrorMessage)[1].error_code == ErrorCode.DRAINING
    late = supervisor.dial(Side.CLIENT)  # the kernel takes the connection; nobody accepts it
    heir = supervisor.ready(parity=1)
    assert late.authenticate("late", make_token(KEY, Role.CLIENT, "late", "submit"))
    assert heir.seat.open_connections() == 1
    agent.complete(number, asked, "finished")
    assert client.next(ExecuteResponse)[1].output == "finished"
    assert member.hear(Drained).abandoned == 0
    member.tell(Leave())
    for caller in (client, agent):
        assert caller.until_closed() == "drain"
        caller.sock.close()
    assert member.exit_code() == 0


@pytest.mark.parametrize("told", [Drain(30.0), Empty(30.0)])
def test_who_comes_by_the_unix_socket_to_a_worker_that_leaves_waits_for_another_one(
    supervisor: Supervisor, told: ToWorker
) -> None:
    member = supervisor.ready()
    _, name, token = supervisor.instance()
    assert supervisor.dial_locally(Side.AGENT).authenticate(name, token)
    member.tell(told)
    eventually(lambda: member.seat.state is SeatState.LEAVING)
    late = supervisor.dial_locally(Side.CLIENT)
    late.send(AuthRequest("late", make_token(KEY, Role.CLIENT, "late", "submit"), "test", "test", {}))
    assert not select.select([late.sock], [], [], 0.2)[0], "nobody accepts it"
    supervisor.ready(parity=1)
    assert isinstance(late._next_event(), AuthenticationAnswered)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_hung_up_on(supervisor: Supervisor) -> None:
    supervisor.ready()
    assert supervisor.dial_locally(Side.CLIENT).authenticate("us", make_token(KEY, Role.CLIENT, "us", "submit"))
    child = os.fork()
    if child == 0:  # no other program: another user may not be able to read this interpreter
        with suppress(BaseException):
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20.0)
                sock.connect(supervisor.local_name)
                os._exit(0 if sock.recv(1) == b"" else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_accepts_for_a_neighbour_as_long_as_it_is_asked_to(supervisor: Supervisor) -> None:
    member, neighbour = supervisor.ready(slot=1), supervisor.ready(slot=0)
    os.kill(neighbour.process.pid, signal.SIGSTOP)
    waiting = supervisor.dial(Side.CLIENT, slot=0)
    member.tell(Rescue(0), [supervisor.listener(0).fileno()])
    assert waiting.authenticate("waiting", make_token(KEY, Role.CLIENT, "waiting", "submit"))
    assert member.seat.open_connections() == 1
    member.tell(RescueOver(0))
    supervisor.client(slot=1)  # by then it has heard
    late = supervisor.dial(Side.CLIENT, slot=0)
    os.kill(neighbour.process.pid, signal.SIGCONT)
    assert late.authenticate("late", make_token(KEY, Role.CLIENT, "late", "submit"))
    assert (member.seat.open_connections(), neighbour.seat.open_connections()) == (2, 1)


@pytest.mark.parametrize("record", [Rescue(0), Link(0, 0, 9)])
def test_does_without_what_its_table_of_descriptors_has_no_room_for(
    supervisor: Supervisor, record: Rescue | Link
) -> None:
    """Then the record comes alone."""
    member = supervisor.ready(slot=1)
    member.tell(record)
    member.tell(Drain(0.1))
    assert member.hear(Drained).abandoned == 0


def test_a_drain_has_a_deadline(supervisor: Supervisor) -> None:
    member = supervisor.ready()
    client = supervisor.client()
    client.send(request())
    eventually(lambda: member.seat.segment.seat_part(0, "board")[1] == 1)
    member.tell(Drain(0.1))
    assert member.hear(Drained).abandoned == 1
    member.tell(Leave())
    assert client.next(ErrorMessage)[1].error_code == ErrorCode.DRAINING
    assert client.until_closed() == "drain"
    client.sock.close()
    assert member.exit_code() == 0


def test_rows_and_owners(supervisor: Supervisor) -> None:
    member = supervisor.ready()
    instance, name, token = supervisor.instance()
    first = supervisor.agent(name, token)
    claim = member.hear(Claim)
    member.tell(Disown(instance.row, instance.generation, claim.connection))
    assert first.until_closed().startswith("replaced")
    assert member.hear(Released).reason == "replaced"
    second = supervisor.agent(name, token)
    member.hear(Claim)
    supervisor.table.close_row(instance.row)
    member.tell(RowCleared(instance.row, instance.generation))
    assert second.until_closed().startswith("revoked")
    third = supervisor.dial(Side.AGENT)
    assert not third.authenticate(name, token)


def test_an_issued_agent_waits_for_its_row(supervisor: Supervisor) -> None:
    member = supervisor.ready()
    client = supervisor.client()
    client.send(request())
    agent = supervisor.agent("external", make_token(KEY, Role.AGENT, "external", "echo"))
    asked = member.hear(ExternalAgent)
    assert (asked.instance_id, asked.task) == ("external", "echo")
    row = supervisor.table.open_row(0, external=True, label="external")
    member.tell(ExternalRow(asked.request, row.row, row.generation))
    assert member.hear(Claim).row == row.row
    number, got = agent.next(ExecuteRequest)
    agent.complete(number, got, "done")
    assert client.next(ExecuteResponse)[1].output == "done"


def test_task_states_and_revocations(supervisor: Supervisor) -> None:
    member = supervisor.ready()
    kept, revoked = supervisor.client(name="kept"), supervisor.client(name="revoked")
    member.tell(TaskState("echo", False, "it crashes"))
    member.tell(Revocations(["revoked"]))
    assert revoked.until_closed().startswith("revoked")
    kept.send(request())
    _, refused = kept.next(ErrorMessage)
    assert (refused.error_code, refused.message) == (ErrorCode.DRAINING, "it crashes")
    early = supervisor.dial(Side.CLIENT)  # the new list replaces the old one
    name = "revoked before the start"
    assert early.authenticate(name, make_token(KEY, Role.CLIENT, name, "submit"))


def test_what_was_revoked_before_it_began(supervisor: Supervisor) -> None:
    supervisor.ready()
    name = "revoked before the start"
    assert not supervisor.dial(Side.CLIENT).authenticate(name, make_token(KEY, Role.CLIENT, name, "submit"))


def test_the_configured_validator_is_asked(supervisor: Supervisor) -> None:
    security = SecurityConfig(validator=f"{__name__}:accept_tests")
    supervisor.ready(settings=Settings(tasks=TASKS, security=security))
    assert supervisor.dial(Side.CLIENT).authenticate("anyone", "from the tests")
    assert not supervisor.dial(Side.CLIENT).authenticate("anyone", "from elsewhere")


def test_limits_come_from_the_settings(supervisor: Supervisor) -> None:
    supervisor.ready(settings=Settings(tasks=TASKS, connections=ConnectionManagerConfig(max_connections=1)))
    supervisor.client()
    second = supervisor.dial(Side.CLIENT)
    assert second.next(ErrorMessage)[1].error_code == ErrorCode.OVERLOADED


# ------------------------------------------------------------------------------------------------------- neighbours


def test_two_workers_and_the_death_of_one(supervisor: Supervisor) -> None:
    origin, other = supervisor.ready(slot=0), supervisor.ready(slot=1)
    supervisor.link((0, origin), (1, other))
    instance, name, token = supervisor.instance()
    agent, client = supervisor.agent(name, token, slot=1), supervisor.client(slot=0)
    other.hear(Claim)
    client.send(request(input=b"x"))
    _, asked = agent.next(ExecuteRequest)
    assert asked.execution_id
    other.process.send_signal(signal.SIGKILL)
    other.exit_code()
    back = supervisor.agent(name, token, slot=0, running=asked.execution_id)
    assert origin.hear(Claim).row == instance.row
    back.complete(0, asked, "after all")
    assert client.next(ExecuteResponse)[1].output == "after all"
    with pytest.raises(ChannelClosed):
        other.hear(StartFailed)
    lost = other.seat.book_crash()
    assert (lost.connections, lost.executions) == (1, 0)


# --------------------------------------------------------------------------------------------------------- validators


def test_a_worker_that_is_emptied_gives_its_connections_to_its_neighbour(supervisor: Supervisor) -> None:
    members = [supervisor.ready(slot) for slot in (0, 1)]
    supervisor.link((0, members[0]), (1, members[1]))
    instance, name, token = supervisor.instance()
    agent, client = supervisor.agent(name, token), supervisor.client()
    claim = members[0].hear(Claim)
    client.send(request(input=b"x"))
    number, asked = agent.next(ExecuteRequest)
    members[0].tell(Empty(30.0))
    eventually(lambda: members[0].seat.state == SeatState.LEAVING)
    agent.send(ExecuteResponse("echo", ExecutionStatus.COMPLETED, "first", execution_id=asked.execution_id), number)
    assert client.next(ExecuteResponse)[1].output == "first"
    assert members[0].hear(Emptied) == Emptied(handed_over=2, closed=0, awaited=1)
    assert members[1].hear(Claim) == claim
    members[0].tell(Leave())
    assert members[0].exit_code() == 0
    client.send(request(input=b"y"))
    number, asked = agent.next(ExecuteRequest)
    agent.send(ExecuteResponse("echo", ExecutionStatus.COMPLETED, "second", execution_id=asked.execution_id), number)
    assert client.next(ExecuteResponse)[1].output == "second"
    assert [member.seat.open_connections() for member in members] == [0, 2]
    assert not [record for record in members[0].told if isinstance(record, Released)]
    assert instance.row == claim.row
    members[1].tell(Leave())


def test_validators_are_found_by_name() -> None:
    assert load_validator(None) is None
    found = load_validator(f"{__name__}:accept_tests")
    assert found is not None
    assert found("anyone", "from the tests") is not None


@pytest.mark.parametrize(
    "name", ["no_such_module:check", f"{__name__}:no_such_name", f"{__name__}:EPOCH", "tests.worker.raises:check"]
)
def test_wrong_validators_are_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    name = name.replace("tests.worker.raises", "raises")
    with pytest.raises(ConfigError, match=name):
        load_validator(name)
