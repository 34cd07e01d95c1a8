"""The error tree: one root, plain values as attributes, messages for people."""

from __future__ import annotations

import inspect
import pickle

import pytest

from spearpool import errors
from spearpool.errors import (
    ConfigError,
    Draining,
    ErrorCode,
    ExecutionFailed,
    InstanceStartError,
    LocalProtocolError,
    NoSuchPool,
    OutcomeUnknown,
    Overloaded,
    PoolAlreadyRunning,
    PoolError,
    ProtocolError,
    RemoteProtocolError,
    RequestRefused,
    SpearpoolError,
    UnknownTask,
)

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, BaseException)]


def test_every_error_has_one_root_and_is_exported() -> None:
    for kind in CLASSES:
        assert issubclass(kind, SpearpoolError)
        assert kind.__name__ in errors.__all__


@pytest.mark.parametrize(
    ("kind", "parent"),
    [
        (LocalProtocolError, ProtocolError),
        (RemoteProtocolError, ProtocolError),
        (NoSuchPool, PoolError),
        (PoolAlreadyRunning, PoolError),
        (UnknownTask, RequestRefused),
        (Overloaded, RequestRefused),
        (Draining, RequestRefused),
        (OutcomeUnknown, errors.ExecutionError),
    ],
)
def test_meaning_comes_first(kind: type[SpearpoolError], parent: type[SpearpoolError]) -> None:
    assert issubclass(kind, parent)


def test_the_codes_are_the_wires() -> None:
    assert {code.name: code.value for code in ErrorCode} == {
        "MALFORMED": 400,
        "NOT_AUTHENTICATED": 401,
        "REFUSED": 403,
        "UNKNOWN": 404,
        "TIMED_OUT": 408,
        "CONFLICT": 409,
        "TOO_LARGE": 413,
        "VERSION": 426,
        "OVERLOADED": 429,
        "CANCELLED": 499,
        "INTERNAL": 500,
        "OUTCOME_UNKNOWN": 502,
        "DRAINING": 503,
    }


def test_a_config_error_says_key_value_and_expectation() -> None:
    error = ConfigError("pool.port", "high", "0 to 65535")
    assert str(error) == "pool.port = 'high': expected 0 to 65535"
    assert (error.key, error.value, error.expected) == ("pool.port", "high", "0 to 65535")


def test_a_protocol_error_carries_the_wires_code() -> None:
    assert RemoteProtocolError("not JSON").code is ErrorCode.MALFORMED
    assert RemoteProtocolError("70000 bytes", ErrorCode.TOO_LARGE).code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize(("details", "seconds"), [("250", 0.25), ("0", 0.0), (None, 1.0), ("", 1.0), ("soon", 1.0)])
def test_overload_tells_when_to_come_back(details: str | None, seconds: float) -> None:
    assert Overloaded("full", ErrorCode.OVERLOADED, details).retry_after_s == seconds


def test_errors_carry_plain_values() -> None:
    assert PoolAlreadyRunning("it runs", 7).pid == 7
    started = InstanceStartError("it ended", instance_id="t-1-1", task="t", stage="spawned")
    assert (started.instance_id, started.task, started.stage) == ("t-1-1", "t", "spawned")
    failed = ExecutionFailed("exit code 3", task="t", execution_id="0-1-1-1", exit_code=3, output=b"half")
    assert (failed.task, failed.execution_id, failed.exit_code, failed.output) == ("t", "0-1-1-1", 3, b"half")
    refused = UnknownTask("no task 'x'", 404)
    assert (refused.code, refused.details, str(refused)) == (404, None, "no task 'x'")


MADE: list[SpearpoolError] = [
    ConfigError("pool.port", "high", "0 to 65535"),
    RemoteProtocolError("70000 bytes", ErrorCode.TOO_LARGE),
    PoolAlreadyRunning("it runs", 7),
    InstanceStartError("it ended", instance_id="t-1-1", task="t", stage="spawned"),
    Overloaded("full", ErrorCode.OVERLOADED, "250"),
    ExecutionFailed("exit code 3", task="t", exit_code=3, output=b"half"),
    NoSuchPool("none"),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_with_their_values(error: SpearpoolError) -> None:
    """Someone uses a Client inside a process pool: an error that cannot be unpickled breaks that pool."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.args, copy.__dict__) == (type(error), str(error), error.args, error.__dict__)
