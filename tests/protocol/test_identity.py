"""Identities are values; the rights are the contract's."""

from __future__ import annotations

import pytest

from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.identity import RIGHTS, Identity, Role


def test_roles_and_rights_are_those_of_the_tokens() -> None:
    assert [role.value for role in Role] == ["agent", "client"]
    assert RIGHTS == ("submit", "observe", "control", "closures")


def test_whoever_is_not_given_a_right_has_none() -> None:
    identity = Identity(Role.CLIENT, "cli", "cli")
    assert identity.rights == frozenset()
    assert (identity.instance, identity.task, identity.expires_at) == (None, "", None)


def test_an_identity_is_a_frozen_value() -> None:
    agent = Identity(Role.AGENT, "thumb-0-1", "thumb-0-1", InstanceId(0, 1))
    assert agent == Identity(Role.AGENT, "thumb-0-1", "thumb-0-1", InstanceId(0, 1))
    with pytest.raises(AttributeError):
        agent.rights = frozenset(RIGHTS)  # type: ignore[misc]
