"""What a handler returns or raises, and the answer that this gives."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import pytest

from spearpool.agent.request import Handler, Outcome, Request, answer
from spearpool.protocol.messages import UNSET, ExecuteRequest, ExecutionStatus


def chunks() -> Iterator[bytes]:
    yield b"one "
    yield b"two"


RETURNED = [
    (b"text", "text", UNSET),
    ("text", "text", UNSET),
    ("grüße €", "grüße €", UNSET),
    (b"\xff\x00", None, b"\xff\x00"),
    (b"", "", UNSET),
    (None, None, UNSET),
    (bytearray(b"text"), "text", UNSET),
    (memoryview(b"\xfe"), None, b"\xfe"),
    (chunks(), "one two", UNSET),
    (["a", "b"], "ab", UNSET),
    ([], "", UNSET),
]


@pytest.mark.parametrize(
    ("result", "text", "data"), RETURNED, ids=[f"{type(row[0]).__name__}-{n}" for n, row in enumerate(RETURNED)]
)
def test_a_result_goes_out_as_text_where_it_is_text(result: object, text: str | None, data: object) -> None:
    response = answer(lambda _: result, Request("t"))  # type: ignore[arg-type, return-value]
    assert (response.status, response.error) == (ExecutionStatus.COMPLETED, None)
    assert (response.output, response.output_data) == (text, data)


def failing(error: BaseException) -> Handler:
    def handler(_: Request) -> None:
        raise error

    return handler


def fails_late(_: Request) -> Iterator[bytes]:
    yield b"one"
    raise KeyError("two")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


FAILED: list[tuple[Handler, str]] = [
    (failing(ValueError("bad input")), "ValueError: bad input"),
    (failing(ValueError()), "ValueError"),
    (failing(SystemExit(3)), "SystemExit: 3"),
    (failing(Unspeakable()), "tests.agent.test_request.Unspeakable: <exception str() failed>"),
    (fails_late, "KeyError: 'two'"),
    (lambda _: 7, "TypeError: the handler returned int; expected bytes, str, None or an iterable of chunks"),  # type: ignore[list-item, return-value]
    (lambda _: {"a": 1}, "TypeError: the handler returned dict; expected bytes, str, None or an iterable of chunks"),
    (lambda _: [b"a", 1], "TypeError: the handler gave a chunk of type int; expected bytes or str"),  # type: ignore[list-item, return-value]
]


@pytest.mark.parametrize(("handler", "error"), FAILED, ids=[row[1] for row in FAILED])
def test_a_failure_says_its_last_line_and_logs_the_traceback(
    handler: Handler, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    response = answer(handler, Request("t"))
    assert (response.status, response.error, response.output) == (ExecutionStatus.FAILED, error, None)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_keyboard_interrupt_is_not_the_executions_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        answer(failing(KeyboardInterrupt()), Request("t"))


def test_the_answer_names_task_execution_and_duration() -> None:
    response = answer(lambda _: time.sleep(0.03), Request("thumb", execution_id="0-1-2-3"))
    assert (response.task_id, response.execution_id) == ("thumb", "0-1-2-3")
    assert response.duration_ms is not None
    assert response.duration_ms >= 30
    assert answer(lambda _: None, Request("thumb")).execution_id is UNSET


def test_an_outcome_is_passed_on() -> None:
    outcome = Outcome(ExecutionStatus.FAILED, b"part", "exit code 3", 3)
    response = answer(lambda _: outcome, Request("t"))
    assert (response.status, response.output, response.error, response.exit_code) == (
        ExecutionStatus.FAILED,
        "part",
        "exit code 3",
        3,
    )


def must_not_run(_: Request) -> None:
    pytest.fail("the handler ran")


def test_what_comes_too_late_is_not_started() -> None:
    assert answer(must_not_run, Request("t", deadline=time.monotonic())).status is ExecutionStatus.TIMEOUT
    cancelled = Request("t")
    cancelled.cancel()
    assert answer(must_not_run, cancelled).status is ExecutionStatus.CANCELLED


@pytest.mark.parametrize(
    ("limit_s", "status"), [(None, ExecutionStatus.CANCELLED), (0.01, ExecutionStatus.TIMEOUT)], ids=["", "late"]
)
def test_a_result_after_the_cancel_is_not_used(limit_s: float | None, status: ExecutionStatus) -> None:
    def handler(request: Request) -> bytes:
        while request.deadline is not None and time.monotonic() < request.deadline:
            time.sleep(0.001)
        request.cancel()
        return b"half of it"

    deadline = None if limit_s is None else time.monotonic() + limit_s
    response = answer(handler, Request("t", deadline=deadline))
    assert (response.status, response.output) == (status, None)
    assert response.error is not None
    assert response.error.startswith("cancelled")


@pytest.mark.parametrize(
    ("timeout", "deadline_ms", "deadline"), [(None, UNSET, None), (5, UNSET, 105.0), (5, 1500, 101.5), (None, 0, 100.0)]
)
def test_the_deadline_counts_from_when_the_request_came(
    timeout: int | None, deadline_ms: int, deadline: float | None
) -> None:
    payload = ExecuteRequest("t", "", ["a"], {"K": "v"}, timeout=timeout, deadline_ms=deadline_ms)
    request = Request.from_payload(payload, now=100.0)
    assert (request.args, request.env, request.input, request.execution_id) == (["a"], {"K": "v"}, b"", "")
    assert request.deadline == deadline if deadline is None else math.isclose(request.deadline or 0, deadline)


def test_cancelled_is_one_event_however_late_it_is_asked_for() -> None:
    request, late = Request("t"), Request("t")
    assert not request.cancelled.is_set()
    event = request.cancelled
    request.cancel()
    late.cancel()
    assert event.is_set()
    assert event is request.cancelled
    assert late.cancelled.is_set()
    assert (request.is_cancelled, late.is_cancelled) == (True, True)


def test_a_cancel_reaches_every_thread_that_asks_at_that_moment() -> None:
    for _ in range(200):
        request, gate = Request("t"), threading.Barrier(4)
        heard: list[bool] = []

        def listen(request: Request = request, gate: threading.Barrier = gate, heard: list[bool] = heard) -> None:
            gate.wait()
            heard.append(request.cancelled.wait(5))

        threads = [threading.Thread(target=listen) for _ in range(3)]
        for thread in threads:
            thread.start()
        gate.wait()
        request.cancel()
        for thread in threads:
            thread.join()
        assert heard == [True] * 3


def test_on_cancel_is_called_whichever_comes_first() -> None:
    calls = []
    request = Request("t")
    request.on_cancel(lambda: calls.append("later"))
    assert not calls
    threading.Thread(target=request.cancel).start()
    assert request.cancelled.wait(5)
    late = Request("t")
    late.cancel()
    late.on_cancel(lambda: calls.append("at once"))
    assert sorted(calls) == ["at once", "later"]
