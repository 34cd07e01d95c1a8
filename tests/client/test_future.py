"""Futures of executions: they end as any future does, callbacks included, whoever reads the connection."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from math import inf

import pytest

from spearpool.client import Client, ExecutionResult
from spearpool.client.future import ExecutionFuture
from spearpool.errors import ExecutionFailed, ExecutionTimeout, OutcomeUnknown
from spearpool.protocol.credentials import Role
from spearpool.protocol.messages import ExecuteRequest, ExecuteResponse, ExecutionStatus
from tests.conftest import eventually
from tests.stub_worker import SECRET, Peer, StubWorker, completed


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    with StubWorker(Role.CLIENT) as worker:
        yield worker


@pytest.fixture
def client(worker: StubWorker) -> Iterator[Client]:
    with Client(address=f"127.0.0.1:{worker.port}", token=SECRET) as client:
        yield client


@pytest.fixture
def held(worker: StubWorker, client: Client) -> tuple[Future[ExecutionResult], Peer, int, ExecuteRequest]:
    """A future whose answer is the test's to give: peer, request id and request."""
    futures: list[Future[ExecutionResult]] = []
    submitter = threading.Thread(target=lambda: futures.append(client.submit("t", "held")))
    submitter.start()
    peer = worker.accept()
    submitter.join()
    return futures[0], peer, *peer.expect(ExecuteRequest)


def echo(peer: Peer) -> None:
    for number, request in peer.requests():
        peer.send(completed(request, request.args[0]), number)


def test_results_by_all_usual_roads(worker: StubWorker, client: Client) -> None:
    worker.play(echo)
    texts = [str(number) for number in range(50)]
    futures = [client.submit("t", text) for text in texts]
    assert [future.result().output.decode() for future in futures] == texts
    futures = [client.submit("t", text) for text in texts]
    done = concurrent.futures.as_completed(futures, timeout=5)
    assert sorted(future.result().output.decode() for future in done) == sorted(texts)
    futures = [client.submit("t", text) for text in texts]
    assert concurrent.futures.wait(futures, timeout=5).not_done == set()

    async def gather() -> list[ExecutionResult]:
        return await asyncio.gather(*(asyncio.wrap_future(client.submit("t", text)) for text in texts))

    assert [result.output.decode() for result in asyncio.run(gather())] == texts


def test_it_runs_until_its_answer_and_cannot_be_cancelled(
    held: tuple[Future[ExecutionResult], Peer, int, ExecuteRequest],
) -> None:
    future, peer, number, request = held
    assert (future.running(), future.done(), future.cancel(), future.cancelled()) == (True, False, False, False)
    for wait in (future.result, future.exception):
        for timeout in (0, 0.02):
            with pytest.raises(TimeoutError):
                wait(timeout)
    peer.send(completed(request, "late"), number)
    assert future.result(5).output == b"late"
    assert future.exception(0) is None
    assert (future.running(), future.done(), future.cancel()) == (False, True, False)


def test_a_failure_is_raised_by_each_way_to_ask(
    held: tuple[Future[ExecutionResult], Peer, int, ExecuteRequest],
) -> None:
    future, peer, number, _ = held
    peer.send(ExecuteResponse("t", ExecutionStatus.FAILED, error="too hot"), number)
    assert isinstance(future.exception(5), ExecutionFailed)
    with pytest.raises(ExecutionFailed, match="too hot"):
        future.result()


def test_without_an_answer_it_ends_with_the_executions_time(worker: StubWorker, client: Client) -> None:
    worker.play(lambda peer: list(peer.requests()))  # type: ignore[arg-type]
    future = client.submit("t", timeout=0.05)
    waiter = threading.Thread(target=future.exception)
    waiter.start()
    waiter.join(10)
    assert not waiter.is_alive()
    with pytest.raises(ExecutionTimeout, match="the pool gave no answer in time"):
        future.result()
    assert client._connection is not None
    assert client._connection.open


def test_the_end_of_the_connection_is_the_end_of_the_future(
    held: tuple[Future[ExecutionResult], Peer, int, ExecuteRequest],
) -> None:
    future, peer, _, _ = held
    peer.close()
    with pytest.raises(OutcomeUnknown):
        future.result(5)


