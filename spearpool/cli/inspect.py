"""`spearpool status` and `spearpool instances`: what a pool is doing now."""

from __future__ import annotations

import time
from typing import Any

import click

from spearpool.metrics.bus import ask

from .output import duration, json_option, name_option, pool_named, print_json, size, table

__all__ = ["instances", "status"]

Document = dict[str, Any]


@click.command()
@name_option
@json_option
def status(name: str, as_json: bool) -> None:
    """Show workers, tasks, instances with their limits and usage, and totals.

    \b
    Example:
      spearpool status --json | jq .totals
    """
    document = ask(pool_named(name).endpoints.ask, "status", {}, timeout_s=5.0)
    if as_json:
        print_json(document)
        return
    click.echo(
        f"pool {document['name']} {document['state']} on {document['host']}:{document['port']}"
        f" · pid {document['pid']} · up {duration(document['uptime_s'])} · spearpool {document['version']}"
    )
    for warning in document.get("warnings", []):
        click.secho(f"warning: {warning}", fg="yellow")
    click.echo()
    _print_workers(document["workers"])
    _print_tasks(document["tasks"])
    _print_instances(document["instances"])
    totals = document["totals"]
    click.echo(
        f"executions {totals['executions_completed']} completed, {totals['executions_failed']} failed"
        f" · connections {totals['connections_open']} open of {totals['connections_opened']}"
        f" · messages {totals['messages_in']} in, {totals['messages_out']} out"
        f" · {size(totals['bytes_in'])} in, {size(totals['bytes_out'])} out"
        f" · ring records {totals['ring_records']}, lost {totals['ring_lost']}"
    )


@click.command()
@name_option
@click.option("--task", help="Only this task's instances.")
@json_option
def instances(name: str, task: str | None, as_json: bool) -> None:
    """List instances: process, state, worker, limits and usage.

    \b
    Example:
      spearpool instances --task thumb
    """
    document = ask(pool_named(name).endpoints.ask, "status", {}, timeout_s=5.0)
    rows = [row for row in document["instances"] if task in {None, row["task"]}]
    if as_json:
        print_json(rows)
    else:
        _print_instances(rows)


def _print_workers(workers: list[Document]) -> None:
    columns = ("slot", "#pid", "state", "#incarnation", "#restarts", "#connections", "#authenticated", "#queue")
    keys = ("slot", "pid", "state", "incarnation", "restarts", "connections", "authenticated", "accept_queue")
    table("workers", columns, [[row[key] if row[key] is not None else "-" for key in keys] for row in workers])
    click.echo()


def _print_tasks(tasks: list[Document]) -> None:
    columns = (
        "task",
        "target",
        "#ready",
        "#busy",
        "#paused",
        "#starting",
        "#stopping",
        "#failed",
        "#queued",
        "#in flight",
    )
    states = ("ready", "busy", "paused", "starting", "stopping", "failed")
    rows = [
        [row["name"], row["target"], *(row["instances"][s] for s in states), row["queued"], row["in_flight"]]
        for row in tasks
    ]
    table("tasks", columns, rows)
    click.echo()


def _print_instances(rows: list[Document]) -> None:
    now = time.time()
    columns = ("instance", "task", "#pid", "state", "worker", "#age", "#restarts", "limits (value, usage)")
    table(
        "instances",
        columns,
        [
            [
                row["instance_id"],
                row["task"],
                row["pid"] or "-",
                row["state"],
                "-" if row["worker"] is None else row["worker"],
                duration(now - row["started_s"]) if row["started_s"] else "-",
                row["restarts"],
                ", ".join(map(_limit, row["limits"])) or "-",
            ]
            for row in rows
        ],
    )
    click.echo()


def _limit(limit: Document) -> str:
    show = size if "_bytes" in limit["name"] else _number
    usage = "?" if limit["usage"] is None else show(limit["usage"])
    value = "unlimited" if limit["value"] < 0 and limit["name"] != "nice" else show(limit["value"])
    return f"{limit['name']} {value} {limit['level']} ({usage})"


def _number(number: Any) -> str:
    """As short as it can be told exactly."""
    return f"{number:g}" if isinstance(number, float) else str(number)
