"""`spearpool logs`: what instances have written, also of those that have ended, and of a pool that has been stopped."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from spearpool.config_mistakes import did_you_mean
from spearpool.errors import NoSuchPool, SpearpoolError
from spearpool.instances.log_reader import LogFollower, last_lines, names_of_logs, newest_log
from spearpool.metrics.bus import ask
from spearpool.runtime_dir import PoolDescription, StateDir, find_pool

from .output import json_option, name_option

__all__ = ["logs"]

POLL_S = 0.1
ALIVE_S = 0.5
"""How often a follower asks whether the instance still lives."""


class Count(click.ParamType[int | None]):
    """A number of lines, or `all`."""

    name = "lines"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "all":
            return None
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a number of lines nor `all`.", param, ctx)
        return int(value)


@click.command()
@click.argument("instance", required=False)
@click.option("--task", help="The instance of this task that has written last.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the instance has ended.")
@click.option(
    "-n", "--lines", type=Count(), default="100", show_default=True, help="Begin with the last N lines, or all."
)
@name_option
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="As given to `start`.")
@json_option
def logs(
    instance: str | None,
    task: str | None,
    follow: bool,
    lines: int | None,
    name: str,
    state_dir: Path | None,
    as_json: bool,
) -> None:
    """Print what an instance has written to stdout and stderr.

    INSTANCE is an id that `status` shows, or has shown: logs of the newest instances that have ended are kept.
    TASK-zygote is where a Python task's code is imported, _runner where programs are started from.

    \b
    Example:
      spearpool logs thumb-0-1 -f
      spearpool logs --task thumb -n all --json
    """
    if (instance is None) == (task is None):
        raise click.UsageError("give either INSTANCE or --task TASK")
    pool = _pool(name)
    directory = Path(pool.log_dir) if pool is not None else StateDir.locate(name, os.environ, state_dir).log_path
    found = newest_log(directory, task) if task is not None else instance
    if found is None or found not in names_of_logs(directory):
        raise _no_such_log(directory, name, instance or f"an instance of task {task!r}")
    follower = LogFollower(directory, found) if follow else None
    for line in last_lines(directory, found, lines):
        _print(found, line, as_json)
    if follower is not None:
        _follow(follower, pool, found, as_json)


def _pool(name: str) -> PoolDescription | None:
    """None when it does not run: logs remain."""
    try:
        return find_pool(name, os.environ)
    except NoSuchPool:
        return None


def _no_such_log(directory: Path, pool: str, wanted: str) -> SpearpoolError:
    names = names_of_logs(directory)
    if not names:
        return NoSuchPool(f"pool {pool!r} has no logs in {directory}")
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return SpearpoolError(f"there is no log of {wanted}, but of {shown}{did_you_mean(wanted, names)}")


def _follow(follower: LogFollower, pool: PoolDescription | None, name: str, as_json: bool) -> None:
    ask_at = time.monotonic()
    alive = True
    while alive:
        if time.monotonic() >= ask_at:
            alive = pool is not None and _lives(pool, name)
            ask_at = time.monotonic() + ALIVE_S
        for line in follower.read(final=not alive):
            _print(name, line, as_json)
        if follower.lost:
            follower.lost = False
            click.echo("spearpool: lines were thrown away before they could be read: the log is full", err=True)
        if alive:
            time.sleep(POLL_S)
    click.echo(f"spearpool: {name} has ended", err=True)


def _lives(pool: PoolDescription, name: str) -> bool:
    """Zygotes are not listed: theirs end with the pool."""
    try:
        status = ask(pool.endpoints.ask, "status", {}, timeout_s=5.0)
    except (SpearpoolError, TimeoutError):
        return False
    listed = {row["instance_id"] for row in status["instances"]}
    return name in listed or name == "_runner" or name.endswith("-zygote")


def _print(name: str, line: bytes, as_json: bool) -> None:
    if as_json:
        text = line.decode("utf-8", "replace")
        click.echo(json.dumps({"instance": name, "line": text}, ensure_ascii=False))
    else:
        click.echo(line)
