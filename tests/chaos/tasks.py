"""Handlers of the pool under test. Each notes which executions it began, so that none can be run twice unnoticed."""

from __future__ import annotations

import os
import time
from functools import cache

from spearpool.agent import Request

__all__ = ["LEDGER", "bulk", "dawdle", "work"]

LEDGER = "CHAOS_LEDGER"
"""The variable that names a directory; each instance appends the inputs that it was given to a file of its own."""

BULK_REPEATS = 2000


@cache
def _ledger(pid: int) -> int:
    path = os.path.join(os.environ[LEDGER], str(pid))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _note(request: Request) -> None:
    os.write(_ledger(os.getpid()), request.input + b"\n")


def work(request: Request) -> bytes:
    """At once."""
    _note(request)
    return request.input.upper()


def dawdle(request: Request) -> bytes:
    """After as many seconds as the first argument says."""
    _note(request)
    time.sleep(float(request.args[0]))
    return request.input.upper()


def bulk(request: Request) -> bytes:
    """More than a socket's buffers like."""
    _note(request)
    return request.input.upper() * BULK_REPEATS
