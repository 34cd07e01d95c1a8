"""A task that wants nothing but to be left alone, and how long its executions take meanwhile."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Self

from spearpool.client import Client
from spearpool.errors import SpearpoolError

__all__ = ["NEIGHBOUR", "Neighbour", "quantile_ms"]

NEIGHBOUR = """
[tasks.neighbour]
target = "python:echo_task:echo"
"""

PAUSE_S = 0.005
TIMEOUT_S = 30.0


def quantile_ms(seconds: list[float], part: float) -> float:
    """By nearest rank."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1e3


@dataclass
class Neighbour:
    """Has the neighbour execute one input after the other, from `with` to the end of the block."""

    name: str
    environ: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with Client(self.name, environ=self.environ) as client:
            client.execute("neighbour", timeout=TIMEOUT_S)
            while not self._over.wait(PAUSE_S):
                sent, begin = b"%d" % len(self.seconds), time.perf_counter()
                try:
                    answer = client.execute("neighbour", input=sent, timeout=TIMEOUT_S)
                except SpearpoolError as error:
                    self.wrong.append(str(error))
                    continue
                self.seconds.append(time.perf_counter() - begin)
                if answer != sent:
                    self.wrong.append(f"{sent!r} became {answer!r}")
