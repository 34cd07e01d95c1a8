"""The pool's keys and the tokens made with them.

Two keys: the *launch* key lives in this process's memory only and signs the secrets of launched instances, which are
valid as long as their row in the instances table is; the *issue* key is kept in the state directory and signs tokens
that people hand out (`spearpool token issue`, `client.token`), which therefore survive a restart and must expire.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

from spearpool.protocol.credentials import RIGHTS, Role, TokenKey, make_token
from spearpool.protocol.identifiers import InstanceId
from spearpool.runtime_dir import StateDir
from spearpool.worker.control import Key

__all__ = ["Keys"]

_OWNER_RIGHTS = tuple(right for right in RIGHTS if right != "closures")
"""What `client.token` allows; closures run arbitrary code and travel under a token of their own."""


class Keys:
    """Makes tokens. `issued_ttl_s` is the life of a token when nobody asks for another."""

    def __init__(self, issue: TokenKey, issued_ttl_s: float) -> None:
        self._launch = TokenKey("launch", secrets.token_bytes(32))
        self._issue = issue
        self._ttl_s = issued_ttl_s

    @classmethod
    def open(cls, state: StateDir, issued_ttl_s: float) -> Keys:
        """With the issuing key of the state directory, made there if need be. Raises `PoolError`."""
        return cls(TokenKey(*state.issuing_key()), issued_ttl_s)

    def for_workers(self) -> list[Key]:
        """The keys as they travel to a worker over its control channel."""
        return [Key(key.key_id, key.secret) for key in (self._launch, self._issue)]

    def for_instance(self, instance: InstanceId, name: str) -> str:
        """The secret of a launched instance."""
        return make_token(self._launch, Role.AGENT, name, f"{instance.row}:{instance.generation}")

    def for_agent(self, name: str, task: str, wall_now: float, ttl_s: float | None = None) -> tuple[str, int]:
        """A token for an agent that somebody else starts, and its expiry (seconds since 1970)."""
        expires = math.ceil(wall_now + (ttl_s or self._ttl_s))
        return make_token(self._issue, Role.AGENT, name, task, expires), expires

    def for_client(
        self, name: str, wall_now: float, rights: Sequence[str] = _OWNER_RIGHTS, ttl_s: float | None = None
    ) -> tuple[str, int]:
        """A token for a client, and its expiry (seconds since 1970)."""
        expires = math.ceil(wall_now + (ttl_s or self._ttl_s))
        return make_token(self._issue, Role.CLIENT, name, "+".join(rights), expires), expires
