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
    closed with a reason. The code of Python tasks is imported anew, and instances are replaced, their successors ready
    first. Tasks may be added, changed and removed. A configuration that is wrong, or that changes what cannot change
    while the pool runs, changes nothing; exit code 2.

    \b
    Example:
      spearpool reload
    """
    _carry_out(name, "reload", {}, as_json)


@click.command()
@name_option
@click.argument("target", metavar="workers=N|TASK=MIN..MAX")
@json_option
def scale(name: str, target: str, as_json: bool) -> None:
    """Run with N workers from now on, 1 to pool.max_workers, or with MIN to MAX instances of a task.

    No connection is lost, and instances that are too many finish what they have. TASK=N means TASK=N..N.

    \b
    Example:
      spearpool scale workers=8
      spearpool scale thumb=0..4
    """
    what, _, number = target.partition("=")
    if what == "workers":
        if not number.lstrip("-").isdecimal():
            raise click.UsageError(f"{target!r}: expected workers=N with a whole number N")
        _carry_out(name, "scale", {"workers": int(number)}, as_json)
        return
    low, dots, high = number.partition("..")
    if not what or not low.isdecimal() or (dots and not high.isdecimal()):
        raise click.UsageError(f"{target!r}: expected workers=N, or TASK=MIN..MAX with whole numbers")
    _scale_task(name, {"task": what, "minimum": int(low), "maximum": int(high or low)}, as_json)


def _scale_task(name: str, arguments: Document, as_json: bool) -> None:
    """Set a task's bounds, and wait until its instances are within them."""
    pool = pool_named(name)
    begun = time.monotonic()
    staff = ask(pool.endpoints.ask, "scale", arguments, timeout_s=ASK_S)
    told = None
    while not staff["minimum"] <= staff["ready"] <= staff["maximum"] or staff["starting"]:
        if not as_json and told != staff["ready"]:
            told = staff["ready"]
            click.echo(f"task {staff['task']} · {told} instances · {staff['minimum']}..{staff['maximum']} wanted")
        if staff["waits_for"] or not staff["available"]:
            break
        time.sleep(POLL_S)
        staff = ask(pool.endpoints.ask, "task", {"task": arguments["task"]}, timeout_s=ASK_S)
    took_s = time.monotonic() - begun
    if as_json:
        print_json({"name": name, **staff, "took_s": round(took_s, 3)})
    if staff["waits_for"]:
        raise PoolError(f"task {staff['task']} has {staff['ready']} instances: not enough {staff['waits_for']}")
    if not staff["available"]:
        raise PoolError(f"task {staff['task']}: its instances fail: {staff['reason']}")
    if not as_json:
        click.echo(
            f"task {staff['task']} has {staff['ready']} instances, {staff['minimum']}..{staff['maximum']} wanted"
            f" · {took_s:.1f} s"
        )


def _carry_out(name: str, command: str, arguments: Document, as_json: bool) -> None:
    """Begin a change, tell how it goes, and end when it has ended."""
    pool = pool_named(name)
    begun = time.monotonic()
    change = ask(pool.endpoints.ask, command, arguments, timeout_s=ASK_S)
    told: dict[int, Document] = {}
    waited_for: set[str] = set()
    while True:
        for row in change["slots"]:
            if not as_json and row["stage"] != "waiting" and told.get(row["slot"]) != row:
                told[row["slot"]] = row
                click.echo(_line(row))
        for task in change["tasks"]:
            if not as_json and task["outdated"] and task["task"] not in waited_for:
                waited_for.add(task["task"])
                click.echo(f"task {task['task']} · {task['outdated']} instances to be replaced")
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
