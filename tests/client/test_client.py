"""The client against a stub: where it finds the pool, what it sends, how it comes back, and that it sends once."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path

import pytest

import spearpool
from spearpool.agent.dial import MAX_MESSAGE_BYTES
from spearpool.client import Client, ExecutionResult
from spearpool.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionLost,
    ExecutionFailed,
    ExecutionTimeout,
    LocalProtocolError,
    NoSuchPool,
    OutcomeUnknown,
    PoolError,
    UnknownTask,
)
from spearpool.packing import to_plain
from spearpool.processes import ProcessIdentity
from spearpool.protocol.credentials import Role
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import (
    UNSET,
    AuthRequest,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionMode,
    ExecutionStatus,
)
from spearpool.runtime_dir import Endpoints, PoolDescription, RuntimeDir
from tests.conftest import RuntimeEnv, eventually
from tests.stub_worker import SECRET, Peer, StubWorker, completed


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    with StubWorker(Role.CLIENT) as worker:
        yield worker


@pytest.fixture
def client(worker: StubWorker) -> Iterator[Client]:
    with Client(address=f"127.0.0.1:{worker.port}", token=SECRET, label="tester") as client:
        yield client


def echo(peer: Peer) -> None:
    for number, request in peer.requests():
        text = (request.input_data or b"").decode("latin-1")
        peer.send(completed(request, "|".join([request.task_id, *request.args, text])), number)


def test_it_introduces_itself(worker: StubWorker, client: Client) -> None:
    asked: list[AuthRequest | None] = []

    def note(peer: Peer) -> None:
        asked.append(peer.asked)
        echo(peer)

    worker.play(note)
    client.execute("t")
    assert asked == [AuthRequest("tester", SECRET, spearpool.__version__, "client", {"encodings": "msgpack"})]


def test_what_a_call_sends(worker: StubWorker, client: Client) -> None:
    seen: list[ExecuteRequest] = []

    def note(peer: Peer) -> None:
        for number, request in peer.requests():
            seen.append(request)
            peer.send(completed(request, ""), number)

    worker.play(note)
    client.execute("plain", timeout=inf)
    client.execute("t", "a", "b", input=b"\xff", env={"K": "v"}, timeout=2.5)
    plain, full = seen
    assert plain == ExecuteRequest("plain", "", [], {}, None, None, ExecutionMode.SYNC, None)
    assert (full.args, full.env, full.input_data, full.timeout) == (["a", "b"], {"K": "v"}, b"\xff", 3)
    assert full.deadline_ms is not UNSET
    assert 0 < full.deadline_ms <= 2500


def test_run_gives_the_whole_result(worker: StubWorker, client: Client) -> None:
    def answer(peer: Peer) -> None:
        for number, _ in peer.requests():
            status = ExecutionStatus.COMPLETED
            response = ExecuteResponse("t", status, None, None, 0, 7, execution_id="0-a-1-1", output_data=b"\xff")
            peer.send(response, number)

    worker.play(answer)
    assert client.run("t") == ExecutionResult(b"\xff", 0, 7, "0-a-1-1")
    assert client.execute("t") == b"\xff"


def test_errors_are_raised(worker: StubWorker, client: Client) -> None:
    def refuse(peer: Peer) -> None:
        for number, request in peer.requests():
            if request.task_id == "unknown":
                peer.send(ErrorMessage(404, "no such task", None, number), number)
            else:
                peer.send(ExecuteResponse("t", ExecutionStatus.FAILED, error="ValueError: x"), number)

    worker.play(refuse)
    with pytest.raises(UnknownTask, match="task 'unknown': no such task"):
        client.execute("unknown")
    with pytest.raises(ExecutionFailed, match="task 't': ValueError: x"):
        client.execute("t")
    future = client.submit("unknown")
    assert isinstance(future.exception(5), UnknownTask)


def test_submit_gives_a_future(worker: StubWorker, client: Client) -> None:
    worker.play(echo)
    futures = [client.submit("t", str(number)) for number in range(50)]
    assert not futures[0].cancel()
    assert [future.result(5).output for future in futures] == [b"t|%d|" % number for number in range(50)]


def test_a_callback_of_a_future_may_call_the_client(worker: StubWorker, client: Client) -> None:
    worker.play(echo)
    outputs: list[bytes] = []
    client.submit("first").add_done_callback(lambda _: outputs.append(client.execute("second")))
    eventually(lambda: outputs == [b"second|"])


def test_one_connection_serves_all_threads(worker: StubWorker, client: Client) -> None:
    worker.play(echo)
    outputs: list[bytes] = []
    threads = [threading.Thread(target=lambda: outputs.append(client.execute("t"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == [b"t|"] * 20
    assert worker.connected == 1


def test_without_an_answer_the_call_times_out_and_the_late_answer_is_lost(worker: StubWorker, client: Client) -> None:
    held: list[tuple[int, ExecuteRequest]] = []

    def late(peer: Peer) -> None:
        for number, request in peer.requests():
            if request.task_id == "slow":
                held.append((number, request))
            else:
                peer.send(completed(held[0][1], "late"), held[0][0])
                peer.send(completed(request, "quick"), number)

    worker.play(late)
    began = time.monotonic()
    with pytest.raises(ExecutionTimeout, match="task 'slow': the pool gave no answer in time"):
        client.execute("slow", timeout=0.1)
    assert time.monotonic() - began >= 0.1
    assert client.execute("quick") == b"quick"
    assert worker.connected == 1


def test_a_connection_lost_under_an_execution_leaves_its_outcome_unknown(worker: StubWorker, client: Client) -> None:
    seen: list[str] = []

    def drop_the_first(peer: Peer) -> None:
        for number, request in peer.requests():
            seen.append(request.task_id)
            if len(seen) == 1:
                peer.leave(CloseReason.DRAIN)
                return
            peer.send(completed(request, "here"), number)

    worker.play(drop_the_first)
    with pytest.raises(
        OutcomeUnknown, match=r"lost \(peer: drain\) after the request was sent; its outcome is unknown"
    ):
        client.execute("one")
    assert client.execute("two") == b"here"
    assert seen == ["one", "two"]  # never sent again


def test_it_comes_back_after_an_idle_connection_was_closed(worker: StubWorker, client: Client) -> None:
    def once(peer: Peer) -> None:
        number, request = next(peer.requests())
        peer.send(completed(request, "done"), number)
        peer.leave(CloseReason.DRAIN)

    worker.play(once)
    for connection in range(1, 4):
        assert client.execute("t") == b"done"
        assert worker.connected == connection
        eventually(lambda: client._connection is not None and not client._connection.open)


def test_a_connection_that_is_lost_before_anything_is_sent_is_replaced(worker: StubWorker, client: Client) -> None:
    def fickle(peer: Peer) -> None:
        if worker.connected < 4:
            peer.leave(CloseReason.DRAIN)
        else:
            echo(peer)

    worker.play(fickle)

    def served() -> bool:
        try:
            return client.execute("t") == b"t|"
        except OutcomeUnknown:
            return False  # the close crossed the request

    eventually(served)
    assert worker.connected == 4


def test_the_token_is_read_at_each_connection(worker: StubWorker, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("an old token\n")
    worker.play(echo)
    with Client(address=f"127.0.0.1:{worker.port}", token_file=token_file) as client:
        with pytest.raises(AuthenticationError, match="refused us: authentication failed"):
            client.execute("t")
        token_file.write_text(SECRET + "\n")
        assert client.execute("t") == b"t|"
        token_file.unlink()
        client.execute("t")
    with (
        Client(address=f"127.0.0.1:{worker.port}", token_file=token_file) as client,
        pytest.raises(PoolError, match=f"cannot read the token file {token_file}: No such file or directory"),
    ):
        client.execute("t")


def test_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        with Client(address=address, token=SECRET, connect_timeout_s=0.2) as client:
            with pytest.raises(ConnectionLost, match=f"cannot connect to {address}: Connection refused"):
                client.execute("t")
            with pytest.raises(ConnectionLost):
                client.submit("t")


def test_a_pool_that_comes_up_a_little_later_is_waited_for() -> None:
    with StubWorker(Role.CLIENT, listening=False) as worker:
        later = threading.Timer(0.2, worker.listen)
        later.start()
        worker.play(echo)
        with Client(address=f"127.0.0.1:{worker.port}", token=SECRET) as client:
            assert client.execute("t") == b"t|"
        later.join()


@pytest.mark.parametrize("timeout", [-1, -inf, nan])
def test_a_time_limit_that_is_none(worker: StubWorker, client: Client, timeout: float) -> None:
    for send in (client.execute, client.submit):
        with pytest.raises(ConfigError, match=r"^timeout = .*: expected seconds, 0 or more, or None for no limit$"):
            send("t", timeout=timeout)
    assert worker.connected == 0


@pytest.mark.parametrize("timeout", [None, inf, 1e300, 2.0**32])
def test_no_time_limit(worker: StubWorker, client: Client, timeout: float | None) -> None:
    limits: list[object] = []

    def note(peer: Peer) -> None:
        for number, request in peer.requests():
            limits.extend((request.timeout, request.deadline_ms))
            peer.send(completed(request, ""), number)

    worker.play(note)
    client.execute("t", timeout=timeout)
    client.submit("t", timeout=timeout).result(timeout)
    assert limits == [None, UNSET] * 2


def test_the_executions_own_time_limit_holds_for_the_connection_too() -> None:
    with StubWorker(Role.CLIENT, listening=False) as worker:
        began = time.monotonic()
        address = f"127.0.0.1:{worker.port}"
        with (
            Client(address=address, token=SECRET, connect_timeout_s=60) as client,
            pytest.raises(ConnectionLost, match=f"cannot connect to {address}: Connection refused"),
        ):
            client.execute("t", timeout=0.1)
        assert time.monotonic() - began < 30


def test_a_closed_client_says_so(worker: StubWorker, client: Client) -> None:
    worker.play(echo)
    client.execute("t")
    client.close()
    client.close()
    with pytest.raises(ConnectionLost, match="this client has been closed"):
        client.execute("t")


def test_a_request_that_cannot_be_sent(worker: StubWorker, client: Client) -> None:
    worker.play(echo)
    with pytest.raises(LocalProtocolError, match="limit is 67108864"):
        client.execute("t", input=bytes(MAX_MESSAGE_BYTES))
    assert client.execute("t") == b"t|"


@pytest.mark.parametrize("address", ["", "localhost", ":9100", "host:", "host:0", "host:65536", "host:x"])
def test_a_wrong_address(address: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        Client(address=address)


def describe(env: RuntimeEnv, port: int, host: str = "127.0.0.1") -> RuntimeDir:
    """What a running pool leaves for its clients; this process passes for its supervisor."""
    directory = RuntimeDir.locate("shop", env.environ)
    directory.create()
    me = ProcessIdentity.of(1 if port == 0 else threading.get_native_id())
    pool = PoolDescription(
        name="shop",
        pid=me.pid,
        start_ticks=me.start_ticks + (port == 0),
        host=host,
        port=port,
        endpoints=Endpoints(live="", ask=""),
        segment="",
        epoch=1,
        runtime_dir=str(directory.path),
        log_dir="/nowhere/logs",
        version="0",
        workers=1,
    )
    (directory.path / "pool.json").write_text(json.dumps(to_plain(pool)))
    (directory.path / "client.token").write_text(SECRET)
    return directory


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_pool_is_found_by_its_name(worker: StubWorker, runtime_env: RuntimeEnv, host: str) -> None:
    worker.play(echo)
    describe(runtime_env, worker.port, host)
    with Client("shop", environ=runtime_env.environ) as client:
        assert client.execute("t") == b"t|"


def test_the_address_may_be_another_and_the_token_the_pools(worker: StubWorker, runtime_env: RuntimeEnv) -> None:
    worker.play(echo)
    describe(runtime_env, port=1)
    with Client("shop", address=f"127.0.0.1:{worker.port}", environ=runtime_env.environ) as client:
        assert client.execute("t") == b"t|"


def test_no_such_pool(runtime_env: RuntimeEnv) -> None:
    with Client("shop", environ=runtime_env.environ) as client:
        with pytest.raises(NoSuchPool, match="no pool 'shop' is running"):
            client.execute("t")
        describe(runtime_env, port=0)
        with pytest.raises(NoSuchPool, match="pool 'shop' is not running: its supervisor, pid 1, is gone"):
            client.execute("t")
