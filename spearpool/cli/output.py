"""What commands share: the `--name` and `--json` options, JSON documents on stdout, tables for people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from spearpool.runtime_dir import PoolDescription, find_pool

__all__ = ["Seconds", "duration", "json_option", "name_option", "pool_named", "print_json", "size", "table"]

PIPE_COLUMNS = 400
"""Room for a table in a pipe or a file."""

F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """A finite time; `nan` and `inf` are floats to click, and no deadline at all to us."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds.", param, ctx)
        return seconds


def name_option(function: F) -> F:
    """`--name`: which pool."""
    return click.option("--name", default="default", show_default=True, envvar="SPEARPOOL_NAME", help="The pool.")(
        function
    )


def json_option(function: F) -> F:
    """`--json`: one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


def pool_named(name: str) -> PoolDescription:
    """The running pool of that name. Raises `NoSuchPool`."""
    return find_pool(name, os.environ)


def print_json(document: object) -> None:
    """One document on one line."""
    click.echo(json.dumps(document, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people; columns whose name starts with `#` are numbers, set flush right."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left")
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    # Nothing is cut or folded where there is no terminal that would be too narrow for it.
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(grid)


def duration(seconds: float) -> str:
    """`0.8 s`, `75 s`, `12 min`, `3.1 h`, `4.0 d`."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}" if seconds < 10 * unit else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.1f} d"


def size(count: float) -> str:
    """`512 B`, `1.5 KiB`, `64.0 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
