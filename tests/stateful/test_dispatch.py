"""Three dispatchers, their links and agents, driven at random beside a model that knows what may happen.

The links are queues of messages that are delivered when hypothesis says so; the board is a dictionary that all see at
once; agents hold what they got until told to answer. What the model knows: each accepted execution ends exactly once
and with its own result, what may have been started is not started again, nobody gets more than its capacity, nothing is
forwarded twice, and once all is quiet nothing waits beside free capacity.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spearpool.protocol.identifiers import execution_id
from spearpool.protocol.messages import ExecuteRequest
from spearpool.worker.books import REATTACH_GRACE_S
from spearpool.worker.dispatch import REREAD_S, Dispatcher
from spearpool.worker.executions import (
    CLIENT,
    Action,
    Agent,
    Answer,
    Dispatch,
    Ending,
    Execution,
    Finish,
    Forward,
    Located,
    Mislaid,
    Nudge,
    Place,
    Refuse,
    Relay,
    Terminate,
    TerminateRemote,
    Unused,
)

SLOTS = 3
TASKS = ("a", "b")
REQUEST = ExecuteRequest("a", "", [], {})


@dataclass
class Common:
    """What all see at once: a row per worker and task, what each has taken in from each, who is leaving."""

    rows: dict[tuple[int, int], tuple[int, int, float]] = field(default_factory=dict)
    arrived: dict[tuple[int, int], int] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)

    def forget(self, slot: int) -> None:
        for words in (self.rows, self.arrived):
            for key in [key for key in words if key[0] == slot]:
                del words[key]
        self.left.discard(slot)


@dataclass
class BoardOfOne:
    """One worker's view of it."""

    slot: int
    common: Common

    def publish(self, task: int, free: int, queued: int, since: float) -> None:
        self.common.rows[self.slot, task] = (free, queued, since)

    def _others(self, task: int) -> dict[int, tuple[int, int, float]]:
        return {slot: row for (slot, column), row in self.common.rows.items() if column == task and slot != self.slot}

    def free(self, task: int) -> dict[int, int]:
        return {slot: free for slot, (free, _, _) in self._others(task).items() if free}

    def waiting(self, task: int, before: float) -> dict[int, float]:
        return {slot: since for slot, (_, _, since) in self._others(task).items() if 0 < since < before}

    def queued(self, slot: int, task: int) -> int:
        return self.common.rows[slot, task][1]

    def publish_arrived(self, slot: int, count: int) -> None:
        self.common.arrived[self.slot, slot] = count

    def arrived(self, slot: int) -> int:
        return self.common.arrived.get((slot, self.slot), 0)

    def leaving(self, slot: int) -> bool:
        return slot in self.common.left

    def congested(self, slot: int) -> bool:
        return False


@dataclass(eq=False, repr=False)
class LinkEnd:
    """Where a worker puts what is for the neighbour `to`; as an execution's origin it says who forwarded it."""

    to: int
    messages: deque[tuple[Any, ...]] = field(default_factory=deque)


@dataclass(eq=False, repr=False)
class Worker:
    slot: int
    incarnation: int
    dispatcher: Dispatcher
    links: dict[int, LinkEnd] = field(default_factory=dict)
    draining: bool = False
    counter: int = 0
    taken_in: list[Execution] = field(default_factory=list)


@dataclass(eq=False, repr=False)
class Instance:
    """A process with an agent: where it is connected, and what it works on."""

    number: int
    task: str
    capacity: int
    worker: Worker
    agent: Agent
    working: set[str] = field(default_factory=set)


