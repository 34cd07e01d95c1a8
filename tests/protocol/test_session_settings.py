"""The limits of a session come from the configuration's section, field by field."""

from __future__ import annotations

from spearpool.config import ConnectionManagerConfig
from spearpool.protocol.session_settings import UNAUTHENTICATED_MAX_BYTES, SessionSettings


def test_limits_come_from_the_configuration() -> None:
    config = ConnectionManagerConfig(
        auth_timeout=1.0,
        heartbeat_interval=2.0,
        heartbeat_timeout=3.0,
        connection_timeout=4.0,
        max_message_size=70_000,
    )
    assert SessionSettings.from_config(config) == SessionSettings(
        auth_timeout_s=1.0,
        heartbeat_interval_s=2.0,
        heartbeat_timeout_s=3.0,
        connection_timeout_s=4.0,
        max_message_bytes=70_000,
    )


def test_strangers_may_send_64_kib() -> None:
    assert UNAUTHENTICATED_MAX_BYTES == 65_536
