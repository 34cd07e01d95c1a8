"""What is said about an execution: the request as it is passed on, and the answers that are made here."""

from __future__ import annotations

import time
from math import inf

from spearpool.errors import ErrorCode
from spearpool.metrics.vocabulary import ExecutionStage
from spearpool.packing import replace
from spearpool.protocol.messages import (
    UNSET,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionMode,
    ExecutionStatus,
    UnsetType,
)

from .executions import Agent, Ending, Execution

__all__ = [
    "FINAL_STAGE",
    "ended",
    "failed",
    "named",
    "not_understood",
    "overran",
    "passed_on",
    "request_answered",
    "time_limit_s",
]

FINAL_STAGE = {
    ExecutionStatus.COMPLETED: ExecutionStage.COMPLETED,
    ExecutionStatus.FAILED: ExecutionStage.FAILED,
    ExecutionStatus.CANCELLED: ExecutionStage.CANCELLED,
    ExecutionStatus.TIMEOUT: ExecutionStage.TIMEOUT,
}
"""What an execution is counted as, by the status of its final answer."""

_ENDINGS: dict[Ending, tuple[ExecutionStatus, str]] = {
    Ending.TIMED_OUT: (ExecutionStatus.TIMEOUT, "the deadline passed"),
    Ending.CANCELLED: (ExecutionStatus.CANCELLED, "cancelled"),
    Ending.OUTCOME_UNKNOWN: (
        ExecutionStatus.FAILED,
        "the process that worked on it was lost: it may or may not have taken effect",
    ),
}


def time_limit_s(request: ExecuteRequest) -> float:
    """The shorter of `timeout` and `deadline_ms`; inf for none."""
    seconds = inf if request.timeout is None else float(request.timeout)
    return seconds if request.deadline_ms is UNSET else min(seconds, request.deadline_ms / 1000)


def not_understood(request: ExecuteRequest) -> str:
    """What in the request is not served, or ""."""
    if request.command.startswith("@"):
        return f"the command {request.command!r} is not known"
    if request.mode is not ExecutionMode.SYNC:
        return f"the mode {request.mode.value} is not served; use Sync"
    return ""


def passed_on(execution: Execution, hops: int | UnsetType = UNSET) -> ExecuteRequest:
    """The request as the next one gets it: with our execution id, and the time that remains."""
    request = execution.request
    remaining_ms: int | UnsetType = UNSET
    if execution.deadline < inf:
        remaining_ms = max(0, int((execution.deadline - time.monotonic()) * 1000))
    return ExecuteRequest(
        request.task_id,
        request.command,
        request.args,
        request.env,
        request.working_dir,
        request.timeout,
        request.mode,
        request.input_data,
        execution.execution_id,
        deadline_ms=remaining_ms,
        hops=hops,
    )


def named(response: ExecuteResponse, execution_id: str) -> ExecuteResponse:
    """An agent's answer with the execution's id, which not every agent repeats."""
    return response if response.execution_id == execution_id else replace(response, execution_id=execution_id)


def failed(task: str, error: str, execution_id: str, code: int) -> ExecuteResponse:
    return ExecuteResponse(task, ExecutionStatus.FAILED, error=error, execution_id=execution_id, error_code=code)


def overran(task: str, execution_id: str, limit_s: float) -> ExecuteResponse:
    """The final answer to an execution that was ended at its task's limit."""
    text = f"it ran longer than the limit of its task, execution_timeout_s = {limit_s:g}"
    took_ms = int(limit_s * 1000)
    return ExecuteResponse(task, ExecutionStatus.TIMEOUT, error=text, duration_ms=took_ms, execution_id=execution_id)


def ended(execution: Execution, ending: Ending) -> ExecuteResponse:
    """The final answer to an execution that got none from its agent."""
    status, text = _ENDINGS[ending]
    return ExecuteResponse(
        execution.task,
        status,
        error=text,
        duration_ms=int((time.monotonic() - execution.received_at) * 1000),
        execution_id=execution.execution_id,
        error_code=ErrorCode.OUTCOME_UNKNOWN if ending is Ending.OUTCOME_UNKNOWN else UNSET,
    )


def request_answered(agent: Agent, number: int, response: ExecuteResponse) -> str:
    """The execution that an agent's answer is about, "" when there is none.

    It was sent over this very connection under this request id; or, named by the answer, under none: then the agent has
    brought it along from an earlier connection, where request ids meant something else.
    """
    name = agent.sent.pop(number, "")
    named = response.execution_id
    if named is UNSET or named == name:
        return name
    if name:
        agent.sent[number] = name
    return "" if named in agent.sent.values() else named
