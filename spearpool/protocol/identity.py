"""Who is at the other end of a connection, and what they may do there."""

from __future__ import annotations

from enum import Enum

import msgspec

from .identifiers import InstanceId

__all__ = ["RIGHTS", "Identity", "Role"]

RIGHTS = ("submit", "observe", "control", "closures")
"""What a client may be allowed: run tasks, watch, change a running pool, send closures."""


class Role(Enum):
    AGENT = "agent"
    CLIENT = "client"

    __hash__ = object.__hash__  # see MessageType


class Identity(msgspec.Struct, frozen=True):
    """Who is at the other end. `label` is the `instance_id` as given.

    An agent has either `instance` (launched by the pool) or `task` (issued token, or a validator's word); a client has
    rights. `expires_at` is wall-clock seconds, None for never.
    """

    role: Role
    label: str
    token_id: str
    instance: InstanceId | None = None
    task: str = ""
    rights: frozenset[str] = frozenset()
    expires_at: float | None = None
