"""`spearpool signal`: have one instance end, pause, go on, or hear a name."""

from __future__ import annotations

import click

from spearpool.metrics.bus import ask

from .output import json_option, name_option, pool_named, print_json

__all__ = ["signal"]


@click.command()
@name_option
@click.argument("instance")
@click.argument("what", metavar="terminate|pause|resume|restart|NAME")
@click.option("--stop-process", is_flag=True, help="With pause: stop its processes as well (SIGSTOP), until resume.")
@json_option
def signal(name: str, instance: str, what: str, stop_process: bool, as_json: bool) -> None:
    """Signal one instance; `spearpool instances` lists them.

    \b
    terminate  it finishes what it runs and ends; the pool starts another one where it needs one
    restart    the same, as soon as another one is ready in its place
    pause      it gets no more executions until resume; those that run go on
    resume     it gets executions again
    NAME       the program hears it (`spearpool.agent.on_signal`): letters, digits, dashes, dots

    \b
    Example:
      spearpool signal thumb-0-1 pause
      spearpool signal thumb-0-1 reload-model
    """
    if stop_process and what.lower() != "pause":
        raise click.UsageError("--stop-process goes with pause")
    arguments = {"instance": instance, "signal": what, "stop_process": stop_process}
    reply = ask(pool_named(name).endpoints.ask, "signal", arguments, timeout_s=5.0)
    if as_json:
        print_json(reply)
    else:
        click.echo(f"{reply['instance_id']}: {reply['done']}")
