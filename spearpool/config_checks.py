"""How settings check their own values: each failure is a `ConfigError` with key, value and what was expected."""

from __future__ import annotations

import math

from .errors import ConfigError

__all__ = ["expect", "positive"]


def expect(key: str, value: object, ok: object, expected: str) -> None:
    if not ok:
        raise ConfigError(key, value, expected)


def positive(section: str, values: object, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        expect(".".join(filter(None, (section, name))), value, 0 < value < math.inf, "a finite number above 0")
