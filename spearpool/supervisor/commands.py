"""What people ask of a running pool over the bus: arguments checked, errors in words.

Everybody of this user can write to the socket, so arguments are whatever they are until they were looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from spearpool.errors import ConfigError, PoolError
from spearpool.protocol.credentials import RIGHTS

from .keys import Keys

__all__ = ["issue_token", "number_of", "seconds_of"]

_MAX_NAME_BYTES = 128

Arguments = dict[str, Any]


def seconds_of(arguments: Arguments, name: str) -> float | None:
    """A finite number of seconds, None when it is not given. Raises `PoolError`."""
    value = arguments.get(name)
    if value is not None and (not isinstance(value, int | float) or not 0 <= value < math.inf):
        raise PoolError(f"{name} = {value!r}: expected a finite number of seconds, 0 or more")
    return value


def number_of(arguments: Arguments, name: str) -> int:
    """A whole number that must be given. Raises `ConfigError`."""
    value = arguments.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(name, value, "a whole number")
    return value


def issue_token(arguments: Arguments, keys: Keys, tasks: Collection[str], wall_now: float) -> dict[str, Any]:
    """A new token for an agent (`task`) or for a client (`rights`, default `submit`). Raises `PoolError`."""
    name, task = arguments.get("instance_id"), arguments.get("task")
    rights, ttl_s = arguments.get("rights") or ["submit"], seconds_of(arguments, "ttl_s")
    if not isinstance(name, str) or not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
        raise PoolError(f"instance_id = {name!r}: expected 1 to {_MAX_NAME_BYTES} bytes of text")
    if task is not None and not (isinstance(task, str) and task in tasks):
        raise PoolError(f"no task is named {task!r}; there are: {', '.join(tasks) or 'none'}")
    if not isinstance(rights, list) or not all(right in RIGHTS for right in rights):
        raise PoolError(f"rights = {rights!r}: expected some of {', '.join(RIGHTS)}")
    if task is not None:
        token, expires = keys.for_agent(name, task, wall_now, ttl_s)
    else:
        token, expires = keys.for_client(name, wall_now, rights, ttl_s)
    return {"instance_id": name, "token": token, "expires_s": expires}
