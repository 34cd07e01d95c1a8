"""Executions over real connections in one worker. Several workers: `test_links`; who agents are: `test_agents`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from spearpool.config import ConnectionManagerConfig, TaskConfig
from spearpool.errors import ErrorCode
from spearpool.packing import replace
from spearpool.protocol.identifiers import execution_incarnation
from spearpool.protocol.messages import (
    UNSET,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionMode,
    ExecutionStatus,
    Signal,
    SignalName,
    StreamData,
)
from spearpool.worker.books import REATTACH_GRACE_S
from tests.conftest import eventually_async

from .peers import Peer, agent, client, request
from .workers import TASKS, Pool, Worker, new_pool

pytestmark = pytest.mark.asyncio


class House:
    """One worker with one client; agents as the test wants them."""

    def __init__(self, pool: Pool, worker: Worker, caller: Peer) -> None:
        self.pool = pool
        self.worker = worker
        self.caller = caller
        self.peers = [caller]
        self.servers: list[asyncio.Task[None]] = []

    async def agent(self, task: str = "echo", **extra: str) -> Peer:
        _, name, token = self.pool.instance(task)
        peer = await agent(self.worker, name, token, **extra)
        self.peers.append(peer)
        return peer

    async def echo(self, task: str = "echo") -> None:
        """An agent that answers by itself."""
        peer = await self.agent(task)
        self.servers.append(asyncio.create_task(peer.serve(lambda asked: (asked.input_data or b"").decode())))

    async def asked(self, peer: Peer) -> tuple[int, ExecuteRequest]:
        number, payload = await peer.message()
        assert isinstance(payload, ExecuteRequest), payload
        return number, payload


@asynccontextmanager
async def house(
    directory: Path, config: ConnectionManagerConfig | None = None, tasks: dict[str, TaskConfig] = TASKS
) -> AsyncIterator[House]:
    async with new_pool(directory, tasks) as pool:
        worker = await pool.worker(config)
        found = House(pool, worker, await client(worker))
        try:
            yield found
        finally:
            for peer in found.peers:
                peer.close()
            await asyncio.gather(*found.servers)


def completed(answer: object) -> str | None:
    assert isinstance(answer, ExecuteResponse), answer
    assert answer.status is ExecutionStatus.COMPLETED
    return answer.output


# --------------------------------------------------------------------------------------------------- the usual course


async def test_executes(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await found.echo()
        answer = await found.caller.execute(request(input=b"hello"))
        assert completed(answer) == "hello"
        assert isinstance(answer, ExecuteResponse)
        assert answer.execution_id is not UNSET
        assert execution_incarnation(answer.execution_id) == 1


async def test_many_in_flight_get_their_own_answers(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        for _ in range(3):
            await found.echo()
        sent = {found.caller.send(request(input=str(n).encode())): str(n) for n in range(300)}
        for _ in range(300):
            number, answer = await found.caller.message()
            assert completed(answer) == sent.pop(number)
        assert not sent
        assert found.worker.executed("echo", "completed") == found.worker.executed("echo", "received") == 300
        assert found.worker.executed("echo", "dispatched") == 300
        assert found.worker.executed("echo", "queued") > 0


async def test_the_agent_sees_the_whole_request(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        asked = request(args=["1"], env={"A": "ü"}, working_dir="/", timeout=9, input=bytes(range(256)))
        found.caller.send(asked)
        number, got = await found.asked(server)
        assert number == 1
        assert replace(got, execution_id=UNSET, deadline_ms=UNSET) == asked
        assert got.deadline_ms is not UNSET
        assert 8000 < got.deadline_ms <= 9000


async def test_an_agent_that_does_not_echo_the_id_is_understood(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request())
        number, asked = await found.asked(server)
        server.complete(number, asked, "x", echo_id=False)
        answer = await found.caller.next(ExecuteResponse)
        assert answer.execution_id == asked.execution_id


async def test_no_more_than_the_capacity_at_once(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent("slow")  # concurrency 2, prefetch 1
        for _ in range(5):
            found.caller.send(request("slow"))
        asked = [await found.asked(server) for _ in range(3)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.message(), 0.1)
        server.complete(*asked[0], "x")
        await found.asked(server)


async def test_a_handlers_failure_is_passed_on(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request())
        number, asked = await found.asked(server)
        failure = ExecuteResponse(
            "echo", ExecutionStatus.FAILED, None, "ValueError: no", 3, execution_id=asked.execution_id
        )
        server.send(failure, number)
        assert await found.caller.next(ExecuteResponse) == failure
        assert found.worker.executed("echo", "failed") == 1


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("payload", "code", "words"),
    [
        (request("zebra"), ErrorCode.UNKNOWN, "'zebra'"),
        (request(mode=ExecutionMode.STREAM), ErrorCode.MALFORMED, "Stream"),
        (replace(request(), command="@result"), ErrorCode.MALFORMED, "@result"),
    ],
)
async def test_refuses(tmp_path: Path, payload: ExecuteRequest, code: ErrorCode, words: str) -> None:
    async with house(tmp_path) as found:
        answer = await found.caller.execute(payload)
        assert isinstance(answer, ErrorMessage)
        assert answer.error_code == code
        assert words in answer.message
        task = payload.task_id if payload.task_id in TASKS else "other"
        assert found.worker.executed(task, "refused") == found.worker.executed(task, "received") == 1
        assert found.worker.counter(f"errors_{code.value}") == 1


async def test_refuses_who_may_not_submit(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        watcher = await client(found.worker, "watcher", "observe")
        found.peers.append(watcher)
        answer = await watcher.execute(request())
        assert isinstance(answer, ErrorMessage)
        assert answer.error_code == ErrorCode.REFUSED


async def test_a_full_queue_refuses_with_a_time(tmp_path: Path) -> None:
    async with house(tmp_path, ConnectionManagerConfig(max_queued_executions=2)) as found:
        for _ in range(2):
            found.caller.send(request())
        answer = await found.caller.execute(request())
        assert isinstance(answer, ErrorMessage)
        assert answer.error_code == ErrorCode.OVERLOADED
        assert int(answer.details or "") >= 50


async def test_an_id_in_flight_is_not_taken_twice(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request(), 5)
        await found.asked(server)
        found.caller.send(request(), 5)
        answer = await found.caller.next(ErrorMessage, 5)
        assert answer.error_code == ErrorCode.CONFLICT


async def test_a_request_that_grows_too_large_on_its_way_fails(tmp_path: Path) -> None:
    config = ConnectionManagerConfig(max_message_size=64 * 1024)
    async with house(tmp_path, config) as found:
        server = await found.agent()
        limit = config.max_message_size
        codec = found.caller.session.codec
        asked = request(working_dir="a" * (limit // 3))  # a byte of the payload takes three or four on the wire
        while len(codec.encode(asked, 1, 1_999_999_999_999_999_999)) > limit:
            asked = replace(asked, working_dir=(asked.working_dir or "")[:-1])
        answer = await found.caller.execute(asked)
        assert isinstance(answer, ExecuteResponse)
        assert (answer.status, answer.error_code) == (ExecutionStatus.FAILED, ErrorCode.TOO_LARGE)
        found.caller.send(request())
        await found.asked(server)  # its place is free


async def test_streams_are_not_open(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        number = found.caller.send(StreamData("s", b"x", False, 0))
        assert (await found.caller.next(ErrorMessage, number)).error_code == ErrorCode.CONFLICT


# --------------------------------------------------------------------------------------------- time-outs and cancels


async def test_times_out_and_tells_the_agent(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request(deadline_ms=50))
        number, asked = await found.asked(server)
        answer = await found.caller.next(ExecuteResponse)
        assert answer.status is ExecutionStatus.TIMEOUT
        assert answer.duration_ms is not None
        assert answer.duration_ms >= 50
        signal = await server.next(Signal)
        assert (signal.signal_type, signal.execution_id) == (SignalName.TERMINATE, asked.execution_id)
        waiting = found.caller.send(request())
        server.complete(number, asked, "too late")
        number, asked = await found.asked(server)
        server.complete(number, asked, "in time")
        assert completed(await found.caller.next(ExecuteResponse, waiting)) == "in time"
        assert found.worker.executed("echo", "timeout") == 1


async def test_times_out_in_the_queue(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        answer = await found.caller.execute(request(deadline_ms=30))
        assert isinstance(answer, ExecuteResponse)
        assert answer.status is ExecutionStatus.TIMEOUT


@pytest.mark.parametrize("named", ["execution id", "request id"])
async def test_cancels(tmp_path: Path, named: str) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        number = found.caller.send(request())
        _, asked = await found.asked(server)
        signal = Signal(SignalName.TERMINATE)
        if named == "execution id":
            signal = replace(signal, execution_id=asked.execution_id)
        else:
            signal = replace(signal, data=str(number).encode())
        found.caller.send(signal)
        answer = await found.caller.next(ExecuteResponse, number)
        assert answer.status is ExecutionStatus.CANCELLED
        assert (await server.next(Signal)).execution_id == asked.execution_id
        assert found.worker.executed("echo", "cancelled") == 1


async def test_cancels_only_its_own(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request())
        number, asked = await found.asked(server)
        stranger = await client(found.worker, "stranger")
        found.peers.append(stranger)
        for signal in (
            Signal(SignalName.TERMINATE, execution_id=asked.execution_id),
            Signal(SignalName.TERMINATE, data=b"1"),
            Signal(SignalName.TERMINATE, data=b"no number"),
            Signal(SignalName.TERMINATE),
        ):
            stranger.send(signal)
            assert (await stranger.next(ErrorMessage)).error_code == ErrorCode.UNKNOWN
        server.complete(number, asked, "x")
        assert completed(await found.caller.next(ExecuteResponse)) == "x"


async def test_other_signals_are_not_for_clients(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        found.caller.send(Signal(SignalName.PAUSE))
        assert (await found.caller.next(ErrorMessage)).error_code == ErrorCode.MALFORMED


async def test_a_client_that_leaves_takes_what_waits_with_it(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        leaving = await client(found.worker, "leaving")
        server = await found.agent()
        leaving.send(request(input=b"running"))
        number, asked = await found.asked(server)
        leaving.send(request(input=b"waiting"))
        await eventually_async(lambda: found.worker.executions.dispatcher.snapshot().queued == 1)
        leaving.close()
        await eventually_async(lambda: found.worker.executions.dispatcher.snapshot().queued == 0)
        found.caller.send(request(input=b"next"))
        server.complete(number, asked, "nobody hears it")
        _, asked = await found.asked(server)
        assert asked.input_data == b"next"
        assert found.worker.executed("echo", "cancelled") == 1
        assert found.worker.executed("echo", "completed") == 1


# --------------------------------------------------------------------------------------------- agents that do otherwise


async def test_a_late_answer_never_reaches_another_request(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent("slow")
        first = found.caller.send(request("slow", input=b"first"))
        second = found.caller.send(request("slow", input=b"second"))
        one, other = await found.asked(server), await found.asked(server)
        server.complete(one[0], other[1], "second's id under the first's number")
        server.complete(99, one[1], "an id under a number of nobody's")
        server.complete(99, request("slow"), "a number of nobody's")
        for _ in range(3):
            assert (await server.next(ErrorMessage)).error_code == ErrorCode.UNKNOWN
        server.complete(*other, "2")
        server.complete(*one, "1")
        server.complete(*one, "1 again")
        answers = {}
        for _ in range(2):
            number, answer = await found.caller.message()
            answers[number] = completed(answer)
        assert answers == {first: "1", second: "2"}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(found.caller.message(), 0.05)


async def test_an_error_of_an_agent_is_a_failure(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request())
        number, asked = await found.asked(server)
        server.send(ErrorMessage(ErrorCode.INTERNAL, "broken", None, number), number)
        answer = await found.caller.next(ExecuteResponse)
        assert (answer.status, answer.error, answer.error_code) == (ExecutionStatus.FAILED, "broken", 500)
        assert answer.execution_id == asked.execution_id


@pytest.mark.parametrize("code", [ErrorCode.DRAINING, ErrorCode.OVERLOADED])
async def test_what_an_agent_declines_another_gets(tmp_path: Path, code: ErrorCode) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request(input=b"x"))
        number, _ = await found.asked(server)
        server.send(ErrorMessage(code, "not now", None, number), number)
        await found.echo()
        assert completed(await found.caller.next(ExecuteResponse)) == "x"


async def test_passing_states_are_no_answers(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request())
        number, asked = await found.asked(server)
        for status in ExecutionStatus:
            if not status.final:
                server.send(ExecuteResponse("echo", status, execution_id=asked.execution_id), number)
        server.complete(number, asked, "x")
        assert completed(await found.caller.next(ExecuteResponse)) == "x"


async def test_an_agent_that_ends_with_its_answer_gets_no_more(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        for _ in range(2):
            found.caller.send(request(input=b"x"))
        number, asked = await found.asked(server)
        done = ExecuteResponse("echo", ExecutionStatus.COMPLETED, "1", execution_id=asked.execution_id)
        server.session.send(done, number)
        server.close()  # in one piece with the answer: what it would get next has never been sent
        assert completed(await found.caller.next(ExecuteResponse)) == "1"
        await found.echo()
        assert completed(await found.caller.next(ExecuteResponse)) == "x"


# ------------------------------------------------------------------------------------------------------ lost and found


async def test_an_agent_that_comes_back_and_names_it_answers(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        _, name, token = found.pool.instance("echo")
        server = await agent(found.worker, name, token)
        found.caller.send(request())
        _, asked = await found.asked(server)
        server.abort()
        assert asked.execution_id is not UNSET
        back = await agent(found.worker, name, token, running=asked.execution_id)
        found.peers.append(back)
        back.complete(0, asked, "after all")
        assert completed(await found.caller.next(ExecuteResponse)) == "after all"


async def test_its_request_ids_of_before_mean_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        _, name, token = found.pool.instance("slow")
        server = await agent(found.worker, name, token)
        first = found.caller.send(request("slow"))
        old_number, old = await found.asked(server)
        server.abort()
        assert old.execution_id is not UNSET
        back = await agent(found.worker, name, token, running=old.execution_id)
        found.peers.append(back)
        second = found.caller.send(request("slow"))
        new_number, new = await found.asked(back)
        assert old_number == new_number
        back.complete(old_number, old, "old")
        assert completed(await found.caller.next(ExecuteResponse, first)) == "old"
        back.complete(new_number, new, "new")
        assert completed(await found.caller.next(ExecuteResponse, second)) == "new"


async def test_a_lost_agent_makes_the_outcome_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert REATTACH_GRACE_S == 2.0
    monkeypatch.setattr("spearpool.worker.books.REATTACH_GRACE_S", 0.1)
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request())
        await found.asked(server)
        server.abort()
        answer = await found.caller.next(ExecuteResponse)
        assert (answer.status, answer.error_code) == (ExecutionStatus.FAILED, ErrorCode.OUTCOME_UNKNOWN)
        assert found.worker.executed("echo", "lost") == 1


# ------------------------------------------------------------------------------------------------------------ the end


async def test_drains(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request())
        number, asked = await found.asked(server)
        drained: list[int] = []
        found.worker.executions.drain(30.0, drained.append)
        refused = await found.caller.execute(request())
        assert isinstance(refused, ErrorMessage)
        assert refused.error_code == ErrorCode.DRAINING
        assert drained == []
        server.complete(number, asked, "x")
        assert completed(await found.caller.next(ExecuteResponse)) == "x"
        assert drained == [0]


async def test_drains_until_the_deadline_and_then_says_what_is_left(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        server = await found.agent()
        found.caller.send(request())
        await found.asked(server)
        found.caller.send(request())
        await eventually_async(lambda: found.worker.executions.dispatcher.snapshot().queued == 1)
        drained: list[int] = []
        found.worker.executions.drain(0.05, drained.append)
        await eventually_async(lambda: drained == [2])
        found.worker.executions.stop()
        answer = await found.caller.next(ExecuteResponse)
        assert answer.error_code == ErrorCode.OUTCOME_UNKNOWN
        assert (await found.caller.next(ErrorMessage)).error_code == ErrorCode.DRAINING


async def test_an_idle_worker_is_drained_at_once(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        drained: list[int] = []
        found.worker.executions.drain(30.0, drained.append)
        assert drained == [0]


async def test_an_unavailable_task_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        executions = found.worker.executions
        waiting = found.caller.send(request())
        await eventually_async(lambda: executions.dispatcher.snapshot().queued == 1)
        executions.run(executions.dispatcher.set_task("echo", available=False, reason="it crashes at its start"))
        refused = await found.caller.next(ErrorMessage, waiting)
        assert (refused.error_code, refused.message) == (ErrorCode.DRAINING, "it crashes at its start")
