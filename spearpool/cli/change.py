"""`spearpool reload` and `spearpool scale`: change a running pool, and watch it until it is done."""

from __future__ import annotations

import time
from typing import Any

import click

from spearpool.errors import PoolError
from spearpool.metrics.bus import ask

from .output import json_option, name_option, pool_named, print_json

__all__ = ["reload", "scale"]

POLL_S = 0.05
ASK_S = 10.0

Document = dict[str, Any]


@click.command()
@name_option
@json_option
def reload(name: str, as_json: bool) -> None:
    """Read the configuration again, and replace every worker by one that runs with it; no connection is lost.

    Each worker's heir is ready before it gives up its connections: to others where they can be moved, else they are
    closed with a reason. A configuration that is wrong, or that changes what cannot change while the pool runs, changes
    nothing; exit code 2.

    \b
    Example:
      spearpool reload
    """
    _carry_out(name, "reload", {}, as_json)


@click.command()
@name_option
@click.argument("target", metavar="workers=N")
@json_option
def scale(name: str, target: str, as_json: bool) -> None:
    """Run with N workers from now on, 1 to pool.max_workers; no connection is lost.

    \b
    Example:
      spearpool scale workers=8
    """
    what, _, number = target.partition("=")
    if what != "workers" or not number.lstrip("-").isdecimal():
        raise click.UsageError(f"{target!r}: expected workers=N with a whole number N")
    _carry_out(name, "scale", {"workers": int(number)}, as_json)


def _carry_out(name: str, command: str, arguments: Document, as_json: bool) -> None:
    """Begin a change, tell how it goes, and end when it has ended."""
    pool = pool_named(name)
    begun = time.monotonic()
    change = ask(pool.endpoints.ask, command, arguments, timeout_s=ASK_S)
    told: dict[int, Document] = {}
    while True:
        for row in change["slots"]:
            if not as_json and row["stage"] != "waiting" and told.get(row["slot"]) != row:
                told[row["slot"]] = row
                click.echo(_line(row))
        if change["done"]:
            break
        time.sleep(POLL_S)
        change = ask(pool.endpoints.ask, "change", {"change": change["change"]}, timeout_s=ASK_S)
    took_s = time.monotonic() - begun
    if as_json:
        print_json({"name": name, **change, "took_s": round(took_s, 3)})
    if change["error"]:
        raise PoolError(f"{command}: {change['error']}")
    if not as_json:
        moved, closed, awaited = (
            sum(row[key] for row in change["slots"]) for key in ("handed_over", "closed", "awaited")
        )
        click.echo(
            f"pool {name} has {change['workers']} workers · {moved} connections handed over, {closed} closed,"
            f" {awaited} executions awaited · {took_s:.1f} s"
        )


def _line(row: Document) -> str:
    """`worker 3 · 4711 → 4720 · emptying`."""
    who = " → ".join(str(pid) for pid in (row["pid"], row["heir_pid"]) if pid is not None)
    words = [f"worker {row['slot']}", *([who] if who else []), row["stage"]]
    if row["stage"] == "done" and row["pid"] is not None:
        words.append(f"{row['handed_over']} handed over, {row['closed']} closed, {row['awaited']} awaited")
    return " · ".join(words)
