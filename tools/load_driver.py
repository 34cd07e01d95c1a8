"""One process of the load harness at work: it holds connections, keeps the pace, and checks every answer.

The protocol is `spearpool.protocol.session` on the client's side. Closed loop: as many units as `concurrency` are
always under way. Open loop: unit k is due at start + k / rate whatever happens, and its latency counts from then, so
that a pool that stalls cannot hide it by making the harness wait (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Coroutine
from math import inf
from typing import Any, cast

from load_plan import EXPECTATIONS, Outcome, Plan, Tally, Unit

from spearpool import __version__
from spearpool.backoff import Backoff
from spearpool.errors import AuthenticationError, ConnectionLost, ErrorCode
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import (
    UNSET,
    AuthRequest,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    HeartbeatStatus,
    Payload,
    Timestamp,
)
from spearpool.protocol.session import (
    AuthenticationAnswered,
    Closed,
    Received,
    Session,
    SessionEvent,
    SessionSettings,
    Side,
    Violated,
)

__all__ = ["Drive"]

CONNECT_TIMEOUT_S = 10.0
MAX_CONNECTING = 64
PACE_S = 0.001
"""How often an open loop looks for what is due."""

RECONNECT = Backoff(base_s=0.02, cap_s=1.0)
SETTINGS = SessionSettings(
    auth_timeout_s=CONNECT_TIMEOUT_S,
    heartbeat_interval_s=inf,
    heartbeat_timeout_s=inf,  # what a silent pool owes is counted as missing
    connection_timeout_s=inf,
    max_message_bytes=64 * 1024 * 1024,
)
FILLER = b"The quick brown fox jumps over the lazy dog. "


class Connection(asyncio.Protocol):
    """One connection, what is under way on it, and its `share` of a closed loop."""

    def __init__(self, drive: Drive, share: int) -> None:
        self.share = share
        self.under_way: dict[int, Unit] = {}
        self.authenticated: asyncio.Future[None] = drive.loop.create_future()
        self._drive = drive
        self._session = Session(Side.CLIENT, SETTINGS, time.monotonic())
        self._transport: asyncio.Transport | None = None
        self._highest_id = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own does not inherit from it
        plan = self._drive.plan
        self._drive.tally.counts["connections_opened"] += 1
        self._session.send(AuthRequest(f"loadtest-{plan.index}", plan.token, __version__, "loadtest", {}))
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._drive.tally.counts["bytes_in"] += len(data)
        for event in self._session.receive_data(data, time.monotonic()):
            self._handle(event)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        if not self.authenticated.done():
            self.authenticated.set_exception(ConnectionLost("the pool closed before it answered the AuthRequest"))
        self._drive.lost(self)

    def send(self, payload: Payload, unit: Unit) -> None:
        """Queue a request; `flush` writes what is queued."""
        self._highest_id = self._session.send(payload)
        self.under_way[self._highest_id] = unit
        self._drive.tally.counts["sent"] += 1

    def flush(self) -> None:
        """One write for everything that is queued."""
        data = self._session.data_to_send()
        counts = self._drive.tally.counts
        counts["messages_out"] += len(self._session.take_sent())
        counts["bytes_out"] += len(data)
        if data and self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """Say goodbye and go."""
        self._session.close(CloseReason.DRAIN)
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def _handle(self, event: SessionEvent) -> None:
        tally = self._drive.tally
        match event:
            case Received(number, payload):
                tally.counts["messages_in"] += 1
                if not (isinstance(payload, ExecuteResponse) and not payload.status.final):
                    self._answered(number, payload)
            case AuthenticationAnswered(response, _):
                tally.counts["messages_in"] += 1
                if response.success:
                    tally.counts["authenticated"] += 1
                    self.authenticated.set_result(None)
                else:
                    self.authenticated.set_exception(AuthenticationError(response.error_message or "no reason given"))
            case Violated(error):
                tally.errors[f"protocol {error.code}"] += 1
            case Closed():
                if self._transport is not None:
                    self._transport.close()

    def _answered(self, request_id: int, payload: Payload) -> None:
        unit = self.under_way.pop(request_id, None)
        if unit is not None:
            self._drive.judge(unit, payload)
            self._drive.ended(self)
        elif isinstance(payload, ExecuteResponse | ErrorMessage):  # other heartbeats are the pool's own
            self._drive.tally.counts["duplicate" if 0 < request_id <= self._highest_id else "stray"] += 1


class Drive:
    """A process's connections, pace and tally. Call `prepare`, then `run`; ask `outcome` at any time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = asyncio.get_running_loop()
        self.tally = Tally()
        self._expectation = EXPECTATIONS[plan.expect]
        self._filler = FILLER * (plan.payload_bytes // len(FILLER) + 1)
        self._connections: list[Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connecting = asyncio.Semaphore(plan.connections if plan.mode == "connect" else MAX_CONNECTING)
        self._due: deque[int] = deque()
        self._due_count = 0
        self._serial = 0
        self._turn = 0
        self._start_ns = 0
        self._end_ns = 0

    async def prepare(self) -> None:
        """Open the connections that stay. Raises `OSError`, `TimeoutError`, `ConnectionLost`, `AuthenticationError`."""
        if self.plan.mode == "connect":
            return
        each, more = divmod(self.plan.concurrency, self.plan.connections)
        async with asyncio.TaskGroup() as group:
            for index in range(self.plan.connections):
                group.create_task(self._open(each + (index < more)))

    async def run(self, start_s: float) -> None:
        """Work from the monotonic time `start_s` on, then wait for what is owed."""
        self._start_ns = int(start_s * 1e9)
        self._end_ns = self._start_ns + int(self.plan.duration_s * 1e9)
        await asyncio.sleep(max(0.0, start_s - time.monotonic()))
        if not self.plan.rate:
            self._fill()
        while self._begins():
            if self.plan.rate:
                self._pace()
            await asyncio.sleep(PACE_S if self.plan.rate else 0.02)
        if self.plan.rate:
            self._pace()
        await self._drain()

    def stop(self) -> None:
        """Begin nothing more; answers that are owed are still waited for."""
        self._end_ns = min(self._end_ns, time.monotonic_ns())

    def outcome(self) -> Outcome:
        """`elapsed_s` ends with the last right answer, or with the time to begin things if that was later."""
        end_ns = max(self.tally.last_ns, min(time.monotonic_ns(), self._end_ns))
        return self.tally.outcome(max(0, end_ns - self._start_ns) / 1e9)

    def _begins(self) -> bool:
        return time.monotonic_ns() < self._end_ns

    # Pace

    def _fill(self) -> None:
        """Closed loop: begin as many units as are to be under way."""
        if self.plan.mode == "connect":
            for _ in range(self.plan.connections):
                self._keep(self._connect_on_and_on())
        for connection in list(self._connections):
            self._begin_share(connection)

    def _begin_share(self, connection: Connection) -> None:
        for _ in range(connection.share):
            self._begin(connection, time.monotonic_ns())
        connection.flush()

    def ended(self, connection: Connection) -> None:
        """A unit ended: a closed loop begins another in its place. The connection flushes itself."""
        if not self.plan.rate and self._begins():
            self._begin(connection, time.monotonic_ns())

    def _pace(self) -> None:
        """Open loop: note what is due, and begin it as far as there are connections."""
        until_ns = min(time.monotonic_ns(), self._end_ns)
        while (due := self._start_ns + int(self._due_count * 1e9 / self.plan.rate)) <= until_ns:
            self._due.append(due)
            self._due_count += 1
        if self.plan.mode == "connect":
            while self._due:
                self._keep(self._connect_once(self._due.popleft()))
            return
        used = set()
        while self._due and self._connections:
            connection = self._connections[self._turn % len(self._connections)]
            self._turn += 1
            self._begin(connection, self._due.popleft())
            used.add(connection)
        for connection in used:
            connection.flush()

    async def _drain(self) -> None:
        """Wait for what is owed, count what did not come, close everything."""
        end = time.monotonic() + self.plan.drain_s
        # An Event would cost every answer a look.
        while time.monotonic() < end and self._owed():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self.tally.counts["missing"] += sum(len(each.under_way) for each in self._connections)
        self.tally.errors["not sent"] += len(self._due)
        for task in self._tasks:
            task.cancel()
        leaving, self._connections = self._connections, []
        for connection in leaving:
            connection.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _owed(self) -> bool:
        return bool(self._tasks) or any(connection.under_way for connection in self._connections)

    # Units

    def _begin(self, connection: Connection, intended_ns: int) -> None:
        self._serial += 1
        if self.plan.mode == "heartbeat":
            heartbeat = Heartbeat(Timestamp.from_ns(time.time_ns()), self._serial, HeartbeatStatus.ACTIVE)
            connection.send(heartbeat, Unit(intended_ns, b"%d" % self._serial))
            return
        head = b"%d-%d " % (self.plan.index, self._serial)  # no two inputs are equal
        sent = head + self._filler[: max(0, self.plan.payload_bytes - len(head))]
        request = ExecuteRequest(self.plan.task, "", [], {}, input_data=sent)
        connection.send(request, Unit(intended_ns, self._expectation.derive(sent)))

    def judge(self, unit: Unit, payload: Payload) -> None:
        """Count the end of a unit."""
        match payload:
            case ExecuteResponse(status=ExecutionStatus.COMPLETED, output=output, output_data=data):
                answer = output.encode() if output is not None else data if data is not UNSET else b""
                self.tally.compare(unit, self._expectation.read(answer))
            case ExecuteResponse(status=ExecutionStatus.FAILED, error_code=ErrorCode.OUTCOME_UNKNOWN):
                self.tally.errors["outcome unknown"] += 1
            case ExecuteResponse(status=status):
                self.tally.errors[status.value.lower()] += 1
            case ErrorMessage(error_code=code):
                self.tally.errors[f"error {code}"] += 1
            case Heartbeat(sequence=sequence):
                self.tally.compare(unit, b"%d" % sequence)

    # Connections

    async def _open(self, share: int) -> Connection:
        """One more connection that stays."""
        async with self._connecting:
            connection = await self._connect(share)
        self._connections.append(connection)
        return connection

    async def _connect(self, share: int = 0) -> Connection:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            plan = self.plan
            _, connection = await self.loop.create_connection(lambda: Connection(self, share), plan.host, plan.port)
            try:
                await connection.authenticated
            except BaseException:
                connection.close()
                raise
        return connection

    def lost(self, connection: Connection) -> None:
        """A connection ended. What was under way on it gets no answer; another takes its place."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self.tally.counts["connections_lost"] += 1
        self.tally.errors["connection lost"] += len(connection.under_way)
        if self._begins():
            self._keep(self._reconnect(connection.share))

    async def _reconnect(self, share: int) -> None:
        attempt = 0
        while self._begins():
            await asyncio.sleep(RECONNECT.delay_s(attempt, random.random()))
            attempt += 1
            try:
                connection = await self._open(share)
            except (OSError, TimeoutError, ConnectionLost, AuthenticationError) as error:
                self.tally.errors[f"reconnect: {_kind(error)}"] += 1
                continue
            self.tally.counts["reconnects"] += 1
            if not self.plan.rate and self._begins():
                self._begin_share(connection)
            return

    async def _connect_on_and_on(self) -> None:
        while self._begins():
            await self._connect_once(time.monotonic_ns())

    async def _connect_once(self, intended_ns: int) -> None:
        """A unit of mode `connect`: dial, authenticate, leave."""
        owed = self.tally.errors, "not sent"
        try:
            async with self._connecting:
                owed = self.tally.counts, "missing"
                self.tally.counts["sent"] += 1
                connection = await self._connect()
        except (OSError, TimeoutError, ConnectionLost, AuthenticationError) as error:
            self.tally.errors[f"connect: {_kind(error)}"] += 1
            await asyncio.sleep(0.01)  # a closed loop must not spin on a refusal
        except asyncio.CancelledError:
            counter, name = owed
            counter[name] += 1
            raise
        else:
            self.tally.complete(Unit(intended_ns))
            connection.close()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _kind(error: Exception) -> str:
    """`ConnectionRefusedError` → `connection refused`."""
    name = type(error).__name__.removesuffix("Error")
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
