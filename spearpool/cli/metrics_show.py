"""`spearpool metrics show`: one snapshot of a pool's counters, latencies, workers and instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from spearpool.metrics.bus import Snapshot, ask_snapshot

from .metrics_lines import short_time
from .output import json_option, name_option, pool_named, print_json, size, table

__all__ = ["show"]

_SECTIONS = ("counters", "worker", "instance")
_ASK_TIMEOUT_S = 5.0


@click.command()
@name_option
@click.option(
    "--kind", "kinds", type=click.Choice(_SECTIONS), multiple=True, help="Only this section. Repeatable; default: all."
)
@click.option("--worker", "workers", type=click.IntRange(0), multiple=True, help="Only this worker. Repeatable.")
@json_option
def show(name: str, kinds: tuple[str, ...], workers: tuple[int, ...], as_json: bool) -> None:
    """Print one snapshot: counters, latencies, workers and instances.

    \b
    Example:
      spearpool metrics show --json | jq .totals.connections_open
    """
    snapshot = ask_snapshot(pool_named(name).endpoints.ask, _ASK_TIMEOUT_S)
    document = _document(name, snapshot, kinds or _SECTIONS, workers)
    if as_json:
        print_json(document)
        return
    for key, print_section in _PRINT.items():
        if document.get(key):
            print_section(document[key])


def _document(name: str, snapshot: Snapshot, kinds: tuple[str, ...], workers: tuple[int, ...]) -> dict[str, Any]:
    document: dict[str, Any] = {"name": name, "time": snapshot.time_ns / 1e9}
    if "counters" in kinds:
        states = [state for _, state in snapshot.counters_by_topic() if not workers or state.worker in workers]
        counters = [{"worker": state.worker, "values": state.values, "tasks": state.tasks} for state in states]
        document |= {"totals": snapshot.totals, "latencies": snapshot.latencies, "counters": counters}
    if "worker" in kinds:
        document["workers"] = [row for row in snapshot.workers if not workers or row["slot"] in workers]
    if "instance" in kinds:
        document["instances"] = [row for row in snapshot.instances if not workers or row.get("worker") in workers]
    return document


def _print_totals(totals: dict[str, int]) -> None:
    table("totals", ("counter", "#value"), totals.items())


def _print_latencies(latencies: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, latency in latencies.items():
        measured = (latency[key] for key in ("mean", "p50", "p90", "p99"))
        rows.append([name, latency["count"], *(_measure(name, value) for value in measured)])
    table("\nlatencies and sizes", ("histogram", "#count", "#mean", "#p50", "#p90", "#p99"), rows)


def _measure(name: str, value: float | None) -> str:
    """`None` lies beyond the last bucket."""
    if value is None:
        return "> max"
    return short_time(value / 1e9) if "_ns" in name else size(value)


def _print_counters(counters: list[dict[str, Any]]) -> None:
    columns = ["pool" if row["worker"] is None else f"w{row['worker']}" for row in counters]
    names = list(dict.fromkeys(name for row in counters for name in row["values"]))
    rows = [[name, *(row["values"].get(name, 0) for row in counters)] for name in names]
    tasks = dict.fromkeys(
        (task, stage) for row in counters for task, stages in row["tasks"].items() for stage in stages
    )
    for task, stage in tasks:
        rows.append([f"{task}.{stage}", *(row["tasks"].get(task, {}).get(stage, 0) for row in counters)])
    table("\ncounters", ("counter", *(f"#{column}" for column in columns)), rows)


def _print_rows(title: str) -> Callable[[list[dict[str, Any]]], None]:
    def print_rows(rows: list[dict[str, Any]]) -> None:
        keys = [key for key, value in rows[0].items() if not isinstance(value, list | dict)]
        columns = [f"#{key}" if isinstance(rows[0][key], int | float) else key for key in keys]
        table(f"\n{title}", columns, [["-" if row.get(key) is None else row[key] for key in keys] for row in rows])

    return print_rows


_PRINT: dict[str, Callable[[Any], None]] = {
    "totals": _print_totals,
    "latencies": _print_latencies,
    "counters": _print_counters,
    "workers": _print_rows("workers"),
    "instances": _print_rows("instances"),
}
