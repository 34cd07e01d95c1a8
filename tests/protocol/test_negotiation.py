"""Asking for an encoding, and taking it."""

from __future__ import annotations

import pytest

from spearpool.protocol.codec_v2 import MSGPACK_V2
from spearpool.protocol.messages import AuthRequest
from spearpool.protocol.negotiation import ASK, FEATURES, Encoding, encoding_asked, features

MSGPACK = Encoding(MSGPACK_V2, "encoding:msgpack")


def asked(**extra_params: str) -> Encoding | None:
    return encoding_asked(AuthRequest("i", "token", "1", "test", extra_params))


def test_what_we_ask_for_is_what_we_take() -> None:
    assert ASK == {"encodings": "msgpack"}
    assert asked(**ASK) == MSGPACK


@pytest.mark.parametrize("names", ["msgpack", " msgpack ", "cbor,msgpack", "msgpack,cbor", "x, msgpack"])
def test_the_first_that_is_known_is_taken(names: str) -> None:
    assert asked(encodings=names) == MSGPACK


@pytest.mark.parametrize("names", ["", ",", "json", "MSGPACK", "msgpack2", "msgpack cbor"])
def test_others_are_not(names: str) -> None:
    assert asked(encodings=names) is None


def test_nobody_is_given_what_was_not_asked_for() -> None:
    assert asked() is None
    assert asked(encoding="msgpack") is None


def test_a_server_says_what_it_takes_behind_what_it_can_do() -> None:
    assert features(None) == list(FEATURES)
    assert features(MSGPACK) == [*FEATURES, "encoding:msgpack"]
