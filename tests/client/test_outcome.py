"""Each answer of a pool, and what it means to the caller."""

from __future__ import annotations

from typing import Any

import pytest

from spearpool.client.outcome import Answer, ExecutionResult, Lost, Overdue, result_of
from spearpool.errors import (
    AuthenticationError,
    Draining,
    ExecutionCancelled,
    ExecutionError,
    ExecutionFailed,
    ExecutionTimeout,
    OutcomeUnknown,
    Overloaded,
    RequestRefused,
    SpearpoolError,
    UnknownTask,
)
from spearpool.protocol.messages import ErrorMessage, ExecuteResponse, ExecutionStatus


def response(status: ExecutionStatus, **fields: Any) -> ExecuteResponse:
    return ExecuteResponse("t", status, **fields)


@pytest.mark.parametrize(
    ("fields", "output"),
    [({"output": "grüße"}, "grüße".encode()), ({"output_data": b"\xff"}, b"\xff"), ({}, b""), ({"output": ""}, b"")],
)
def test_a_result(fields: dict[str, Any], output: bytes) -> None:
    answer = response(ExecutionStatus.COMPLETED, exit_code=0, duration_ms=7, execution_id="0-a-1-2", **fields)
    assert result_of("t", answer) == ExecutionResult(output, 0, 7, "0-a-1-2")


def test_a_result_of_a_pool_that_gives_no_ids() -> None:
    assert result_of("t", response(ExecutionStatus.COMPLETED)).execution_id is None


ERRORS: list[tuple[Answer, type[SpearpoolError], str]] = [
    (response(ExecutionStatus.FAILED, error="ValueError: x"), ExecutionFailed, "task 't': ValueError: x"),
    (response(ExecutionStatus.FAILED), ExecutionFailed, "task 't': failed"),
    (response(ExecutionStatus.TIMEOUT), ExecutionTimeout, "task 't': timeout"),
    (response(ExecutionStatus.CANCELLED, error="cancelled"), ExecutionCancelled, "task 't': cancelled"),
    (response(ExecutionStatus.FAILED, error="lost", error_code=502), OutcomeUnknown, "task 't': lost"),
    (response(ExecutionStatus.FAILED, error="late", error_code=408), ExecutionTimeout, "task 't': late"),
    (ErrorMessage(404, "no task 't'"), UnknownTask, "task 't': no task 't'"),
    (ErrorMessage(429, "queue full", "250"), Overloaded, "task 't': queue full"),
    (ErrorMessage(503, "stopping"), Draining, "task 't': stopping"),
    (ErrorMessage(403, "no right"), RequestRefused, "task 't': no right"),
    (ErrorMessage(401, "who are you"), AuthenticationError, "task 't': who are you"),
    (ErrorMessage(408, "too late"), ExecutionTimeout, "task 't': too late"),
    (ErrorMessage(499, "cancelled"), ExecutionCancelled, "task 't': cancelled"),
    (ErrorMessage(502, "gone"), OutcomeUnknown, "task 't': gone"),
    (ErrorMessage(999, "new"), RequestRefused, "task 't': new"),
    (Overdue(), ExecutionTimeout, "task 't': the pool gave no answer in time"),
]


@pytest.mark.parametrize(("answer", "kind", "words"), ERRORS, ids=[row[2] for row in ERRORS])
def test_an_error(answer: Answer, kind: type[SpearpoolError], words: str) -> None:
    with pytest.raises(SpearpoolError) as caught:
        result_of("t", answer)
    assert type(caught.value) is kind
    assert str(caught.value) == words


def test_a_failure_carries_what_is_known_of_it() -> None:
    answer = response(
        ExecutionStatus.FAILED, error="exit code 3", exit_code=3, output_data=b"\xffpart", execution_id="0-a-1-2"
    )
    with pytest.raises(ExecutionError) as caught:
        result_of("t", answer)
    error = caught.value
    assert (error.task, error.execution_id, error.exit_code, error.output) == ("t", "0-a-1-2", 3, b"\xffpart")


def test_a_refusal_carries_code_and_details() -> None:
    with pytest.raises(Overloaded) as caught:
        result_of("t", ErrorMessage(429, "queue full", "250"))
    assert (caught.value.code, caught.value.details, caught.value.retry_after_s) == (429, "250", 0.25)


def test_a_lost_connection_says_that_the_outcome_is_unknown() -> None:
    with pytest.raises(
        OutcomeUnknown, match=r"lost \(peer: drain\) after the request was sent; its outcome is unknown"
    ):
        result_of("t", Lost("peer: drain"))
