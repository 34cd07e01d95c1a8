"""The top-level group: every command loads, has an example, and errors become words and exit codes."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from spearpool import errors
from spearpool.cli.group import COMMANDS, exit_code_of, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    command = main.get_command(click.Context(main), name)
    assert command is not None
    commands = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    for each in commands:
        assert "Example" in (each.help or ""), each.name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("a", 1, "b"), 2),
        (errors.NoSuchPool("x"), 3),
        (errors.ExecutionTimeout("x"), 4),
        (TimeoutError("x"), 4),
        (errors.AuthenticationError("x"), 5),
        (errors.Overloaded("x", 429), 5),
        (errors.Draining("x", 503), 5),
        (errors.RequestRefused("x", 400), 2),
        (errors.RequestRefused("x", 403), 5),
        (errors.UnknownTask("x", 404), 1),
        (errors.ExecutionFailed("x"), 1),
        (errors.PoolAlreadyRunning("x"), 1),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert exit_code_of(error) == code


def test_an_error_is_one_line_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise errors.NoSuchPool("no pool 'x' is running")

    monkeypatch.setitem(COMMANDS, "status", (__name__, "broken"))
    monkeypatch.setattr(sys.modules[__name__], "broken", broken, raising=False)
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 3
    assert result.stderr == "spearpool: error: no pool 'x' is running\n"


def test_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["frobnicate"])
    assert result.exit_code == 2
    assert "No such command 'frobnicate'" in result.stderr


def test_help_and_version_load_nothing_heavy() -> None:
    code = "import sys, spearpool.cli; print(*sorted({'numpy', 'zmq', 'psutil', 'asyncio', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m spearpool completion bash | true", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
