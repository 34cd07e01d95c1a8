from __future__ import annotations

import time
from math import inf
from typing import Any

import pytest

from spearpool.errors import ErrorCode
from spearpool.metrics.vocabulary import FINAL_STAGES
from spearpool.packing import replace
from spearpool.protocol.messages import UNSET, ExecuteResponse, ExecutionMode, ExecutionStatus
from spearpool.worker.execution_messages import (
    FINAL_STAGE,
    ended,
    failed,
    named,
    not_understood,
    passed_on,
    time_limit_s,
)
from spearpool.worker.executions import Ending

from .boards import new_execution
from .peers import request


@pytest.mark.parametrize(
    ("fields", "limit_s"),
    [
        ({}, inf),
        ({"timeout": 3}, 3.0),
        ({"deadline_ms": 1500}, 1.5),
        ({"timeout": 3, "deadline_ms": 1500}, 1.5),
        ({"timeout": 1, "deadline_ms": 1500}, 1.0),
        ({"timeout": 0}, 0.0),
        ({"timeout": 2**64 - 1}, float(2**64 - 1)),
    ],
)
def test_the_shorter_limit_counts(fields: dict[str, Any], limit_s: float) -> None:
    assert time_limit_s(request(**fields)) == limit_s


@pytest.mark.parametrize("mode", list(ExecutionMode))
def test_modes_that_are_not_served(mode: ExecutionMode) -> None:
    said = not_understood(request(mode=mode))
    assert bool(said) == (mode is not ExecutionMode.SYNC)
    assert mode.value in said or not said


def test_reserved_commands_are_not_served() -> None:
    assert "@result" in not_understood(replace(request(), command="@result"))
    assert not_understood(replace(request(), command="result")) == ""


def test_is_passed_on_with_our_id_and_what_remains() -> None:
    execution = new_execution(deadline=time.monotonic() + 5.0)
    execution.request = request(
        args=["x"], env={"A": "1"}, working_dir="/", timeout=9, input=b"\0", hops=7, execution_id="the client's"
    )
    sent = passed_on(execution, hops=1)
    assert (sent.args, sent.env, sent.working_dir, sent.timeout, sent.input_data) == (["x"], {"A": "1"}, "/", 9, b"\0")
    assert sent.execution_id == execution.execution_id
    assert sent.hops == 1
    assert sent.deadline_ms is not UNSET
    assert 4000 < sent.deadline_ms <= 5000
    assert passed_on(execution).hops is UNSET


def test_no_limit_is_not_written_and_a_passed_one_is_zero() -> None:
    assert passed_on(new_execution()).deadline_ms is UNSET
    assert passed_on(new_execution(deadline=time.monotonic() - 5.0)).deadline_ms == 0


def test_every_answer_bears_the_id() -> None:
    response = ExecuteResponse("a", ExecutionStatus.COMPLETED, "x")
    assert named(response, "id").execution_id == "id"
    assert named(replace(response, execution_id="false"), "id").execution_id == "id"
    right = replace(response, execution_id="id")
    assert named(right, "id") is right


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [
        (Ending.TIMED_OUT, ExecutionStatus.TIMEOUT, UNSET),
        (Ending.CANCELLED, ExecutionStatus.CANCELLED, UNSET),
        (Ending.OUTCOME_UNKNOWN, ExecutionStatus.FAILED, ErrorCode.OUTCOME_UNKNOWN),
    ],
)
def test_ends_without_an_agents_answer(ending: Ending, status: ExecutionStatus, code: object) -> None:
    execution = new_execution()
    execution.received_at = time.monotonic() - 1.0
    answer = ended(execution, ending)
    assert (answer.status, answer.error_code, answer.execution_id) == (status, code, execution.execution_id)
    assert answer.error
    assert answer.duration_ms is not None
    assert answer.duration_ms >= 1000


def test_failed_says_why() -> None:
    answer = failed("a", "too large", "id", ErrorCode.TOO_LARGE)
    assert (answer.status, answer.error, answer.error_code) == (ExecutionStatus.FAILED, "too large", 413)


def test_every_final_status_is_counted() -> None:
    assert set(FINAL_STAGE) == {status for status in ExecutionStatus if status.final}
    assert set(FINAL_STAGE.values()) <= FINAL_STAGES
