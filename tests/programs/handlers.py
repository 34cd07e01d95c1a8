"""Handlers of `python:` tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from spearpool.agent import Request, on_signal

__all__ = ["daemonise", "deaf", "echo", "fail", "pid", "sleep", "stubborn", "told", "upper"]


_told: list[str] = []


@on_signal
def hear(name: str) -> None:
    _told.append(name)
    if name == "trouble":
        raise RuntimeError("this listener always fails")


def told(request: Request) -> str:
    """Which signals with a name of their own have come so far."""
    return " ".join(_told)


def echo(request: Request) -> bytes:
    return request.input


def upper(request: Request) -> bytes:
    return request.input.upper()


def pid(request: Request) -> str:
    return str(os.getpid())


def sleep(request: Request) -> str:
    """Sleep for as many seconds as the first argument says."""
    time.sleep(float(request.args[0]))
    return "slept"


def loud(request: Request) -> str:
    """Print so many lines of so many dots."""
    count, width = map(int, request.args)
    for number in range(count):
        print("line", number, "." * width)
    return "said"


def deaf(request: Request) -> None:
    """Sleep for as many seconds as the first argument says, and do not listen to SIGTERM meanwhile."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + float(request.args[0])
    while (left := end - time.monotonic()) > 0:
        time.sleep(left)


def stubborn(request: Request) -> str:
    """`child`: leave a child behind, and return its pid; `listen`: wait until cancelled; else sleep for so many
    seconds, whoever cancels."""
    match request.args:
        case ["child"]:
            return str(subprocess.Popen(["sleep", "600"]).pid)
        case ["listen"]:
            request.cancelled.wait()
        case [seconds]:
            time.sleep(float(seconds))
    return "let go"


def fail(request: Request) -> None:
    raise ValueError("this handler always fails")


def daemonise(request: Request) -> str:
    """Leave a daemon behind that has a session of its own and ignores SIGTERM; returns its pid."""
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child.stdout.readline().strip()
