"""The rules of structs, apart from any spelling: here an object is a list of pairs."""

from __future__ import annotations

from typing import Any

import pytest

from spearpool.protocol.messages import (
    U64_MAX,
    UNSET,
    AuthResponse,
    ConnectionClose,
    ErrorMessage,
    ExecuteRequest,
    StreamData,
    Timestamp,
    UnsetType,
)
from spearpool.protocol.strict_struct import Key, Reader, Wrong, absent_and_present, make_key, struct_reader


def read(kind: type[Any], *pairs: tuple[str, Any]) -> Any:
    """Every value as it is; 'bad' is a wrong one."""

    def value(text: Any) -> Any:
        if text == "bad":
            raise Wrong("expected better, found bad", ".deep")
        return text

    read_pairs: Reader = struct_reader(kind, lambda found: found, lambda _annotation: value)
    return read_pairs(pairs)


def refused(kind: type[Any], *pairs: tuple[str, Any]) -> str:
    with pytest.raises(Wrong) as caught:
        read(kind, *pairs)
    return str(caught.value)


def test_keys_in_any_order_with_unknown_ones() -> None:
    found = read(ErrorMessage, ("x", 1), ("message", "m"), ("error_code", 5), ("y", 2))
    assert found == ErrorMessage(5, "m")


def test_a_second_key_is_refused_whether_it_is_known_or_not() -> None:
    assert (
        refused(ErrorMessage, ("message", "m"), ("message", "m"))
        == ": expected each key once, found a second 'message'"
    )
    assert "a second 'x'" in refused(ErrorMessage, ("x", 1), ("x", 1))


def test_a_missing_key_is_named() -> None:
    assert refused(ErrorMessage, ("message", "m")) == ".error_code: expected this key to be there, found nothing"


def test_what_may_be_null_or_is_ours_may_be_missing() -> None:
    pairs = {"stream_id": "s", "data": b"", "is_last": True, "sequence": 0}
    assert read(StreamData, *pairs.items()) == StreamData("s", b"", True, 0)
    assert read(AuthResponse, ("success", True)) == AuthResponse(True)
    assert read(ConnectionClose) == ConnectionClose()
    assert ".mode: expected" in refused(
        ExecuteRequest, *dict.fromkeys(["task_id", "command", "args", "env"], "").items()
    )


def test_a_wrong_value_is_found_by_its_path() -> None:
    assert refused(ErrorMessage, ("message", "bad")) == ".message.deep: expected better, found bad"


def test_a_timestamp_is_closed_and_carries() -> None:
    pairs = (("secs_since_epoch", 1), ("nanos_since_epoch", 2_500_000_000))
    assert read(Timestamp, *pairs) == Timestamp(3, 500_000_000)
    assert "expected no other keys than secs_since_epoch, nanos_since_epoch, found 'zone'" in refused(
        Timestamp, *pairs, ("zone", 0)
    )
    assert "seconds, found 18446744073709551616" in refused(
        Timestamp, ("secs_since_epoch", U64_MAX), ("nanos_since_epoch", 10**9)
    )


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [(str, None), (list[str], None), (str | None, (None, str)), (bytes | UnsetType, (UNSET, bytes))],
)
def test_what_an_optional_annotation_is_made_of(annotation: Any, expected: Any) -> None:
    assert absent_and_present(annotation) == expected


def test_equal_keys_stay_apart() -> None:
    assert make_key(Key, "x") != make_key(Key, "x")
    assert make_key(Key, "x").text == "x"
