"""A check that fails says key, value and what was expected."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from spearpool.config_checks import expect, positive
from spearpool.errors import ConfigError


def test_what_holds_passes() -> None:
    expect("pool.port", 9100, True, "a port")
    positive("pool", SimpleNamespace(a=1, b=0.5), "a", "b")


def test_what_does_not_hold_is_named() -> None:
    with pytest.raises(ConfigError, match=r"pool\.port = 0: expected a port"):
        expect("pool.port", 0, False, "a port")


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize(("section", "key"), [("pool", "pool.a"), ("", "a")])
def test_a_number_that_is_not_above_0_is_named_with_its_section(section: str, key: str, value: float) -> None:
    with pytest.raises(ConfigError) as raised:
        positive(section, SimpleNamespace(a=value), "a")
    assert raised.value.key == key
