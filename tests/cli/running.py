"""Commands in this process, against a real pool."""

from __future__ import annotations

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
    result = CliRunner().invoke(main, list(words), env=env.environ, input=data)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout_bytes, result.stderr)
