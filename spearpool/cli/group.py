"""The top-level command group: loads a command's module when it is called, and turns errors into exit codes.

`spearpool execute` must not pay for the imports of `spearpool metrics plot`: a command is named here by module and
attribute and imported on first use.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from spearpool import __version__
from spearpool.errors import (
    AuthenticationError,
    ConfigError,
    Draining,
    ErrorCode,
    ExecutionTimeout,
    NoSuchPool,
    Overloaded,
    RequestRefused,
    SpearpoolError,
)

__all__ = ["COMMANDS", "LazyGroup", "exit_code_of", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "start": ("spearpool.cli.start", "start"),
    "stop": ("spearpool.cli.control", "stop"),
    "reload": ("spearpool.cli.change", "reload"),
    "scale": ("spearpool.cli.change", "scale"),
    "status": ("spearpool.cli.inspect", "status"),
    "instances": ("spearpool.cli.inspect", "instances"),
    "logs": ("spearpool.cli.logs", "logs"),
    "execute": ("spearpool.cli.execute", "execute"),
    "signal": ("spearpool.cli.signalling", "signal"),
    "token": ("spearpool.cli.control", "token"),
    "metrics": ("spearpool.cli.metrics_commands", "metrics"),
    "config": ("spearpool.cli.configuration", "config"),
    "completion": ("spearpool.cli.configuration", "completion"),
}

FAILED, USAGE, NOT_RUNNING, TIMED_OUT, REFUSED = 1, 2, 3, 4, 5

_EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (ConfigError, USAGE),
    (NoSuchPool, NOT_RUNNING),
    (ExecutionTimeout, TIMED_OUT),
    (TimeoutError, TIMED_OUT),
    (AuthenticationError, REFUSED),
    (Overloaded, REFUSED),
    (Draining, REFUSED),
    (SpearpoolError, FAILED),
)


def exit_code_of(error: BaseException) -> int:
    """0 done · 1 failed · 2 usage or configuration · 3 no such pool · 4 timed out · 5 refused."""
    if isinstance(error, RequestRefused) and error.code in {ErrorCode.REFUSED, ErrorCode.NOT_AUTHENTICATED}:
        return REFUSED
    if isinstance(error, RequestRefused) and error.code == ErrorCode.MALFORMED:
        return USAGE
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), FAILED)


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is asked for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """The one place where an error becomes words on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except (SpearpoolError, TimeoutError) as error:
            click.echo(f"{click.style('spearpool: error:', fg='red')} {error}", err=True)
            ctx.exit(exit_code_of(error))
        except BrokenPipeError:
            # Whoever read our output has gone (`| head`): not an error, but Python would print one while it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spearpool")
def main() -> None:
    """Run task programs as supervised, authenticated, resource-limited processes.

    \b
    Example:
      spearpool start --workers 2 --task wc="exec:wc -w" --daemon
      echo "three little words" | spearpool execute wc --input -
      spearpool stop
    """
