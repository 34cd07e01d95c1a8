"""Commands in this process, against a real pool."""

from __future__ import annotations

import os
from dataclasses import dataclass

from click.testing import CliRunner

from spearpool.cli import main
from tests.conftest import RuntimeEnv

__all__ = ["Said", "invoke"]


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: bytes
    err: str


def invoke(env: RuntimeEnv, *words: str, data: bytes = b"") -> Said:
    """Run a command as `spearpool WORDS` would, but without the start of an interpreter."""
    # Only what differs: once variables that it was started with are set again, a process cannot be given a title.
    changes = {name: value for name, value in env.environ.items() if os.environ.get(name) != value}
    result = CliRunner().invoke(main, list(words), env=changes, input=data)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout_bytes, result.stderr)
