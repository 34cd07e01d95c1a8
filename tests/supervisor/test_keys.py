"""Tokens made with the pool's keys are what workers' verifiers accept."""

from __future__ import annotations

import pytest

from spearpool.protocol.credentials import Refusal, TokenKey, Verifier
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.identity import Identity, Role
from spearpool.protocol.messages import AuthRequest
from spearpool.runtime_dir import StateDir
from spearpool.supervisor.keys import Keys
from tests.conftest import RuntimeEnv

NOW = 1_700_000_000.0


@pytest.fixture
def keys() -> Keys:
    return Keys(TokenKey("issue", b"k" * 32), issued_ttl_s=100.0)


def _verify(keys: Keys, name: str, token: str, alive: bool = True, now: float = NOW) -> Identity | Refusal:
    known = [TokenKey(key.key_id, key.secret) for key in keys.for_workers()]
    verifier = Verifier(known, row_is_alive=lambda _row, _generation: alive)
    return verifier.verify(AuthRequest(name, token, "1", "test", {}), now)


def test_launched_instance_lives_as_long_as_its_row(keys: Keys) -> None:
    token = keys.for_instance(InstanceId(3, 7), "thumb-3-7")
    found = _verify(keys, "thumb-3-7", token, now=NOW + 10**9)
    assert isinstance(found, Identity)
    assert (found.role, found.instance) == (Role.AGENT, InstanceId(3, 7))
    assert isinstance(_verify(keys, "thumb-3-7", token, alive=False), Refusal)
    assert isinstance(_verify(keys, "another", token), Refusal)


def test_issued_agent_serves_its_task_until_it_expires(keys: Keys) -> None:
    token, expires = keys.for_agent("gpu-1", "embed", NOW)
    assert expires == NOW + 100
    found = _verify(keys, "gpu-1", token)
    assert isinstance(found, Identity)
    assert (found.task, found.instance) == ("embed", None)
    assert isinstance(_verify(keys, "gpu-1", token, now=NOW + 101), Refusal)


def test_client_has_the_rights_that_were_given(keys: Keys) -> None:
    owner = _verify(keys, "me", keys.for_client("client.token", NOW)[0])
    guest = _verify(keys, "me", keys.for_client("guest", NOW, ["submit"], ttl_s=5)[0])
    assert isinstance(owner, Identity)
    assert isinstance(guest, Identity)
    assert owner.rights == {"submit", "observe", "control"}
    assert guest.rights == {"submit"}


def test_issue_key_survives_and_launch_key_does_not(runtime_env: RuntimeEnv) -> None:
    state = StateDir.locate("a", runtime_env.environ)
    first, second = Keys.open(state, 100.0), Keys.open(state, 100.0)
    issued, _ = first.for_agent("gpu-1", "embed", NOW)
    launched = first.for_instance(InstanceId(0, 1), "a-0-1")
    assert isinstance(_verify(second, "gpu-1", issued), Identity)
    assert isinstance(_verify(second, "a-0-1", launched), Refusal)
