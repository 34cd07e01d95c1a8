"""Agents that the tests run as processes: `python -m tests.agent.programs NAME`, with the `SPEAR_*` variables set."""

from __future__ import annotations

import sys
import time

from spearpool.agent import Request, conversation, serve
from spearpool.agent.runner import run_program


def handle(request: Request) -> bytes | str | None:
    """Does what its first argument says."""
    match request.args:
        case ["spin", seconds]:  # pure Python, which holds the interpreter's lock
            end = time.monotonic() + float(seconds)
            turns = 0
            while time.monotonic() < end:
                turns += 1
            return "spun"
        case ["sleep", seconds]:
            time.sleep(float(seconds))
            return "slept"
        case ["until-cancelled"]:
            return "cancelled" if request.cancelled.wait(30) else "never"
        case ["stubborn"]:
            while True:
                time.sleep(1)
        case ["raise", words]:
            raise ValueError(words)
    return request.input


def main(name: str, *words: str) -> None:
    if name == "exec":
        run_program(words)
    elif name == "handler":
        serve(handle)
    elif name == "impatient":
        conversation.STOP_GRACE_S = 0.2
        serve(handle)


if __name__ == "__main__":
    main(*sys.argv[1:])
