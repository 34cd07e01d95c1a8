"""The limits of a session, apart from the configuration: an agent needs them without reading a configuration file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:  # an agent shall not pay for loading it
    from spearpool.config import ConnectionManagerConfig

__all__ = ["UNAUTHENTICATED_MAX_BYTES", "SessionSettings"]

UNAUTHENTICATED_MAX_BYTES = 64 * 1024
"""Limit of a frame until authentication."""


class SessionSettings(msgspec.Struct, frozen=True):
    """Seconds and bytes; `inf` switches a time limit off."""

    auth_timeout_s: float
    heartbeat_interval_s: float
    heartbeat_timeout_s: float
    connection_timeout_s: float
    max_message_bytes: int

    @classmethod
    def from_config(cls, config: ConnectionManagerConfig) -> SessionSettings:
        return cls(
            auth_timeout_s=config.auth_timeout,
            heartbeat_interval_s=config.heartbeat_interval,
            heartbeat_timeout_s=config.heartbeat_timeout,
            connection_timeout_s=config.connection_timeout,
            max_message_bytes=config.max_message_size,
        )
