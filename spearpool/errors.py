"""Every error that spearpool raises on purpose.

One root, `SpearpoolError`; below it the meaning comes first and the details are attributes. A message says what was
expected, what was found and what to do about it. Codes sent on the wire are in `ErrorCode`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

__all__ = [
    "AuthenticationError",
    "ConfigError",
    "ConnectionLost",
    "Draining",
    "ErrorCode",
    "ExecutionCancelled",
    "ExecutionError",
    "ExecutionFailed",
    "ExecutionTimeout",
    "InstanceStartError",
    "LocalProtocolError",
    "NoSuchPool",
    "OutcomeUnknown",
    "Overloaded",
    "PoolAlreadyRunning",
    "PoolError",
    "PoolStartError",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestRefused",
    "SegmentError",
    "SpearpoolError",
    "UnknownTask",
]


class ErrorCode(IntEnum):
    """Codes of the wire's `Error` message and of a failed `ExecuteResponse`."""

    MALFORMED = 400
    NOT_AUTHENTICATED = 401
    REFUSED = 403
    UNKNOWN = 404
    TIMED_OUT = 408
    CONFLICT = 409
    TOO_LARGE = 413
    VERSION = 426
    OVERLOADED = 429
    CANCELLED = 499
    INTERNAL = 500
    OUTCOME_UNKNOWN = 502
    DRAINING = 503


class SpearpoolError(Exception):
    """Root of all errors that spearpool raises on purpose. They can be pickled, so that they pass through futures."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[SpearpoolError], args: tuple[object, ...], attributes: dict[str, object]) -> SpearpoolError:
    """An error as it was, without its constructor: that one composes messages and takes more than `args`."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class ConfigError(SpearpoolError):
    """A setting is wrong. Carries the dotted `key`, the `value` found and what was `expected`."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} = {value!r}: expected {expected}")
        self.key = key
        self.value = value
        self.expected = expected


class ProtocolError(SpearpoolError):
    """The wire format or the order of messages was violated. `code` is the wire's error code."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.MALFORMED) -> None:
        super().__init__(message)
        self.code = code


class LocalProtocolError(ProtocolError):
    """We tried to do what the protocol does not allow now: a bug on our side. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow. The session is over."""


class AuthenticationError(SpearpoolError):
    """The peer refused our credentials, or could not prove its own."""


class ConnectionLost(SpearpoolError):
    """The connection to the pool ended and could not be made again in time."""


class SegmentError(SpearpoolError):
    """The shared-memory segment cannot be made, or is not one that this version can read."""


class PoolError(SpearpoolError):
    """A pool cannot be started, reached or stopped."""


class NoSuchPool(PoolError):
    """No pool of that name is running for this user."""


class PoolAlreadyRunning(PoolError):
    """A pool of that name is running already. `pid` is its supervisor, if known."""

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class PoolStartError(PoolError):
    """The pool could not be started; everything it had begun has been undone."""


class InstanceStartError(SpearpoolError):
    """An instance did not become ready. `stage` is the last stage it reached."""

    def __init__(self, message: str, *, instance_id: str, task: str, stage: str) -> None:
        super().__init__(message)
        self.instance_id = instance_id
        self.task = task
        self.stage = stage


class RequestRefused(SpearpoolError):
    """The pool answered a request with an `Error`: nothing was executed."""

    def __init__(self, message: str, code: int, details: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class UnknownTask(RequestRefused):
    """The pool has no task, instance or execution of that name (404)."""


class Overloaded(RequestRefused):
    """The queue is full (429). `retry_after_s` is the pool's own estimate."""

    @property
    def retry_after_s(self) -> float:
        try:
            return int(self.details or "") / 1000
        except ValueError:
            return 1.0


class Draining(RequestRefused):
    """The pool is stopping, or the task cannot be served now (503)."""


class ExecutionError(SpearpoolError):
    """An accepted execution did not end `Completed`."""

    def __init__(
        self,
        message: str,
        *,
        task: str = "",
        execution_id: str | None = None,
        exit_code: int | None = None,
        output: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.task = task
        self.execution_id = execution_id
        self.exit_code = exit_code
        self.output = output


class ExecutionFailed(ExecutionError):
    """The handler raised, or the program exited with another code than 0."""


class ExecutionTimeout(ExecutionError):
    """The execution's deadline passed."""


class ExecutionCancelled(ExecutionError):
    """The execution was cancelled."""


class OutcomeUnknown(ExecutionError):
    """The process that worked on it was lost: it may or may not have taken effect (502)."""
