"""What came of an execution: a result, or one of the errors of `spearpool.errors`. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from spearpool.errors import (
    AuthenticationError,
    Draining,
    ErrorCode,
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
from spearpool.protocol.messages import UNSET, ErrorMessage, ExecuteResponse, ExecutionStatus

__all__ = ["Answer", "ExecutionResult", "Lost", "Overdue", "result_of"]


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """A completed execution. `exit_code` is set for `exec:` tasks; `duration_ms` is the time in its instance."""

    output: bytes = field(repr=False)
    exit_code: int | None
    duration_ms: int | None
    execution_id: str | None


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended after the request was sent and before its answer."""

    why: str


@dataclass(frozen=True, slots=True)
class Overdue:
    """The pool said nothing, not even that the time was up."""


Answer = ExecuteResponse | ErrorMessage | Lost | Overdue

_ENDED: dict[ExecutionStatus, type[ExecutionError]] = {
    ExecutionStatus.FAILED: ExecutionFailed,
    ExecutionStatus.TIMEOUT: ExecutionTimeout,
    ExecutionStatus.CANCELLED: ExecutionCancelled,
}
_ENDED_BY_CODE: dict[int, type[ExecutionError]] = {
    ErrorCode.TIMED_OUT: ExecutionTimeout,
    ErrorCode.CANCELLED: ExecutionCancelled,
    ErrorCode.OUTCOME_UNKNOWN: OutcomeUnknown,
}
_REFUSED: dict[int, type[RequestRefused]] = {
    ErrorCode.UNKNOWN: UnknownTask,
    ErrorCode.OVERLOADED: Overloaded,
    ErrorCode.DRAINING: Draining,
}


def result_of(task: str, answer: Answer) -> ExecutionResult:
    """The result, or what the answer means: an `ExecutionError`, `RequestRefused` or `AuthenticationError`."""
    match answer:
        case ExecuteResponse(status=ExecutionStatus.COMPLETED):
            return ExecutionResult(_output(answer), answer.exit_code, answer.duration_ms, _id(answer))
        case ExecuteResponse():
            raise _failure(task, answer)
        case ErrorMessage():
            raise _refusal(task, answer)
        case Lost(why):
            raise OutcomeUnknown(
                f"task {task!r}: the connection to the pool was lost ({why}) after the request was sent; "
                "its outcome is unknown: it may or may not have taken effect",
                task=task,
            )
        case Overdue():
            raise ExecutionTimeout(f"task {task!r}: the pool gave no answer in time", task=task)


def _failure(task: str, response: ExecuteResponse) -> ExecutionError:
    kind = _ENDED.get(response.status, ExecutionFailed)
    if response.error_code is not UNSET:
        kind = _ENDED_BY_CODE.get(response.error_code, kind)
    return kind(
        f"task {task!r}: {response.error or response.status.value.lower()}",
        task=task,
        execution_id=_id(response),
        exit_code=response.exit_code,
        output=_output(response),
    )


def _refusal(task: str, error: ErrorMessage) -> SpearpoolError:
    words = f"task {task!r}: {error.message}"
    if error.error_code == ErrorCode.NOT_AUTHENTICATED:
        return AuthenticationError(words)
    ended = _ENDED_BY_CODE.get(error.error_code)
    if ended is not None:
        return ended(words, task=task)
    return _REFUSED.get(error.error_code, RequestRefused)(words, error.error_code, error.details)


def _output(response: ExecuteResponse) -> bytes:
    if response.output_data is not UNSET:
        return response.output_data
    return (response.output or "").encode()


def _id(response: ExecuteResponse) -> str | None:
    return None if response.execution_id is UNSET else response.execution_id
