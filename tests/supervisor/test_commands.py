"""What is asked over the bus: tokens that verify, and every wrong argument answered in words."""

from __future__ import annotations

from typing import Any

import pytest

from spearpool.errors import ConfigError, PoolError
from spearpool.protocol.credentials import RIGHTS, TokenKey, Verifier
from spearpool.protocol.identity import Identity, Role
from spearpool.protocol.messages import AuthRequest
from spearpool.supervisor.commands import issue_token, number_of, seconds_of
from spearpool.supervisor.keys import Keys

NOW = 1_700_000_000.25


@pytest.fixture
def keys() -> Keys:
    return Keys(TokenKey("issue", b"k" * 32), issued_ttl_s=100.0)


def _issue(keys: Keys, **arguments: Any) -> dict[str, Any]:
    return issue_token(arguments, keys, ["embed", "sum"], NOW)


def _identity(keys: Keys, reply: dict[str, Any], now: float = NOW) -> Identity:
    verifier = Verifier([TokenKey(k.key_id, k.secret) for k in keys.for_workers()], row_is_alive=lambda *_: True)
    found = verifier.verify(AuthRequest(reply["instance_id"], reply["token"], "1", "test", {}), now)
    assert isinstance(found, Identity), found
    return found


def test_token_of_an_agent(keys: Keys) -> None:
    reply = _issue(keys, instance_id="gpu-1", task="embed", ttl_s=0.5)
    found = _identity(keys, reply, NOW + 0.5)
    assert (found.role, found.label, found.task) == (Role.AGENT, "gpu-1", "embed")
    assert 0.5 <= reply["expires_s"] - NOW < 1.5  # never shorter than asked, and in whole seconds


def test_token_of_a_client(keys: Keys) -> None:
    reply = _issue(keys, instance_id="ci")
    assert _identity(keys, reply).rights == {"submit"}
    assert 100 <= reply["expires_s"] - NOW < 101
    everything = _issue(keys, instance_id="ci", rights=list(RIGHTS))
    assert _identity(keys, everything).rights == set(RIGHTS)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "instance_id = None: expected 1 to 128 bytes"),
    ({"instance_id": ""}, "instance_id = ''"),
    ({"instance_id": "ü" * 65}, "expected 1 to 128 bytes"),
    ({"instance_id": 7}, "instance_id = 7"),
    ({"task": "unknown"}, "no task is named 'unknown'; there are: embed, sum"),
    ({"task": ["embed"]}, r"no task is named \['embed'\]"),
    ({"rights": "submit"}, "rights = 'submit': expected some of submit, observe, control, closures"),
    ({"rights": ["submit", "fly"]}, "rights = "),
    ({"ttl_s": "long"}, "ttl_s = 'long': expected a finite number of seconds"),
    ({"ttl_s": -1}, "ttl_s = -1"),
    ({"ttl_s": float("inf")}, "ttl_s = inf"),
    ({"ttl_s": float("nan")}, "ttl_s = nan"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_arguments(keys: Keys, arguments: dict[str, Any], words: str) -> None:
    usual = {"instance_id": "gpu-1"} if "instance_id" not in arguments and arguments else {}
    with pytest.raises(PoolError, match=words):
        _issue(keys, **{**usual, **arguments})


def test_a_pool_without_tasks_says_so(keys: Keys) -> None:
    with pytest.raises(PoolError, match="there are: none"):
        issue_token({"instance_id": "a", "task": "embed"}, keys, [], NOW)


def test_seconds() -> None:
    assert seconds_of({}, "timeout_s") is None
    assert seconds_of({"timeout_s": None}, "timeout_s") is None
    assert seconds_of({"timeout_s": 0}, "timeout_s") == 0
    assert seconds_of({"timeout_s": 1.5}, "timeout_s") == 1.5


@pytest.mark.parametrize("value", [None, "3", 3.0, True])
def test_a_whole_number_is_nothing_else(value: object) -> None:
    assert number_of({"workers": 3}, "workers") == 3
    with pytest.raises(ConfigError, match="expected a whole number"):
        number_of({"workers": value}, "workers")
