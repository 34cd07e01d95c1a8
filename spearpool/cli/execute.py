"""`spearpool execute`: run one task and print its result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import click

from spearpool.client import Client
from spearpool.errors import ExecutionError

from .output import Seconds, json_option, name_option, print_json

__all__ = ["execute"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("task")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@name_option
@click.option("--input", "input_file", type=click.File("rb"), help="Input for the task; - is standard input.")
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="A variable for the task. Repeatable.")
@click.option("--timeout", type=Seconds(min=0, min_open=True), help="Seconds until the execution is given up.")
@click.option("--address", metavar="HOST:PORT", help="Dial this address instead of a local pool's.")
@click.option("--token-file", type=click.Path(path_type=Path), help="The token for --address.")
@json_option
def execute(
    task: str,
    args: tuple[str, ...],
    name: str,
    input_file: BinaryIO | None,
    environment: tuple[str, ...],
    timeout: float | None,
    address: str | None,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Execute TASK with ARGS: the result's bytes go to stdout, errors to stderr.

    \b
    Example:
      spearpool execute sum README.md
      spearpool execute wc --input - < README.md
    """
    variables = dict(_variable(text) for text in environment)
    data = input_file.read() if input_file else b""
    with Client(name, address=address, token_file=token_file) as client:
        try:
            result = client.run(task, *args, input=data, env=variables, timeout=timeout)
        except ExecutionError as error:
            if as_json:
                print_json(
                    {
                        "task": task,
                        "execution_id": error.execution_id,
                        "error": str(error),
                        "exit_code": error.exit_code,
                    }
                )
            else:
                sys.stdout.buffer.write(error.output)
            raise
    if as_json:
        print_json(
            {
                "task": task,
                "execution_id": result.execution_id,
                "output": result.output.decode("utf-8", "backslashreplace"),
                "exit_code": result.exit_code,
                "duration_ms": result.duration_ms,
            }
        )
    else:
        sys.stdout.buffer.write(result.output)
        sys.stdout.flush()


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r}: expected NAME=VALUE", param_hint="--env")
    return name, value
