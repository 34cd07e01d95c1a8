"""Validators of foreign tokens (`security.validator`)."""

from __future__ import annotations

from spearpool.protocol.credentials import Grant

__all__ = ["SPIN", "refuse_or_spin"]

SPIN = "turn for ever"
"""The token that a validator never comes back from."""


def refuse_or_spin(_instance_id: str, token: str) -> Grant | None:
    while token == SPIN:
        pass
    return None
