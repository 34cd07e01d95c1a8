"""`serve` in real processes: what the pool sees, and how they end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spearpool.agent import Request, serve
from spearpool.agent.conversation import EXIT_UNFINISHED
from spearpool.agent.serving import EXIT_NOT_CONFIGURED, EXIT_REFUSED
from spearpool.protocol.messages import (
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    Signal,
    SignalName,
)
from tests.conftest import deadline, eventually
from tests.stub_worker import SECRET, Peer, StubWorker

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    with StubWorker() as worker:
        yield worker


def variables(worker: StubWorker, **more: str) -> dict[str, str]:
    return {
        "SPEAR_COMMUNICATION_PORT": str(worker.port),
        "SPEAR_INSTANCE_ID": "me-1",
        "SPEAR_SECRET": SECRET,
        **more,
    }


@contextlib.contextmanager
def program(environ: dict[str, str], *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.agent.programs", *(words or ("handler",))],
        cwd=ROOT,
        env={**os.environ, **environ},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], timeout_s: float = 5.0) -> tuple[int, str]:
    _, said = process.communicate(timeout=deadline(timeout_s) - time.monotonic())
    return process.returncode, said


def call(*words: str, number: int = 1, data: bytes | None = None) -> ExecuteRequest:
    return ExecuteRequest("t", "", list(words), {}, input_data=data, execution_id=f"0-a-1-{number}")


def wait_until_it_runs(peer: Peer) -> None:
    """The first heartbeat is answered, perhaps, while its request is still in the same batch; the second is not."""
    for _ in range(2):
        peer.ping()
        peer.expect(Heartbeat)


def test_one_execution_after_another(worker: StubWorker) -> None:
    with program(variables(worker)):
        peer = worker.accept(20)
        for number in range(50):
            sent = peer.send(call(number=number, data=b"%d" % number))
            got, response = peer.expect(ExecuteResponse)
            assert (got, response.output, response.execution_id) == (sent, str(number), f"0-a-1-{number}")


def test_requests_sent_at_once_are_answered_in_order(worker: StubWorker) -> None:
    with program(variables(worker)):
        peer = worker.accept(20)
        sent = peer.send_all(*(call(data=b"%d" % number) for number in range(100)))
        answers = [peer.expect(ExecuteResponse) for _ in range(100)]
        assert [number for number, _ in answers] == sent
        assert [response.output for _, response in answers] == [str(number) for number in range(100)]


@pytest.mark.parametrize("how", ["spin", "sleep"])
def test_heartbeats_are_answered_while_a_handler_runs(worker: StubWorker, how: str) -> None:
    with program(variables(worker)):
        peer = worker.accept(20)
        peer.send(call(how, "1"))
        pings = [peer.ping(sequence) for sequence in range(5)]
        answers = [(number, heartbeat.sequence) for number, heartbeat in (peer.expect(Heartbeat) for _ in range(5))]
        assert answers == list(zip(pings, range(5), strict=True))
        _, response = peer.expect(ExecuteResponse)  # expect() above would have tripped over an earlier one
        assert response.duration_ms is not None
        assert response.duration_ms >= 1000


def test_the_fast_path_wakes_no_other_thread(worker: StubWorker) -> None:
    with program(variables(worker)) as process:
        peer = worker.accept(20)
        began = time.monotonic()
        for _ in range(1000):
            peer.send(call(data=b"x"))
            peer.expect(ExecuteResponse)
        looks = (time.monotonic() - began) / 0.02
        others = [task for task in os.listdir(f"/proc/{process.pid}/task") if int(task) != process.pid]
        switches = sum(voluntary_switches(process.pid, int(task)) for task in others)
        assert switches < looks + 20
        assert looks < 500, "too slow a machine for this to prove anything"


def voluntary_switches(pid: int, task: int) -> int:
    status = Path(f"/proc/{pid}/task/{task}/status").read_text()
    found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)
    assert found
    return int(found[1])


def test_a_cancel_reaches_a_handler_that_waits(worker: StubWorker) -> None:
    with program(variables(worker)):
        peer = worker.accept(20)
        peer.send(call("until-cancelled"))
        peer.send(Signal(SignalName.TERMINATE, execution_id="0-a-1-1"))
        _, response = peer.expect(ExecuteResponse)
        assert (response.status, response.output, response.error) == (ExecutionStatus.CANCELLED, None, "cancelled")


def test_a_handler_that_raises_fails_and_the_instance_goes_on(worker: StubWorker) -> None:
    with program(variables(worker)) as process:
        peer = worker.accept(20)
        peer.send(call("raise", "too hot"))
        _, response = peer.expect(ExecuteResponse)
        assert (response.status, response.error) == (ExecutionStatus.FAILED, "ValueError: too hot")
        peer.send(call(data=b"next"))
        assert peer.expect(ExecuteResponse)[1].output == "next"
        process.terminate()
        code, said = ended(process)
        assert code == 0
        assert "raise ValueError(words)\nValueError: too hot" in said


def test_executions_run_side_by_side_where_the_concurrency_allows(worker: StubWorker) -> None:
    with program(variables(worker, SPEAR_CONCURRENCY="3")) as process:
        peer = worker.accept(20)
        peer.send_all(call("until-cancelled", number=1), call("until-cancelled", number=2), call(data=b"quick"))
        assert peer.expect(ExecuteResponse)[1].output == "quick"
        for number in (2, 1):
            peer.send(Signal(SignalName.TERMINATE, execution_id=f"0-a-1-{number}"))
            assert peer.expect(ExecuteResponse)[1].execution_id == f"0-a-1-{number}"
        peer.ping(sequence=3)
        assert peer.expect(Heartbeat)[1].sequence == 3
        process.terminate()
        assert ended(process) == (0, "")


@pytest.mark.parametrize("concurrency", ["1", "2"])
@pytest.mark.parametrize("by", ["SIGTERM", "Signal"])
def test_told_to_stop_it_finishes_what_runs_and_exits_0(worker: StubWorker, concurrency: str, by: str) -> None:
    with program(variables(worker, SPEAR_CONCURRENCY=concurrency)) as process:
        peer = worker.accept(20)
        peer.send(call("sleep", "0.3"))
        wait_until_it_runs(peer)
        if by == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            peer.send(Signal(SignalName.TERMINATE))
        assert peer.expect(ExecuteResponse)[1].output == "slept"
        peer.expect_closed()
        assert ended(process) == (0, "")


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_an_idle_one_stops_at_once(worker: StubWorker, concurrency: str) -> None:
    with program(variables(worker, SPEAR_CONCURRENCY=concurrency)) as process:
        peer = worker.accept(20)
        process.terminate()
        assert peer.expect_closed().detail == "drain"
        assert ended(process) == (0, "")


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_handler_that_does_not_end_is_given_up_after_the_grace(worker: StubWorker, concurrency: str) -> None:
    with program(variables(worker, SPEAR_CONCURRENCY=concurrency), "impatient") as process:
        peer = worker.accept(20)
        sent = peer.send(call("stubborn"))
        wait_until_it_runs(peer)
        process.terminate()
        number, response = peer.expect(ExecuteResponse)
        assert (number, response.status, response.error_code) == (sent, ExecutionStatus.FAILED, 502)
        code, said = ended(process)
        assert code == EXIT_UNFINISHED
        assert "handlers still run 0.2 s after the stop; giving up" in said


def test_a_refused_secret_ends_it_with_a_reason(worker: StubWorker) -> None:
    with program(variables(worker, SPEAR_SECRET="not the secret")) as process:
        worker.accept(20)
        code, said = ended(process)
        assert code == EXIT_REFUSED
        assert said == f"spearpool.agent: 127.0.0.1:{worker.port} refused us: authentication failed\n"


def test_a_refusal_at_a_reconnection_ends_it_too(worker: StubWorker) -> None:
    with program(variables(worker)) as process:
        peer = worker.accept(20)
        peer.send(call("sleep", "0.2"))
        wait_until_it_runs(peer)
        peer.close()
        again = worker.dialled()
        again.next_event()
        again.session.refuse("authentication failed")
        again.flush()
        assert ended(process)[0] == EXIT_REFUSED


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SPEAR_SECRET", "", "SPEAR_SECRET = '': expected to be set by spearpool; run this program as a task"),
        ("SPEAR_COMMUNICATION_PORT", "x", "SPEAR_COMMUNICATION_PORT = 'x': expected a number from 1 to 65535"),
        ("SPEAR_COMMUNICATION_TYPE", "pigeon", "SPEAR_COMMUNICATION_TYPE = 'pigeon': expected tcp"),
    ],
)
def test_wrong_variables_are_named(
    worker: StubWorker, name: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        serve(lambda _: None, environ=variables(worker) | {name: value})
    assert caught.value.code == EXIT_NOT_CONFIGURED
    assert words in capsys.readouterr().err


def test_it_comes_back_with_the_result_of_what_ran_meanwhile(worker: StubWorker) -> None:
    with program(variables(worker)):
        peer = worker.accept(20)
        peer.send(call("sleep", "0.5", number=7))
        wait_until_it_runs(peer)
        peer.close()
        again = worker.accept()
        assert again.asked is not None
        assert again.asked.extra_params["running"] == "0-a-1-7"
        number, response = again.expect(ExecuteResponse)
        assert (number, response.execution_id, response.output) == (0, "0-a-1-7", "slept")


def test_it_outlives_a_pool_that_is_away(worker: StubWorker) -> None:
    with program(variables(worker)) as process:
        worker.accept(20).close()
        for _ in range(3):
            worker.dialled().close()
        peer = worker.accept(10)
        peer.send(call(data=b"here again"))
        assert peer.expect(ExecuteResponse)[1].output == "here again"
        process.terminate()
        code, said = ended(process)
        assert code == 0
        assert "closed the connection before it answered; trying again" in said


def test_it_serves_from_any_thread_and_leaves_nothing(worker: StubWorker) -> None:
    server = threading.Thread(target=lambda: serve(upper, environ=variables(worker)))
    server.start()
    peer = worker.accept()
    peer.send(call(data=b"loud"))
    assert peer.expect(ExecuteResponse)[1].output == "LOUD"
    peer.send(Signal(SignalName.TERMINATE))
    server.join(5)
    assert not server.is_alive()
    eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("spearpool-")])


def upper(request: Request) -> bytes:
    return request.input.upper()


def test_a_sigterm_handler_of_the_program_is_put_back(worker: StubWorker) -> None:
    before = signal.getsignal(signal.SIGTERM)
    peers: list[Peer] = []

    def accept_and_stop() -> None:
        peers.append(worker.accept())
        peers[0].send(Signal(SignalName.TERMINATE))

    server = threading.Thread(target=accept_and_stop)
    server.start()
    serve(upper, environ=variables(worker))
    server.join()
    assert signal.getsignal(signal.SIGTERM) is before
