"""Handlers that take more than they are given, as the first argument says how much."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from spearpool.agent import Request

__all__ = ["bomb", "burn", "fill", "flood", "hog", "leak", "shout", "sleep", "write"]


def hog(request: Request) -> str:
    """Take memory, page by page, until there is no more."""
    held = bytearray()
    while len(held) < int(request.args[0]):
        held += bytes(1 << 20)
    return str(len(held))


def burn(request: Request) -> str:
    """Compute for so many seconds of wall-clock time."""
    end = time.monotonic() + float(request.args[0])
    while time.monotonic() < end:
        pass
    return "burnt"


def leak(request: Request) -> str:
    """Open files and never close one."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(request.args[0]))]
    return str(len(held))


def write(request: Request) -> str:
    """Write one file of so many bytes."""
    with Path("large").open("wb") as file:
        file.writelines(bytes(1 << 16) for _ in range(int(request.args[0]) >> 16))
    return "written"


def fill(request: Request) -> str:
    """Write many files, so many bytes in all, and wait."""
    for number in range(int(request.args[0]) >> 16):
        Path(f"file-{number}").write_bytes(os.urandom(1 << 16))
    time.sleep(600)
    return "filled"


def flood(request: Request) -> bytes:
    """Send so many bytes back."""
    return bytes(int(request.args[0]))


def shout(request: Request) -> str:
    """Print so many bytes, in lines."""
    line = b"." * 1023 + b"\n"
    for _ in range(int(request.args[0]) >> 16):
        os.write(1, line * 64)
    return "said"


def sleep(request: Request) -> str:
    """Sleep for so many seconds, whoever cancels."""
    time.sleep(float(request.args[0]))
    return "slept"


def bomb(request: Request) -> str:
    """Fork, and have every child fork, until there are about so many processes; they ignore SIGTERM and stay."""
    most = int(request.args[0])
    sys.stdout.flush()
    for generation in range(20):
        if 2 ** (generation + 1) > most:
            break
        os.fork()
    time.sleep(600)
    return "gone off"