class Client:
    """Submitted one execution at one worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.gone = False


class Workers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.common = Common()
        self.incarnations = 0
        self.instances: list[Instance] = []
        self.clients: dict[str, Client] = {}
        self.executions: dict[str, Execution] = {}
        self.ended: dict[str, Action] = {}
        self.started: set[str] = set()
        self.workers: list[Worker] = []
        for slot in range(SLOTS):
            self.workers.append(self._new_worker(slot))
        for worker in self.workers:
            self._link(worker)

    # ------------------------------------------------------------------------------------------------- construction

    def _new_worker(self, slot: int) -> Worker:
        self.incarnations += 1
        board = BoardOfOne(slot, self.common)
        return Worker(slot, self.incarnations, Dispatcher(slot, TASKS, board, 1000, 10_000))

    def _link(self, worker: Worker) -> None:
        for other in self.workers:
            if other is not worker and other.slot not in worker.links:
                worker.links[other.slot] = LinkEnd(other.slot)
                other.links[worker.slot] = LinkEnd(worker.slot)
                self._perform(worker, worker.dispatcher.link_up(other.slot, self.now))
                self._perform(other, other.dispatcher.link_up(worker.slot, self.now))

    # --------------------------------------------------------------------------------------------------- the shell

    def _perform(self, worker: Worker, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch(execution, agent):
                    self._start(worker, execution, agent)
                case Forward(execution, slot):
                    assert execution.source == CLIENT, "a second hop"
                    worker.links[slot].messages.append(("execute", execution))
                case Answer(execution, response):
                    assert response == f"result of {execution.execution_id}"
                    self._tell(worker, execution, action, ("answer", execution.execution_id, response))
                case Finish(execution, ending):
                    self._tell(worker, execution, action, ("answer", execution.execution_id, ending))
                case Refuse(execution):
                    self._tell(worker, execution, action, ("bounce", execution.execution_id))
                case Terminate(agent, name):
                    assert agent.running[name] is None
                case TerminateRemote(slot, name):
                    worker.links[slot].messages.append(("cancel", name))
                case Nudge(slot, task):
                    worker.links[slot].messages.append(("nudge", task))
                case Unused(slot, task):
                    worker.links[slot].messages.append(("unused", task))
                case Located(slot, name):
                    worker.links[slot].messages.append(("located", name))
                case Mislaid(slot, name):
                    worker.links[slot].messages.append(("mislaid", name))
                case Relay(slot, name, response):
                    worker.links[slot].messages.append(("answer", name, response))

    def _start(self, worker: Worker, execution: Execution, agent: Agent) -> None:
        name = execution.execution_id
        assert len(agent.running) <= agent.capacity, "more than its capacity"
        assert name not in self.started, "started twice"
        instance = next(i for i in self.instances if i.agent is agent)
        assert instance.worker is worker
        assert instance.task == execution.task
        self.started.add(name)
        instance.working.add(name)

    def _tell(self, worker: Worker, execution: Execution, action: Action, message: tuple[Any, ...]) -> None:
        name = execution.execution_id
        if isinstance(execution.origin, LinkEnd):
            execution.origin.messages.append(message)
            return
        assert execution.origin.worker is worker
        assert name not in self.ended, f"ended twice: {self.ended.get(name)}, {action}"
        if isinstance(action, Refuse):
            assert name not in self.started, "refused although it may have been started"
        self.ended[name] = action

    # -------------------------------------------------------------------------------------------------------- rules

    @rule(slot=st.integers(0, SLOTS - 1), task=st.sampled_from(TASKS), timeout=st.sampled_from([None, 0.005, 1.0, 5.0]))
    def submit(self, slot: int, task: str, timeout: float | None) -> None:
        worker = self.workers[slot]
        worker.counter += 1
        name = execution_id(worker.incarnation, slot, slot, worker.counter)  # workers are named by slot here
        client = Client(worker)
        execution = Execution(name, task, REQUEST, client, 1, 10, self.now)
        if timeout is not None:
            execution.deadline = self.now + timeout
        self.clients[name] = client
        self.executions[name] = execution
        self._perform(worker, worker.dispatcher.submit(execution, self.now))

    @rule(slot=st.integers(0, SLOTS - 1), task=st.sampled_from(TASKS), capacity=st.integers(1, 3))
    def start_instance(self, slot: int, task: str, capacity: int) -> None:
        number = len(self.instances) + 1
        worker = self.workers[slot]
        agent = Agent(None, task, capacity, number)
        self.instances.append(Instance(number, task, capacity, worker, agent))
        self._perform(worker, worker.dispatcher.agent_joined(agent))

    def _busy(self) -> list[tuple[Instance, str]]:
        return [(i, name) for i in self.instances for name in sorted(i.working) if name in i.agent.running]

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self._answer(*data.draw(st.sampled_from(self._busy())))

    def _answer(self, instance: Instance, name: str) -> None:
        instance.working.discard(name)
        dispatcher = instance.worker.dispatcher
        self._perform(instance.worker, dispatcher.answered(instance.agent, name, f"result of {name}"))

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def decline(self, data: st.DataObject) -> None:
        instance, name = data.draw(st.sampled_from(self._busy()))
        instance.working.discard(name)
        self.started.discard(name)
        dispatcher = instance.worker.dispatcher
        self._perform(instance.worker, dispatcher.declined(instance.agent, name, f"result of {name}", self.now))

    @precondition(lambda self: self.instances)
    @rule(data=st.data(), slot=st.integers(0, SLOTS - 1))
    def reconnect(self, data: st.DataObject, slot: int) -> None:
        """An agent's connection breaks and it dials again: it names what it works on, and answers what it finished."""
        instance = data.draw(st.sampled_from(self.instances))
        self._perform(instance.worker, instance.worker.dispatcher.agent_left(instance.agent, self.now))
        finished = data.draw(st.sets(st.sampled_from(sorted(instance.working)))) if instance.working else set()
        instance.working -= finished
        self._dial(instance, slot)
        for name in sorted(finished):
            dispatcher = instance.worker.dispatcher
            self._perform(instance.worker, dispatcher.answered_late(instance.agent, name, f"result of {name}"))

    @precondition(lambda self: self.instances)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        """An instance is told to leave: it finishes what it has."""
        instance = data.draw(st.sampled_from(self.instances))
        instance.capacity = 0
        instance.worker.dispatcher.agent_retired(instance.agent)

    def _dial(self, instance: Instance, slot: int) -> None:
        instance.worker = self.workers[slot]
        instance.agent = Agent(None, instance.task, instance.capacity, instance.number)
        joined = instance.worker.dispatcher.agent_joined(instance.agent, sorted(instance.working))
        self._perform(instance.worker, joined)

    @precondition(lambda self: self.instances)
    @rule(data=st.data())
    def instance_dies(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(self.instances))
        self.instances.remove(instance)
        self._perform(instance.worker, instance.worker.dispatcher.agent_left(instance.agent, self.now))
        for worker in self.workers:
            self._perform(worker, worker.dispatcher.agent_gone(instance.number))

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        waiting = [(w, link) for w in self.workers for link in w.links.values() if link.messages]
        if waiting:
            self._deliver(*data.draw(st.sampled_from(waiting)))

    def _deliver(self, sender: Worker, link: LinkEnd) -> None:
        receiver = self.workers[link.to]
        dispatcher = receiver.dispatcher
        slot = sender.slot
        match link.messages.popleft():
            case ("execute", Execution() as e):
                back = receiver.links[slot]
                here = Execution(e.execution_id, e.task, REQUEST, back, 1, 0, self.now, e.deadline, slot)
                receiver.taken_in.append(here)
                self._perform(receiver, dispatcher.submit(here, self.now))
            case ("answer", name, Ending() as ending):
                unknown = ending is Ending.OUTCOME_UNKNOWN
                actions = dispatcher.neighbour_answered(slot, name, f"result of {name}", unknown=unknown)
                self._perform(receiver, actions)
            case ("answer", name, response):
                self._perform(receiver, dispatcher.neighbour_answered(slot, name, response))
            case ("bounce", name):
                self._perform(receiver, dispatcher.bounced(slot, name, self.now))
            case ("cancel", name):
                self._perform(receiver, dispatcher.cancel(name, receiver.links[slot]))
            case ("nudge", task):
                self._perform(receiver, dispatcher.nudged(slot, task))
            case ("unused", task):
                self._perform(receiver, dispatcher.unused(slot, task))
            case ("located", name):
                self._perform(receiver, dispatcher.located(slot, name))
            case ("mislaid", name):
                self._perform(receiver, dispatcher.mislaid(slot, name, self.now))

    @rule(slot=st.integers(0, SLOTS - 1))
    def kill_worker(self, slot: int) -> None:
        """Its clients lose their connections; its agents dial elsewhere; an heir takes the slot."""
        dead = self.workers[slot]
        self.common.forget(slot)
        for other in self.workers:
            if other is not dead:
                del other.links[slot]
                self._perform(other, other.dispatcher.link_down(slot, self.now))
        self.workers[slot] = self._new_worker(slot)
        for name, client in self.clients.items():
            if client.worker is dead:
                self.ended.setdefault(name, Finish(self.executions[name], Ending.OUTCOME_UNKNOWN))
        self._link(self.workers[slot])
        for instance in self.instances:
            if instance.worker is dead:
                self._dial(instance, (slot + 1) % SLOTS)

    @rule(slot=st.integers(0, SLOTS - 1))
    def drain(self, slot: int) -> None:
        self.workers[slot].draining = True
        self.common.left.add(slot)
        self.workers[slot].dispatcher.drain()

    @rule(slot=st.integers(0, SLOTS - 1), task=st.sampled_from(TASKS), available=st.booleans())
    def set_task(self, slot: int, task: str, available: bool) -> None:
        worker = self.workers[slot]
        self._perform(worker, worker.dispatcher.set_task(task, available, "its breaker is open"))

    def _open(self) -> list[str]:
        return sorted(set(self.clients) - set(self.ended))

    @precondition(lambda self: self._open())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._open()))
        client = self.clients[name]
        assert client.worker.dispatcher.cancel(name, "somebody else") == []
        self._perform(client.worker, client.worker.dispatcher.cancel(name, client))
        assert name in self.ended

    @precondition(lambda self: self._open())
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._open()))
        execution, client = self.executions[name], self.clients[name]
        queued = execution.place is Place.QUEUED
        self._perform(client.worker, client.worker.dispatcher.abandon([execution]))
        assert (name in self.ended) == queued

    @rule(seconds=st.sampled_from([0.001, REREAD_S, 0.1, REATTACH_GRACE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._expire()

    def _expire(self) -> None:
        for worker in self.workers:
            if worker.dispatcher.next_deadline() <= self.now:
                self._perform(worker, worker.dispatcher.expire(self.now))
            assert worker.dispatcher.next_deadline() > self.now

    @rule()
    def quiet(self) -> None:
        """All messages arrive and every queue has been looked at twice: now nothing may wait beside free capacity."""
        for _ in range(3):
            while waiting := [(w, link) for w in self.workers for link in w.links.values() if link.messages]:
                self._deliver(*waiting[0])
            self.now += REREAD_S
            self._expire()
        if not any(link.messages for worker in self.workers for link in worker.links.values()):
            self._nothing_is_owed()
        for index, task in enumerate(TASKS):
            takers = [w for w in self.workers if w.dispatcher.snapshot().tasks[task].free]
            for worker in self.workers:
                if worker.dispatcher.snapshot().tasks[task].queued:
                    may_take = [w for w in takers if worker.draining or not w.draining or w is worker]
                    assert not may_take, f"task {index}: {worker.slot} waits, {[w.slot for w in may_take]} have places"

    def _nothing_is_owed(self) -> None:
        """Every nudge has been answered, and what was sent is known to have arrived."""
        for worker in self.workers:
            for neighbour in worker.dispatcher._neighbours:
                assert not any(neighbour.invited.values()), (worker.slot, neighbour)
                neighbour.settle(self.common.arrived.get((neighbour.incarnation, worker.slot), 0))
                assert not neighbour.on_its_way, (worker.slot, neighbour)

    # --------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def books_agree(self) -> None:
        for worker in self.workers:
            snapshot = worker.dispatcher.snapshot()
            mine = [e for n, e in self.executions.items() if self.clients[n].worker is worker and n not in self.ended]
            assert snapshot.queued == sum(task.queued for task in snapshot.tasks.values())
            guests = sum(e.place is Place.QUEUED for e in worker.taken_in)
            assert snapshot.queued == sum(e.place is Place.QUEUED for e in mine) + guests
            assert snapshot.queued_bytes == 10 * (snapshot.queued - guests)
            assert snapshot.live >= len(mine)
            for index, (name, task) in enumerate(snapshot.tasks.items()):
                agents = [i.agent for i in self.instances if i.worker is worker and i.task == name]
                assert task.agents == len(agents)
                assert task.free == sum(max(0, a.capacity - len(a.running)) for a in agents)
                assert not (task.free and task.queued), "waits beside a free agent of its own worker"
                free, queued, since = self.common.rows.get((worker.slot, index), (0, 0, 0.0))
                assert (free, queued) == (task.free, task.queued)
                waiting = [e.received_at for e in mine if e.place is Place.QUEUED and e.task == name]
                assert (since in waiting) if waiting else (since == 0)

    def teardown(self) -> None:
        """Everybody answers, and those that wait for an agent get one: then each execution has ended once."""
        for slot in range(SLOTS):
            for task in TASKS:
                self.start_instance(slot, task, 1)
        for _ in range(1000):
            self.quiet()
            self.now += REATTACH_GRACE_S
            self._expire()
            busy = self._busy()
            if not busy and not self._open():
                break
            for instance, name in busy:
                if name in instance.agent.running and name in instance.working:
                    self._answer(instance, name)
        assert not self._open()
        assert all(worker.dispatcher.live == 0 for worker in self.workers)


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=100, stateful_step_count=40)
