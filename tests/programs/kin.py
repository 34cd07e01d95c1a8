"""A handler that leaves relatives behind, each of whom tries to outlive it in its own way."""

from __future__ import annotations

import os
import subprocess
import sys

from spearpool.agent import Request

__all__ = ["leave"]

SLEEP = "import os, signal, sys, time\ndef stay():\n  print('there', flush=True); os.close(1); time.sleep(600)\n"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"

RELATIVES = {
    "child": "stay()",
    "deaf": DEAF + "stay()",
    "leaver": DEAF + "os.setsid(); stay()",
    "daemon": DEAF + "if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\nstay()",
    "hopper": DEAF + "print('there', flush=True); os.close(1)\n"
    "while True:\n  if os.fork(): os._exit(0)\n  time.sleep(.005)",
}
"""A child, one that ignores SIGTERM, one that leaves its group and session, too, a daemon with no parent of ours, and
one that is a new process every few milliseconds."""


def leave(request: Request) -> str:
    """Start the relatives that the arguments name, `die` of an exit, and answer when all are there."""
    kinds = [kind for kind in request.args if kind != "die"]
    for kind in kinds:
        relative = subprocess.Popen([sys.executable, "-c", SLEEP + RELATIVES[kind]], stdout=subprocess.PIPE)
        assert relative.stdout is not None
        assert relative.stdout.readline() == b"there\n"
    if "die" in request.args:
        os._exit(3)
    return " ".join(kinds)
