from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from spearpool.config import ConnectionManagerConfig
from spearpool.errors import ErrorCode
from spearpool.metrics import SeatState
from spearpool.metrics.vocabulary import Pause
from spearpool.protocol.events import AuthenticationFailed, CloseReason
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.messages import (
    UNSET,
    Custom,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    Signal,
    SignalName,
)
from spearpool.protocol.session import Side
from spearpool.worker.agents import LAST_WORDS_S
from spearpool.worker.control import (
    AgentPaused,
    Claim,
    Disown,
    ExternalAgent,
    ExternalRow,
    Released,
    RowCleared,
    SignalAgent,
)
from tests.conftest import eventually_async

from .peers import Peer, agent, client, request
from .workers import Pool, Worker, new_pool

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def one_worker(directory: Path) -> AsyncIterator[tuple[Pool, Worker]]:
    async with new_pool(directory) as pool:
        yield pool, await pool.worker()


def free(worker: Worker, task: str) -> int:
    return worker.executions.dispatcher.snapshot().tasks[task].free


# --------------------------------------------------------------------------------------------------- launched agents


async def test_is_claimed_and_released(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("echo")
        begin = time.monotonic_ns()
        peer = await agent(worker, name, token)
        (claim,) = worker.records(Claim)
        assert (claim.row, claim.generation) == (instance.row, instance.generation)
        assert begin - 1e9 < claim.connected_ns <= claim.authenticated_ns <= time.monotonic_ns()
        assert worker.connections.connection(claim.connection) is not None
        assert worker.seat.agent(instance.row)[:3] == (instance.generation, 1, 0)
        peer.close()
        await eventually_async(lambda: worker.records(Released))
        (released,) = worker.records(Released)
        assert released == Released(instance.row, instance.generation, claim.connection, "peer")
        assert worker.seat.agent(instance.row)[:3] == (instance.generation, 0, 0)
        assert free(worker, "echo") == 0


async def test_a_second_connection_is_claimed_before_the_first_is_released(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("echo")
        older = await agent(worker, name, token)
        newer = await agent(worker, name, token)
        await older.until_closed()
        first, second = worker.records(Claim)
        assert worker.records(Released) == [
            Released(instance.row, instance.generation, first.connection, CloseReason.REPLACED.value)
        ]
        assert second.connection > first.connection
        assert worker.seat.agent(instance.row)[:3] == (instance.generation, 1, 0)
        newer.close()


@pytest.mark.parametrize(
    ("declared", "capacity"),
    [({}, 3), ({"concurrency": "1"}, 2), ({"concurrency": "2"}, 3), ({"concurrency": "99"}, 3)]
    + [({"concurrency": wrong}, 3) for wrong in ("", "many", "-1", "٣" * 9, "9" * 50)]
    + [({"concurrency": "0"}, 2)],
)
async def test_its_capacity_is_the_tasks_or_less(tmp_path: Path, declared: dict[str, str], capacity: int) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        _, name, token = pool.instance("slow")  # concurrency 2, prefetch 1
        peer = await agent(worker, name, token, **declared)
        assert free(worker, "slow") == capacity
        peer.close()


async def test_shows_what_it_has_in_flight(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("slow")
        peer = await agent(worker, name, token)
        caller = await client(worker)
        for _ in range(2):
            caller.send(request("slow"))
        (number, asked), _ = await peer.message(), await peer.message()
        assert worker.seat.agent(instance.row)[:3] == (instance.generation, 1, 2)
        assert isinstance(asked, ExecuteRequest)
        peer.complete(number, asked, "x")
        await caller.next(ExecuteResponse)
        assert worker.seat.agent(instance.row)[:3] == (instance.generation, 1, 1)
        caller.close()
        peer.close()


async def test_named_executions_count(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        _, name, token = pool.instance("slow")
        peer = await agent(worker, name, token, running="9-1-1-1,,9-1-1-2,9-1-1-2")
        assert free(worker, "slow") == 1
        peer.close()


async def test_who_is_of_no_task_here_is_refused(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        peer = await Peer(Side.AGENT).open(worker.port)
        answer = await peer.authenticate("stray", pool.issued_token("zebra", "stray"))
        assert answer is not None
        assert not answer.success
        failed = [event for _, event in worker.events if isinstance(event, AuthenticationFailed)]
        assert "a task that this pool does not have" in failed[0].cause
        assert not worker.told
        await peer.until_closed()


# ---------------------------------------------------------------------------------------------------- issued tokens


async def test_an_issued_agent_gets_its_row_first(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        caller = await client(worker)
        sent = caller.send(request())
        peer = await agent(worker, "external", pool.issued_token("echo", "external"))
        (asked,) = worker.records(ExternalAgent)
        assert (asked.instance_id, asked.task) == ("external", "echo")
        assert not worker.records(Claim)
        assert worker.executions.dispatcher.snapshot().queued == 1
        row = pool.table.open_row(0, external=True, label="external")
        worker.executions.agents.external_row(ExternalRow(asked.request, row.row, row.generation))
        (claim,) = worker.records(Claim)
        assert InstanceId(claim.row, claim.generation) == row
        number, got = await peer.message()
        assert isinstance(got, ExecuteRequest)
        peer.complete(number, got, "x")
        assert (await caller.next(ExecuteResponse, sent)).output == "x"
        caller.close()
        peer.close()
        await eventually_async(lambda: worker.records(Released))


async def test_no_room_for_an_issued_agent(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        peer = await agent(worker, "external", pool.issued_token("echo", "external"))
        (asked,) = worker.records(ExternalAgent)
        worker.executions.agents.external_row(ExternalRow(asked.request, 0, 0))
        assert (await peer.until_closed()).startswith("overloaded")
        assert not worker.records(Claim)
        assert not worker.records(Released)


async def test_an_issued_agent_that_has_gone_gives_its_row_back(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        peer = await agent(worker, "external", pool.issued_token("echo", "external"))
        (asked,) = worker.records(ExternalAgent)
        peer.close()
        await eventually_async(lambda: len(worker.connections) == 0)
        worker.executions.agents.external_row(ExternalRow(asked.request, 5, 1))
        (claim,), (released,) = worker.records(Claim), worker.records(Released)
        assert (released.row, released.generation, released.connection) == (5, 1, claim.connection)
        assert free(worker, "echo") == 0


async def test_an_issued_agent_that_comes_back_with_another_row_is_the_same(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        caller, token = await client(worker), pool.issued_token("echo", "external")
        first = await agent(worker, "external", token)
        worker.executions.agents.external_row(ExternalRow(worker.records(ExternalAgent)[0].request, 5, 1))
        caller.send(request())
        _, asked = await first.message()
        first.abort()
        assert isinstance(asked, ExecuteRequest)
        assert asked.execution_id is not UNSET
        second = await agent(worker, "external", token, running=asked.execution_id)
        second.complete(0, asked, "at once, before its row")
        assert (await caller.next(ExecuteResponse)).output == "at once, before its row"
        worker.executions.agents.external_row(ExternalRow(worker.records(ExternalAgent)[1].request, 6, 1))
        caller.close()
        second.close()


# -------------------------------------------------------------------------------------------- the supervisor's word


async def test_disowned_by_a_newer_connection_elsewhere(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("echo")
        peer = await agent(worker, name, token)
        (claim,) = worker.records(Claim)
        agents = worker.executions.agents
        agents.disown(Disown(instance.row, instance.generation, claim.connection + 1))
        agents.disown(Disown(instance.row, instance.generation + 1, claim.connection))
        assert len(worker.connections) == 1
        agents.disown(Disown(instance.row, instance.generation, claim.connection))
        assert (await peer.until_closed()).startswith("replaced")


async def test_a_cleared_row_ends_it_and_what_it_had(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("echo")
        peer = await agent(worker, name, token)
        caller = await client(worker)
        caller.send(request())
        await peer.message()
        worker.executions.agents.row_cleared(RowCleared(instance.row, instance.generation))
        assert (await peer.until_closed()).startswith("revoked")
        begin = time.monotonic()
        answer = await caller.next(ExecuteResponse)
        assert answer.error_code == ErrorCode.OUTCOME_UNKNOWN
        assert time.monotonic() - begin < 1.5, "it waited for an agent that cannot come back"
        caller.close()


async def test_last_words_are_heard_after_the_row_was_cleared(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("echo")
        peer = await agent(worker, name, token)
        caller = await client(worker)
        for _ in range(2):
            caller.send(request())
        number, asked = await peer.message()
        assert isinstance(asked, ExecuteRequest)
        worker.executions.agents.row_cleared(RowCleared(instance.row, instance.generation))
        await asyncio.sleep(LAST_WORDS_S / 4)
        peer.complete(number, asked, "just before the end")
        assert (await caller.next(ExecuteResponse)).output == "just before the end"
        assert worker.executions.dispatcher.snapshot().queued == 1, "no new work for the dead"
        peer.abort()
        caller.close()


async def test_a_row_that_is_not_here_still_ends_what_it_had(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("echo")
        peer = await agent(worker, name, token)
        caller = await client(worker)
        caller.send(request())
        await peer.message()
        peer.abort()
        await eventually_async(lambda: worker.executions.dispatcher.snapshot().lost == 1)
        worker.executions.agents.row_cleared(RowCleared(instance.row, instance.generation))
        assert (await caller.next(ExecuteResponse)).error_code == ErrorCode.OUTCOME_UNKNOWN
        caller.close()


@pytest.mark.parametrize(
    ("word", "signal", "goes_on"),
    [
        ("Pause", SignalName.PAUSE, True),
        ("reload-model", Custom("reload-model"), True),
        ("Terminate", SignalName.TERMINATE, False),
        ("Restart", SignalName.RESTART, False),
    ],
)
async def test_passes_signals_on(tmp_path: Path, word: str, signal: object, goes_on: bool) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("echo")
        peer = await agent(worker, name, token)
        worker.executions.agents.signal(SignalAgent(instance.row, instance.generation + 1, word))
        worker.executions.agents.signal(SignalAgent(instance.row, instance.generation, word))
        got = await peer.next(Signal)
        assert (got.signal_type, got.execution_id) == (signal, UNSET)
        assert free(worker, "echo") == goes_on
        peer.close()


async def test_agents_may_not_submit(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        _, name, token = pool.instance("echo")
        peer = await agent(worker, name, token)
        number = peer.session._next_id
        raw = peer.session.codec.encode(request(), number, 0)
        peer.send_raw(len(raw).to_bytes(4, "big") + raw)
        assert (await peer.next(ErrorMessage, number)).error_code == ErrorCode.REFUSED
        assert len(worker.connections) == 1
        peer.close()


# --------------------------------------------------------------------------------------------------------------- pauses


def pause(pool: Pool, instance: InstanceId, what: Pause) -> None:
    """As the supervisor does it: in the table first, and then to everybody."""
    pool.table.set_pause(instance.row, what)
    for worker in pool.workers:
        worker.executions.agents.pause(AgentPaused(instance.row, instance.generation, what))


async def test_a_paused_agent_finishes_what_it_has_and_gets_nothing(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("slow")
        peer, caller = await agent(worker, name, token), await client(worker)
        caller.send(request("slow"))
        number, asked = await peer.message()
        pause(pool, instance, Pause.DISPATCH)
        assert free(worker, "slow") == 0
        caller.send(request("slow"))
        assert isinstance(asked, ExecuteRequest)
        peer.complete(number, asked, "it goes on")
        assert (await caller.next(ExecuteResponse)).output == "it goes on"
        assert worker.executions.dispatcher.snapshot().queued == 1
        assert (free(worker, "slow"), peer.inbox) == (0, deque())
        pause(pool, instance, Pause.NONE)
        await peer.next(ExecuteRequest)
        assert free(worker, "slow") == 2
        caller.close()
        peer.close()


async def test_who_comes_back_is_still_paused(tmp_path: Path) -> None:
    async with one_worker(tmp_path) as (pool, worker):
        instance, name, token = pool.instance("echo")
        pause(pool, instance, Pause.DISPATCH)
        caller = await client(worker)
        caller.send(request())
        for _ in range(2):
            peer = await agent(worker, name, token)
            await eventually_async(lambda: worker.seat.agent(instance.row).connections == 1)
            assert (free(worker, "echo"), worker.executions.dispatcher.snapshot().queued) == (0, 1)
            peer.abort()
            await eventually_async(lambda: worker.seat.agent(instance.row).connections == 0)
        peer = await agent(worker, name, token)
        pause(pool, instance, Pause.NONE)
        await peer.next(ExecuteRequest)
        caller.close()
        peer.close()


async def test_who_moves_is_paused_there_and_may_be_resumed_on_the_way(tmp_path: Path) -> None:
    async with new_pool(tmp_path) as pool:
        here, there = await pool.worker(), await pool.worker()
        await pool.link(here, there)
        for resume_early in (False, True):
            instance, name, token = pool.instance("echo")
            peer = await agent(here, name, token)
            pause(pool, instance, Pause.DISPATCH)
            (connection,) = here.connections
            assert here.mover._give(connection, there.seat.index)
            if resume_early:
                pause(pool, instance, Pause.NONE)
            await eventually_async(lambda: there.records(Claim))
            there.told.clear()
            assert free(there, "echo") == int(resume_early)
            if not resume_early:
                pause(pool, instance, Pause.NONE)
            assert (free(there, "echo"), free(here, "echo")) == (1, 0)
            peer.close()
            await eventually_async(lambda: not len(there.connections))


async def test_who_moves_and_stays_after_all_is_still_paused(tmp_path: Path) -> None:
    async with new_pool(tmp_path) as pool:
        here, there = await pool.worker(), await pool.worker()
        await pool.link(here, there)
        instance, name, token = pool.instance("echo")
        peer = await agent(here, name, token)
        (connection,) = here.connections
        there.seat.state = SeatState.LEAVING  # it refuses
        assert here.mover._give(connection, there.seat.index)
        pause(pool, instance, Pause.DISPATCH)
        await eventually_async(lambda: not connection.moving)
        assert free(here, "echo") == 0
        pause(pool, instance, Pause.NONE)
        assert free(here, "echo") == 1
        peer.close()


async def test_nothing_is_expected_of_one_whose_processes_are_stopped(tmp_path: Path) -> None:
    config = ConnectionManagerConfig(heartbeat_interval=0.05, heartbeat_timeout=0.2)
    async with new_pool(tmp_path) as pool:
        worker = await pool.worker(config)
        instance, name, token = pool.instance("echo")
        silent = await agent(worker, name, token)
        pause(pool, instance, Pause.PROCESS)
        (connection,) = worker.connections
        await asyncio.sleep(0.5)  # more than two timeouts: this is a test of nothing happening
        assert (connection.ended, worker.records(Released)) == (False, [])
        pause(pool, instance, Pause.NONE)
        assert not connection.ended
        await eventually_async(lambda: connection.ended)
        (released,) = worker.records(Released)
        assert released.reason == CloseReason.HEARTBEAT_TIMEOUT.value
        silent.abort()
