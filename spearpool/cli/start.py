"""`spearpool start`: run a pool in the foreground, or as a daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from spearpool.config import Settings, load
from spearpool.errors import ConfigError, PoolStartError
from spearpool.runtime_dir import StateDir
from spearpool.supervisor import signals

from .output import json_option, print_json

__all__ = ["start"]


@click.command()
@click.option("--name", envvar="SPEARPOOL_NAME", help="The pool's name; default: default.")
@click.option("--workers", type=int, help="Acceptor workers that share the port.")
@click.option("--host", help="Address to listen on; default 127.0.0.1.")
@click.option("--port", type=int, help="Port to listen on; default: the first free one of 9100-9999.")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file.")
@click.option("--task", "tasks", multiple=True, metavar="NAME=TARGET", help="A task. Repeatable.")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Where logs and keys are kept.")
@click.option("--daemon", is_flag=True, help="Return once the pool is ready, and leave it running.")
@click.option("--lifeline-fd", type=int, hidden=True, help="End of file on this descriptor stops the pool.")
@json_option
def start(
    name: str | None,
    workers: int | None,
    host: str | None,
    port: int | None,
    file: Path | None,
    tasks: tuple[str, ...],
    state_dir: Path | None,
    daemon: bool,
    lifeline_fd: int | None,
    as_json: bool,
) -> None:
    """Start a pool and keep it running until SIGTERM or Ctrl-C.

    TARGET is python:package.module:function, exec:PROGRAM ARG…, or agent:PROGRAM ARG…

    A signal stops the pool in order, whenever it comes: new work is refused, and what is in flight may finish within
    pool.stop_timeout_s; exit code 0. One more signal kills everything at once; exit code 1. Either way no process is
    left, and no file but those in the state directory. SIGHUP reloads it (see `spearpool reload`): the configuration is
    read again as this command line, this environment and FILE say then.

    \b
    Example:
      spearpool start --workers 8 --task thumb=python:shop.images:thumbnail --task sum="exec:sha256sum -"
    """
    pool = {"name": name, "workers": workers, "host": host, "port": port}
    overrides: dict[str, Any] = {"pool": {key: value for key, value in pool.items() if value is not None}}
    overrides["tasks"] = dict(_task(text) for text in tasks)
    source = None if file is None else file.absolute()
    settings = load(source, os.environ, overrides)
    if daemon:
        ready = _start_daemon(settings, state_dir)
        _announce(ready, as_json)
        return
    from spearpool.supervisor.main import run

    run(
        settings,
        os.environ,
        state_dir,
        lambda ready: _announce(ready, as_json),
        lifeline_fd,
        reread=partial(load, source, dict(os.environ), overrides),
    )


def _task(text: str) -> tuple[str, dict[str, str]]:
    name, equals, target = text.partition("=")
    if not equals or not name:
        raise ConfigError("--task", text, "NAME=TARGET")
    return name, {"target": target}


def _announce(ready: dict[str, Any], as_json: bool) -> None:
    """The ready line, once; whoever started us waits for it."""
    warnings = ready.pop("warnings", [])
    for warning in warnings:
        click.secho(f"spearpool: warning: {warning}", fg="yellow", err=True)
    if as_json:
        print_json(ready)
    else:
        click.echo(
            f"pool {ready['name']} ready on {ready['host']}:{ready['port']} · {ready['workers']} workers"
            f" · pid {ready['pid']} · {ready['runtime_dir']}"
        )
    sys.stdout.flush()


def _start_daemon(settings: Settings, state_dir: Path | None) -> dict[str, Any]:
    """Run the same command line in a session of its own, without a terminal, and wait for its ready line.

    Its log goes to a file from the first line on; when it ends before it is ready, what it logged is our error. Its
    warnings went there as well, so it is asked for them. Whoever interrupts us while we wait wants no pool: it is told.
    """
    state = StateDir.locate(settings.pool.name, os.environ, state_dir)
    state.create()
    log_path = state.path / "logs" / "pool.log"
    words = [word for word in sys.argv[1:] if word not in {"--daemon", "--json"}]
    signals.hold()
    with log_path.open("ab") as log:
        begin = log.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "spearpool", *words, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    signals.pass_on(child.send_signal)
    assert child.stdout is not None
    with child.stdout:
        line = child.stdout.readline()
    if line:
        from spearpool.metrics.bus import ask

        ready: dict[str, Any] = json.loads(line)
        status = ask(ready["endpoints"]["ask"], "status", {}, timeout_s=5.0)
        return {**ready, "warnings": status["warnings"]}
    code = child.wait()
    with log_path.open("rb") as log:
        log.seek(begin)
        said = log.read().decode("utf-8", "replace").strip()
    raise click.exceptions.Exit(_repeat(said, code))


def _repeat(said: str, code: int) -> int:
    """Say again what the daemon said, and end as it ended."""
    click.echo(said, err=True)
    if code < 0:
        raise PoolStartError(f"the daemon was ended by signal {-code} before it was ready")
    if code == 0:
        raise PoolStartError("the daemon was told to stop before it was ready")
    return code
