"""`spearpool stop` and `spearpool token`: commands that change a running pool."""

from __future__ import annotations

from typing import Any

import click

from spearpool.errors import PoolError
from spearpool.metrics.bus import ask
from spearpool.processes import wait_gone
from spearpool.runtime_dir import PoolDescription

from .output import Seconds, json_option, name_option, pool_named, print_json

__all__ = ["stop", "token"]


@click.command()
@name_option
@click.option("--timeout", type=Seconds(min=0), help="Seconds for what is in flight; then it is ended.")
@json_option
def stop(name: str, timeout: float | None, as_json: bool) -> None:
    """Stop a pool: refuse new work, finish what is in flight, end every process, remove every file.

    \b
    Example:
      spearpool stop --timeout 5
    """
    pool = pool_named(name)
    reply = _ask(pool, "stop", {"timeout_s": timeout})
    # The supervisor ends by itself within its deadline; the margin is for what has to be killed after it.
    if not wait_gone(pool.supervisor, float(reply["deadline_s"]) + 10.0):
        raise PoolError(
            f"pool {name!r} (pid {pool.pid}) did not end in time; look at its log, or end it: kill -9 {pool.pid}"
        )
    if as_json:
        print_json({"name": name, "pid": pool.pid, "stopped": True})
    else:
        click.echo(f"pool {name} (pid {pool.pid}) stopped")


@click.group()
def token() -> None:
    """Credentials for programs that somebody else starts."""


@token.command()
@name_option
@click.option("--instance-id", required=True, help="Who the token is for: an agent's instance id, or a client's name.")
@click.option("--task", help="For an agent: the task that it serves.")
@click.option("--client", "client", is_flag=True, help="For a client.")
@click.option(
    "--right",
    "rights",
    multiple=True,
    type=click.Choice(["submit", "observe", "control", "closures"]),
    help="For a client; repeatable. Without any: submit.",
)
@click.option("--ttl", "ttl_s", type=Seconds(min=0, min_open=True), help="Seconds until it expires.")
@json_option
def issue(
    name: str,
    instance_id: str,
    task: str | None,
    client: bool,
    rights: tuple[str, ...],
    ttl_s: float | None,
    as_json: bool,
) -> None:
    """Print a new token: for an agent that serves --task, or for a --client with rights.

    \b
    Example:
      spearpool token issue --instance-id gpu-1 --task embed --ttl 86400
      spearpool token issue --instance-id ci --client --right submit
    """
    if bool(task) == client:
        raise click.UsageError("give either --task TASK (for an agent) or --client")
    if rights and not client:
        raise click.UsageError("--right goes with --client")
    pool = pool_named(name)
    arguments: dict[str, Any] = {
        "instance_id": instance_id,
        "task": task,
        "rights": list(rights or ("submit",)),
        "ttl_s": ttl_s,
    }
    reply = _ask(pool, "token_issue", arguments)
    if as_json:
        print_json(reply)
    else:
        click.echo(reply["token"])


def _ask(pool: PoolDescription, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return ask(pool.endpoints.ask, command, arguments, timeout_s=5.0)