def test_two_threads_may_wait_for_one_future(
    held: tuple[Future[ExecutionResult], Peer, int, ExecuteRequest],
) -> None:
    future, peer, number, request = held
    outputs: list[bytes] = []
    waiters = [threading.Thread(target=lambda: outputs.append(future.result(10).output)) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    with pytest.raises(TimeoutError):
        future.result(0.02)
    peer.send(completed(request, "for all"), number)
    for waiter in waiters:
        waiter.join(10)
    assert outputs == [b"for all"] * 3


@pytest.mark.parametrize("timeout", [None, inf, 1e300])
def test_a_future_may_be_waited_for_without_end(
    held: tuple[Future[ExecutionResult], Peer, int, ExecuteRequest], timeout: float | None
) -> None:
    future, peer, number, request = held
    waiters = [threading.Thread(target=future.result, args=(timeout,)) for _ in range(2)]
    for waiter in waiters:
        waiter.start()
    peer.send(completed(request, ""), number)
    for waiter in waiters:
        waiter.join(5)


@pytest.mark.parametrize("who", ["a thread that waits", "the keeper"])
def test_callbacks_run_in_one_thread_in_their_order(
    held: tuple[Future[ExecutionResult], Peer, int, ExecuteRequest], who: str
) -> None:
    future, peer, number, request = held
    calls: list[tuple[int, object, str]] = []
    for index in range(3):
        future.add_done_callback(
            lambda done, index=index: calls.append((index, done, threading.current_thread().name))  # type: ignore[misc]
        )
    waiter = threading.Thread(target=future.result, args=(10,))
    if who == "a thread that waits":
        waiter.start()
        assert isinstance(future, ExecutionFuture)
        eventually(lambda: future._connection._reader is future._call)
    peer.send(completed(request, ""), number)
    eventually(lambda: len(calls) == 3)
    if waiter.ident is not None:
        waiter.join()
    assert calls == [(index, future, "spearpool-keeper") for index in range(3)]
    future.add_done_callback(lambda done: calls.append((3, done, threading.current_thread().name)))
    assert calls[3:] == [(3, future, threading.current_thread().name)]


def test_what_a_callback_raises_is_logged_and_the_others_run(
    held: tuple[Future[ExecutionResult], Peer, int, ExecuteRequest], caplog: pytest.LogCaptureFixture
) -> None:
    future, peer, number, request = held
    called = threading.Event()
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda _: called.set())
    peer.send(completed(request, ""), number)
    assert called.wait(5)
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_that_takes_long_holds_up_no_other_future(worker: StubWorker, client: Client) -> None:
    go_on = threading.Event()
    names: list[str] = []

    def answer_the_first_late(peer: Peer) -> None:
        requests = peer.requests()
        number, request = next(requests)
        following = next(requests)
        peer.send(completed(request, ""), number)
        peer.send(completed(following[1], following[1].args[0]), following[0])
        for number, request in requests:
            peer.send(completed(request, request.args[0]), number)

    def wait_and_ask(_: Future[ExecutionResult]) -> None:
        assert go_on.wait(10)
        names.append(client.execute("t", "from the callback").decode())
        names.append(client.submit("t", "and its future").result(5).output.decode())

    worker.play(answer_the_first_late)
    client.submit("t", "first").add_done_callback(wait_and_ask)
    for _ in range(20):
        assert client.submit("t", "another").result(5).output == b"another"
    go_on.set()
    eventually(lambda: names == ["from the callback", "and its future"])


def test_a_callback_added_at_the_last_moment_is_run_once(worker: StubWorker, client: Client) -> None:
    worker.play(echo)
    called: list[int] = []
    for number in range(200):
        future = client.submit("t", "x")
        while not future.done() and number % 3:
            time.sleep(0.0001 * (number % 3))
        future.add_done_callback(lambda _, number=number: called.append(number))  # type: ignore[misc]
    eventually(lambda: len(called) == 200)
    assert sorted(called) == list(range(200))


def test_callbacks_are_run_although_the_client_is_closed(
    held: tuple[Future[ExecutionResult], Peer, int, ExecuteRequest], client: Client
) -> None:
    future, _, _, _ = held
    called: list[bool] = []
    future.add_done_callback(lambda done: called.append(done.done()))
    client.close()
    assert called == [True]


def test_a_future_that_was_told_keeps_nothing_alive(worker: StubWorker, client: Client) -> None:
    worker.play(echo)
    future = client.submit("t", "x")
    assert isinstance(future, ExecutionFuture)
    future.result(5)
    eventually(lambda: future._call.done is None)
