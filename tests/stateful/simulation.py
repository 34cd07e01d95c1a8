"""A pool of dispatchers in simulated time: their links with delays, agents that take their time, clients that go on.

Nothing here is random unless the test makes it so, and nothing depends on the machine.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from statistics import fmean

from spearpool.protocol.identifiers import execution_id
from spearpool.protocol.messages import ExecuteRequest
from spearpool.worker.dispatch import Dispatcher
from spearpool.worker.executions import (
    CLIENT,
    Action,
    Agent,
    Answer,
    Dispatch,
    Execution,
    Forward,
    Nudge,
    Refuse,
    Unused,
)

__all__ = ["SimulatedPool", "SimulatedWorker"]

TASK = "a"
REQUEST = ExecuteRequest(TASK, "", [], {})


@dataclass
class SimulatedBoard:
    """What all workers see at once, from one of them."""

    worker: SimulatedWorker
    workers: list[SimulatedWorker]

    def publish(self, task: int, free: int, queued: int, since: float) -> None:
        self.worker.row = (free, queued, since)

    def free(self, task: int) -> dict[int, int]:
        return {worker.slot: worker.row[0] for worker in self.workers if worker.row[0]}

    def waiting(self, task: int, before: float) -> dict[int, float]:
        return {worker.slot: worker.row[2] for worker in self.workers if 0 < worker.row[2] < before}

    def queued(self, slot: int, task: int) -> int:
        return self.workers[slot].row[1]

    def publish_arrived(self, slot: int, count: int) -> None:
        self.worker.arrived[slot] = count

    def arrived(self, slot: int) -> int:
        return self.workers[slot].arrived[self.worker.slot]

    def leaving(self, slot: int) -> bool:
        return False

    def congested(self, slot: int) -> bool:
        return False


@dataclass(eq=False)
class SimulatedWorker:
    """`waits` are the seconds from submission to start of what its clients submitted; till `hangs_until` it is deaf."""

    slot: int
    dispatcher: Dispatcher = field(init=False)
    row: tuple[int, int, float] = (0, 0, 0.0)
    arrived: Counter[int] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    counter: int = 0
    hangs_until: float = 0.0
    wakes_at: float = inf


class SimulatedPool:
    """`delay_s` is what a link takes for a message. `said` counts the instructions that the dispatchers gave."""

    def __init__(self, workers: int, delay_s: float, seed: int = 1) -> None:
        self.now = 1000.0
        self.said: Counter[type] = Counter()
        self.bounced = 0
        self.workers = [SimulatedWorker(slot) for slot in range(workers)]
        self._random = random.Random(seed)
        self._delay_s = delay_s
        self._events: list[tuple[float, int, SimulatedWorker, Callable[[], None]]] = []
        self._order = itertools.count()
        self._places = 0
        self._busy_s = 0.0
        self._submitted: dict[str, float] = {}
        self._then: dict[str, Callable[[], None]] = {}
        for worker in self.workers:
            worker.dispatcher = Dispatcher(worker.slot, (TASK,), SimulatedBoard(worker, self.workers), 10**6, 10**9)
        for one, other in itertools.permutations(self.workers, 2):
            self._perform(one, one.dispatcher.link_up(other.slot, self.now))

    # ---------------------------------------------------------------------------------------------- what the test does

    def add_agent(self, worker: SimulatedWorker, places: int, service: Callable[[], float]) -> None:
        """`service` returns the seconds that the next execution takes."""
        self._places += places
        self._perform(worker, worker.dispatcher.agent_joined(Agent(service, TASK, places, object())))

    def add_clients(self, worker: SimulatedWorker, count: int) -> None:
        """So many clients that submit again as soon as they are answered."""

        def submit() -> None:
            self._submit(worker, submit)

        for _ in range(count):
            self._at(self._random.random() * 1e-3, worker, submit)

    def add_arrivals(self, worker: SimulatedWorker, rate: float) -> None:
        """Clients that come at random, whoever waits already."""

        def come() -> None:
            self._submit(worker, lambda: None)
            self._at(self._random.expovariate(rate), worker, come)

        self._at(self._random.expovariate(rate), worker, come)

    def around(self, seconds: float) -> Callable[[], float]:
        """Times at random, that long on average."""
        return lambda: self._random.expovariate(1 / seconds)

    def hang(self, worker: SimulatedWorker, seconds: float) -> None:
        """It does nothing for so long; what comes meanwhile waits."""
        worker.hangs_until = self.now + seconds

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events[0][0] <= end:
            self.now, _, worker, event = heapq.heappop(self._events)
            if self.now < worker.hangs_until:
                self._at(worker.hangs_until - self.now, worker, event)
            else:
                event()
        self.now = end

    def forget(self) -> None:
        """Begin to count anew, after the time in which a steady state came about."""
        for worker in self.workers:
            worker.waits.clear()
        self.said.clear()
        self.bounced = 0
        self._busy_s = 0.0

    def mean_waits(self) -> list[float]:
        """Of each worker of whose executions any was started."""
        return [fmean(worker.waits) for worker in self.workers if worker.waits]

    def utilisation(self, seconds: float) -> float:
        """Which part of the places' time was used."""
        return self._busy_s / (self._places * seconds)

    # ------------------------------------------------------------------------------------------------------ the shells

    def _at(self, delay_s: float, worker: SimulatedWorker, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), worker, event))

    def _submit(self, worker: SimulatedWorker, then: Callable[[], None]) -> None:
        worker.counter += 1
        name = execution_id(1, worker.slot, worker.slot, worker.counter)
        self._then[name] = then
        self._submitted[name] = self.now
        execution = Execution(name, TASK, REQUEST, worker, 1, 1, self.now)
        self._perform(worker, worker.dispatcher.submit(execution, self.now))

    def _perform(self, worker: SimulatedWorker, actions: list[Action]) -> None:
        for action in actions:
            self.said[type(action)] += 1
            self._carry_out(worker, action)
        when = worker.dispatcher.next_deadline()
        if when < worker.wakes_at:
            worker.wakes_at = when
            self._at(when - self.now, worker, lambda: self._expire(worker, when))

    def _carry_out(self, worker: SimulatedWorker, action: Action) -> None:
        slot = worker.slot
        match action:
            case Dispatch(execution, agent):
                self._start(worker, execution, agent)
            case Forward(execution, to):
                self._send(to, lambda it: it.submit(self._copy(execution, worker), self.now))
            case Nudge(to, task):
                self._send(to, lambda it: it.nudged(slot, task))
            case Unused(to, task):
                self._send(to, lambda it: it.unused(slot, task))
            case Answer(execution, _) if execution.source != CLIENT:
                self._send(execution.source, lambda it: it.neighbour_answered(slot, execution.execution_id, "done"))
            case Refuse(execution) if execution.source != CLIENT:
                self.bounced += 1
                self._send(execution.source, lambda it: it.bounced(slot, execution.execution_id, self.now))
            case Answer(execution, _):
                self._at(0.0, worker, self._then.pop(execution.execution_id))
            case _:
                raise AssertionError(action)

    def _start(self, worker: SimulatedWorker, execution: Execution, agent: Agent) -> None:
        origin = worker if execution.source == CLIENT else self.workers[execution.source]
        origin.waits.append(self.now - self._submitted.pop(execution.execution_id))
        seconds = agent.connection()
        self._busy_s += seconds
        name = execution.execution_id
        self._at(seconds, worker, lambda: self._perform(worker, worker.dispatcher.answered(agent, name, "done")))

    def _copy(self, execution: Execution, sender: SimulatedWorker) -> Execution:
        """The execution as the neighbour gets it."""
        return Execution(execution.execution_id, TASK, REQUEST, sender, 1, 0, self.now, inf, sender.slot)

    def _send(self, slot: int, deliver: Callable[[Dispatcher], list[Action]]) -> None:
        receiver = self.workers[slot]
        self._at(self._delay_s, receiver, lambda: self._perform(receiver, deliver(receiver.dispatcher)))

    def _expire(self, worker: SimulatedWorker, when: float) -> None:
        if worker.wakes_at == when:
            worker.wakes_at = inf
            self._perform(worker, worker.dispatcher.expire(self.now))
