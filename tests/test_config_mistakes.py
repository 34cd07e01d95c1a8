"""The words of a mistake, apart from any real configuration. Those of real ones are in `test_config`."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from spearpool.config_mistakes import did_you_mean, explain
from spearpool.errors import ConfigError
from spearpool.packing import Section, UnpackError, from_plain


class Shade(Enum):
    PAPER = "paper"
    GLASS = "glass"


class Lamp(Section, frozen=True, kw_only=True):
    colour: str
    watts: tuple[int, ...] = ()
    shade: Shade | None = None


class Room(Section, frozen=True):
    lamp: Lamp = Lamp(colour="red")
    size: int = 1


MISTAKES: list[tuple[object, str]] = [
    ({"sise": 2}, "sise = 2: expected a key that spearpool knows; did you mean size?"),
    ({"ceiling": 2}, "ceiling = 2: expected a key that spearpool knows"),
    ({"lamp": {"color": "red"}}, "lamp.color = 'red': expected a key that spearpool knows; did you mean colour?"),
    ({"lamp": {}}, "lamp.colour = None: expected this key to be set"),
    ({"lamp": 3}, "lamp = 3: expected table, got int"),
    ({"lamp": {"colour": "red", "watts": [1, "x"]}}, "lamp.watts.1 = 'x': expected int, got str"),
    ({"lamp": {"colour": "red", "shade": "wood"}}, "lamp.shade = 'wood': expected one of: paper, glass"),
    ({"size": "large"}, "size = 'large': expected int, got str"),
    (7, "configuration = 7: expected table, got int"),
]


def _explained(plain: object, prefix: str = "") -> ConfigError:
    with pytest.raises(UnpackError) as caught:
        from_plain(plain, Room)
    return explain(caught.value, plain, Room, prefix)


@pytest.mark.parametrize(("plain", "words"), MISTAKES)
def test_a_mistake_names_key_value_and_expectation(plain: Any, words: str) -> None:
    assert str(_explained(plain)) == words


def test_a_mistake_in_a_part_is_named_by_its_place_in_the_whole() -> None:
    assert str(_explained({"size": "large"}, "house.kitchen")).startswith("house.kitchen.size = 'large': ")
    assert _explained({"lamp": {"color": "red"}}, "house").key == "house.lamp.color"
    assert _explained(7, "house").key == "house"


def test_suggestions() -> None:
    assert did_you_mean("wrokers", ["host", "workers"]) == "; did you mean workers?"
    assert did_you_mean("ceiling", ["host", "workers"]) == ""
    assert did_you_mean("workers", []) == ""


def test_what_all_words_begin_with_makes_no_two_of_them_alike() -> None:
    known = ["LONG_PREFIX_HOST", "LONG_PREFIX_PORT"]
    assert did_you_mean("LONG_PREFIX_XYZ", known, "LONG_PREFIX_") == ""
    assert did_you_mean("LONG_PREFIX_PROT", known, "LONG_PREFIX_") == "; did you mean LONG_PREFIX_PORT?"
