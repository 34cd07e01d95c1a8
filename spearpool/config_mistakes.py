"""What is wrong with a configuration, told by key, value and what was expected; a slip of the pen gets a suggestion."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import Enum
from typing import Any, get_args, get_type_hints

from .errors import ConfigError
from .packing import Section

__all__ = ["did_you_mean", "explain"]


def explain(error: Exception, plain: Any, kind: type[Section], prefix: str = "") -> ConfigError:
    """Turn msgspec's message (`Expected `int`, got `str` - at `$.pool.workers``) into key, value and expectation.

    `plain` is what could not be converted to a `kind`, `prefix` where it stands in the configuration.
    """
    text, _, place = str(error).partition(" - at `$")
    keys = [part for part in re.split(r"[.\[\]]+", place.rstrip("`")) if part and part != "..."]
    unknown = re.search(r"unknown field `(.*?)`", text)
    missing = re.search(r"missing required field `(.+?)`", text)
    value: Any = plain
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal():
            value = value[int(key)]
    if unknown:
        value = value.get(unknown[1]) if isinstance(value, dict) else value
        expected = f"a key that spearpool knows{did_you_mean(unknown[1], _keys_at(kind, keys))}"
        return ConfigError(".".join(filter(None, [prefix, *keys, unknown[1]])), value, expected)
    if missing:
        return ConfigError(".".join(filter(None, [prefix, *keys, missing[1]])), None, "this key to be set")
    if text.startswith("Invalid enum value"):
        return ConfigError(".".join(filter(None, [prefix, *keys])), value, _values_at(kind, keys))
    expected = text.removeprefix("Expected ").replace("`", "").replace("object", "table")
    return ConfigError(".".join(filter(None, [prefix, *keys])) or "configuration", value, expected)


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean …?` when one of the known words is close to this one, else nothing.

    What all of them have as a `prefix` does not make them alike.
    """
    close = get_close_matches(word.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    return "".join(f"; did you mean {prefix}{each}?" for each in close)


def _values_at(kind: Any, keys: Iterable[str]) -> str:
    """What may stand at this place, where one of a few words has to."""
    for key in keys:
        kind = get_type_hints(kind)[key]
    words = next(each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, Enum))
    return f"one of: {', '.join(str(each.value) for each in words)}"


def _keys_at(kind: Any, keys: Iterable[str]) -> tuple[str, ...]:
    """The keys that the section has which stands at this place in a section of that kind."""
    for key in keys:
        kind = get_type_hints(kind)[key]
    return tuple(kind.__struct_fields__)
