#!/usr/bin/env python3
"""A task whose module imports numpy, and the same as a process of multiprocessing's.

As a program it starts a process for each line of its input, `spawn` or `forkserver` (told to preload this module), and
answers with the milliseconds from the start to the process's first word. It imports nothing else, because such a
process imports its parent's main module again.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from spearpool.agent import Request

__all__ = ["answer", "total"]


def total(request: Request) -> str:
    """The sum of the input's bytes."""
    return str(int(np.frombuffer(request.input, np.uint8).sum()))


def answer(connection: Connection) -> None:
    connection.send(int(np.ones(3).sum()))


def first_word_ms(method: str) -> float:
    ours, theirs = multiprocessing.Pipe()
    begin = time.perf_counter()
    process = multiprocessing.get_context(method).Process(target=answer, args=(theirs,))  # type: ignore[attr-defined]
    process.start()
    ours.recv()
    took_ms = (time.perf_counter() - begin) * 1e3
    process.join()
    ours.close()
    theirs.close()
    return took_ms


if __name__ == "__main__":
    multiprocessing.get_context("forkserver").set_forkserver_preload(["numpy_task"])
    for line in sys.stdin:
        print(first_word_ms(line.strip()), flush=True)
