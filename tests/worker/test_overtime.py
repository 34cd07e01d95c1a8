"""Executions that run too long, over real connections; who is stuck for good is killed in `integration/test_stuck`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from spearpool.config import ResourceLimits, TaskConfig
from spearpool.protocol.messages import ExecuteRequest, ExecuteResponse, ExecutionStatus, Signal, SignalName
from spearpool.worker.control import Overran
from tests.conftest import eventually_async

from .peers import Peer, agent, client, request
from .workers import Worker, new_pool

pytestmark = pytest.mark.asyncio

LIMIT_S = 0.1
TIMED = {"slow": TaskConfig(target="python:a:b", prefetch=1, limits=ResourceLimits(execution_timeout_s=LIMIT_S))}
WORDS = f"it ran longer than the limit of its task, execution_timeout_s = {LIMIT_S}"


async def asked(server: Peer) -> tuple[int, ExecuteRequest]:
    number, payload = await server.message()
    assert isinstance(payload, ExecuteRequest), payload
    return number, payload


async def cut_short(server: Peer, payload: ExecuteRequest) -> None:
    """The agent is told to let go of it."""
    told = await server.next(Signal)
    assert (told.signal_type, told.execution_id) == (SignalName.TERMINATE, payload.execution_id)


def overruns(worker: Worker) -> list[bool]:
    """What the supervisor was told: whether the agent was stuck each time."""
    return [record.held_s > 0 for record in worker.records(Overran)]


async def test_the_client_is_told_and_the_agent_keeps_its_place_until_it_lets_go(tmp_path: Path) -> None:
    async with new_pool(tmp_path, TIMED) as pool:
        worker = await pool.worker()
        instance, name, token = pool.instance("slow")
        server, caller = await agent(worker, name, token), await client(worker)
        caller.send(request("slow"))
        number, payload = await asked(server)
        answer = await caller.next(ExecuteResponse)
        assert (answer.status, answer.error) == (ExecutionStatus.TIMEOUT, WORDS)
        assert worker.executed("slow", "timeout") == worker.executed("slow", "received") == 1
        await cut_short(server, payload)
        assert worker.seat.agent(instance.row).in_flight == 1
        assert overruns(worker) == [False]
        server.complete(number, payload, "too late")
        await eventually_async(lambda: not worker.seat.agent(instance.row).in_flight)
        caller.send(request("slow"))
        number, payload = await asked(server)
        server.complete(number, payload, "in time")
        assert (await caller.next(ExecuteResponse)).output == "in time"
        assert overruns(worker) == [False]
        assert worker.seat.agent(instance.row).executions == 2
        server.close()
        caller.close()


async def test_who_does_not_let_go_is_told_of(tmp_path: Path) -> None:
    async with new_pool(tmp_path, TIMED) as pool:
        worker = await pool.worker()
        instance, name, token = pool.instance("slow")
        server, caller = await agent(worker, name, token), await client(worker)
        caller.send(request("slow", timeout=1, deadline_ms=10))  # its own deadline does not take it off the agent
        _, payload = await asked(server)
        assert (await caller.next(ExecuteResponse)).error == "the deadline passed"
        await eventually_async(lambda: len(overruns(worker)) == 2)
        assert overruns(worker) == [False, True]
        record = worker.records(Overran)[1]
        assert (record.row, record.generation) == (instance.row, instance.generation)
        assert record.execution_id == payload.execution_id
        server.close()
        caller.close()


async def test_what_waits_inside_the_instance_has_its_time_before_it(tmp_path: Path) -> None:
    async with new_pool(tmp_path, TIMED) as pool:
        worker = await pool.worker()
        _, name, token = pool.instance("slow")
        server, caller = await agent(worker, name, token), await client(worker)
        first, second = caller.send(request("slow")), caller.send(request("slow"))
        number, payload = await asked(server)
        behind, waiting = await asked(server)
        assert (await caller.next(ExecuteResponse, first)).status is ExecutionStatus.TIMEOUT
        await cut_short(server, payload)
        await asyncio.sleep(0)
        server.complete(number, payload, "")
        server.complete(behind, waiting, "in time")
        assert (await caller.next(ExecuteResponse, second)).output == "in time"
        server.close()
        caller.close()


async def test_a_neighbours_execution_counts_where_it_runs(tmp_path: Path) -> None:
    async with new_pool(tmp_path, TIMED) as pool:
        near, far = await pool.worker(), await pool.worker()
        await pool.link(near, far)
        await eventually_async(lambda: near.executions.links.get(2) and far.executions.links.get(1))
        _, name, token = pool.instance("slow")
        server, caller = await agent(far, name, token), await client(near)
        caller.send(request("slow"))
        _, payload = await asked(server)
        answer = await caller.next(ExecuteResponse)
        assert (answer.status, answer.error) == (ExecutionStatus.TIMEOUT, WORDS)
        await cut_short(server, payload)
        assert (overruns(near), overruns(far)[0]) == ([], False)
        assert near.executed("slow", "timeout") == 1
        server.close()
        caller.close()


async def test_an_agent_that_was_lost_and_came_back_goes_on_under_the_limit(tmp_path: Path) -> None:
    async with new_pool(tmp_path, TIMED) as pool:
        worker, other = await pool.worker(), await pool.worker()
        await pool.link(worker, other)
        await eventually_async(lambda: worker.executions.links.get(2) and other.executions.links.get(1))
        _, name, token = pool.instance("slow")
        for where in (worker, other):
            server, caller = await agent(worker, name, token), await client(worker)
            caller.send(request("slow"))
            _, payload = await asked(server)
            server.abort()
            again = await agent(where, name, token, running=str(payload.execution_id))
            answer = await caller.next(ExecuteResponse)
            assert (answer.status, answer.error) == (ExecutionStatus.TIMEOUT, WORDS)
            await cut_short(again, payload)
            again.close()
            caller.close()
