"""A load process: clients from outside, in an asyncio loop of their own. Run as `python -m tests.chaos.crowd`.

*Passers* come at a fixed rate whatever the pool does (an open loop: who waits, waits from when it was due), say who
they are, some have something executed, and go. *Residents* stay, and have something executed now and then; the first
few of them are slow clients, which ask for much and read late. A resident that was cut comes again at once.

It reads its `Assignment` as a line of JSON, says `ready`, reads the times of the run as a second line, and at the end
writes its `Account`. Its parent's death ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any

import uvloop

from spearpool.processes import set_parent_death_signal

from .line import Line, LineEnded, Tally, dial
from .tasks import BULK_REPEATS

__all__ = ["Account", "Assignment", "Times", "main"]

CONNECT_TIMEOUT_S = 10.0
PACE_S = 0.001
PAUSE_S = 0.5
"""A resident's mean pause between two executions."""

EXECUTING_PASSERS = 0.3
DAWDLING = 0.15
"""Which part of the residents' executions meets a slow agent."""

LONGEST_DAWDLE_S = 0.8
BULKS = 4
READ_LATE_S = (0.2, 1.5)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a load process is to do. `rate` is passers per second."""

    name: str
    host: str
    port: int
    token: str
    seed: int
    rate: float = 0.0
    residents: int = 0
    slow_clients: int = 0


@dataclass(frozen=True, slots=True)
class Times:
    """Of the run, in monotonic seconds. What is owed after `end_s` is awaited for `drain_s`."""

    begin_s: float
    storm_s: float
    end_s: float
    drain_s: float


@dataclass
class Account:
    """What came of it. Latencies are connect-to-authenticated, in ms, of passers due before and in the storm."""

    counts: dict[str, int]
    examples: list[str]
    calm_ms: list[float] = field(default_factory=list)
    storm_ms: list[float] = field(default_factory=list)
    kept: int = 0


class Crowd:
    """All clients of this process. `prepare`, then `run`."""

    def __init__(self, assignment: Assignment) -> None:
        self._do = assignment
        self._chance = random.Random(f"{assignment.name} {assignment.seed}")
        self._tally = Tally()
        self._lines: list[Line] = []
        self._calm_ms: list[float] = []
        self._storm_ms: list[float] = []
        self._kept = 0
        self._serial = 0
        self._passing: set[asyncio.Task[None]] = set()
        self._times = Times(0.0, 0.0, 0.0, 0.0)

    async def prepare(self) -> None:
        """Bring the residents in."""
        for number in range(self._do.residents):
            self._lines.append(await self._dial(slow=number < self._do.slow_clients))

    async def run(self, times: Times) -> Account:
        self._times = times
        await asyncio.sleep(max(0.0, times.begin_s - time.monotonic()))
        residents = [asyncio.create_task(self._reside(number)) for number in range(len(self._lines))]
        if self._do.rate:
            await self._pace()
        staying = [*residents, *self._passing]
        if staying:
            limit_s = times.end_s + times.drain_s - time.monotonic()
            _, late = await asyncio.wait(staying, timeout=limit_s)
            await self._give_up(late)
        for line in self._lines:
            line.give_up()
        await asyncio.sleep(0)
        counts = dict(self._tally.counts)
        return Account(counts, self._tally.examples, self._calm_ms, self._storm_ms, self._kept)

    async def _give_up(self, late: set[asyncio.Task[None]]) -> None:
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def _on(self) -> bool:
        return time.monotonic() < self._times.end_s

    async def _dial(self, *, slow: bool = False) -> Line:
        """Raises `LineEnded`, `OSError` and `TimeoutError`; what must not be is counted."""
        address, label = (self._do.host, self._do.port), f"chaos-{self._do.name}"
        counts = self._tally.counts
        counts["dialled"] += 1
        try:
            return await dial(self._tally, address, self._do.token, label, timeout_s=CONNECT_TIMEOUT_S, slow=slow)
        except ConnectionRefusedError:
            self._tally.wrong("refused", f"{address[0]}:{address[1]}")
            raise
        except TimeoutError:
            self._tally.wrong("not admitted in time", f"within {CONNECT_TIMEOUT_S:g} s")
            raise
        except OSError as error:  # reset while it was in an accept queue
            self._tally.wrong("reset", repr(error))
            raise

    def _execute(self, line: Line, task: str, *args: str) -> asyncio.Future[None]:
        self._serial += 1
        data = f"{self._do.name}-{self._serial}".encode()
        repeats = BULK_REPEATS if task == "bulk" else 1
        return line.execute(task, data, data.upper() * repeats, *args)

    # Passers

    async def _pace(self) -> None:
        due, count = self._times.begin_s, 0
        while due < self._times.end_s:
            while due <= time.monotonic() and due < self._times.end_s:
                self._keep(self._pass_by(due))
                count += 1
                due = self._times.begin_s + count / self._do.rate
            await asyncio.sleep(PACE_S)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _pass_by(self, due: float) -> None:
        try:
            line = await self._dial()
        except (LineEnded, OSError):
            return
        latencies = self._calm_ms if due < self._times.storm_s else self._storm_ms
        latencies.append(round((time.monotonic() - due) * 1e3, 3))
        self._tally.counts["passed"] += 1
        try:
            if self._chance.random() < EXECUTING_PASSERS:
                await self._execute(line, "work")
        finally:
            line.give_up()

    # Residents

    async def _reside(self, number: int) -> None:
        slow = number < self._do.slow_clients
        line = self._lines[number]
        stayed = True
        while self._on():
            await asyncio.sleep(self._chance.expovariate(1 / PAUSE_S))
            if line.ended is not None:
                stayed = False
                try:
                    line = self._lines[number] = await self._dial(slow=slow)
                except (LineEnded, OSError):
                    continue
                self._tally.counts["came again"] += 1
            await (self._read_late(line) if slow else self._ask(line))
        self._kept += stayed and line.ended is None

    async def _ask(self, line: Line) -> None:
        if self._chance.random() < DAWDLING:
            await self._execute(line, "dawdle", f"{self._chance.uniform(0.05, LONGEST_DAWDLE_S):.3f}")
        else:
            await self._execute(line, "work")

    async def _read_late(self, line: Line) -> None:
        line.read_nothing()
        answers = [self._execute(line, "bulk") for _ in range(BULKS)]
        await asyncio.sleep(self._chance.uniform(*READ_LATE_S))
        line.read_on()
        await asyncio.gather(*answers)


async def _work() -> Account:
    loop = asyncio.get_running_loop()
    crowd = Crowd(Assignment(**json.loads(sys.stdin.readline())))
    await crowd.prepare()
    print("ready", flush=True)
    line = await loop.run_in_executor(None, sys.stdin.readline)
    return await crowd.run(Times(**json.loads(line)))


def main() -> None:
    """Raises `LineEnded` and `OSError` when the residents do not get in."""
    set_parent_death_signal(signal.SIGKILL, os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us ends us
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        account = runner.run(_work())
    print(json.dumps(asdict(account)), flush=True)


if __name__ == "__main__":
    main()
