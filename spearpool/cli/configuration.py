"""`spearpool config check` and `spearpool completion`."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from spearpool.config import load
from spearpool.instances.artifact import check_tasks
from spearpool.instances.surroundings import found_by_host_only
from spearpool.packing import to_plain
from spearpool.supervisor.plans import check_budget

from .output import json_option, print_json

__all__ = ["completion", "config"]


@click.group()
def config() -> None:
    """Look at a configuration before a pool is started with it."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check FILE: keys, values, and that every task's program is there. Exit code 2 when something is wrong.

    \b
    Example:
      spearpool config check pool.toml
    """
    settings = load(file, os.environ)
    check_tasks(settings)
    check_budget(settings)
    for name in found_by_host_only(settings):
        words = f"tasks.{name}: its program does not find the pool at 127.0.0.1, but by SPEAR_COMMUNICATION_HOST"
        click.echo(f"{file}: warning: {words} (pool.host is {settings.pool.host})", err=True)
    if as_json:
        print_json(to_plain(settings))
    else:
        tasks = f"{len(settings.tasks)} task{'s' * (len(settings.tasks) != 1)}"
        click.echo(f"{file}: good: pool {settings.pool.name}, {settings.pool.workers} workers, {tasks}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Example:
      spearpool completion bash > ~/.local/share/bash-completion/completions/spearpool
    """
    from .group import main

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(main, {}, "spearpool", "_SPEARPOOL_COMPLETE").source())
