"""A subscriber to `live`: what a pool does, as items, with an exact account of what was lost on the way.

It joins by the snapshot that answers its last subscription (see `publisher`), reads on from there, and compares every
frame and heartbeat with its ledger. When frames were lost that say how things are (not events, those are gone), it asks
for a new snapshot at the next heartbeat. At its end it asks for a last one, so that the account closes at the present.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self

import zmq

from spearpool.errors import NoSuchPool
from spearpool.metrics.vocabulary import OTHER
from spearpool.packing import Packer

from .frames import SUPERVISOR, Header, Topic, slot_of, topic, worker_prefixes
from .items import Account, Event, Gap, Heartbeat, InstanceEvent, InstanceState, Item, WorkerState, decode_events
from .ledger import Ledger, Missing
from .snapshot import Fields, Snapshot
from .sockets import Line, PoolGone

__all__ = ["KINDS", "Subscriber"]

_TOPICS: dict[str, tuple[Topic, ...]] = {
    "event": (Topic.EVENTS, Topic.NAMES),
    "counters": (Topic.COUNTERS,),
    "worker": (Topic.WORKERS,),
    "instance": (Topic.INSTANCES,),
    "heartbeat": (),  # always subscribed to: without it a lost tail goes unnoticed
    "gap": (),  # always noticed
}
_RECORDED_BY_SUPERVISOR = ("event", "instance")  # stages of workers and of instances, whichever worker they are about

KINDS = tuple(_TOPICS)
"""Kinds of items that can be asked for."""

_JOIN_AGAIN_S = 0.5
_LAST_JOIN_S = 2.0
_PATIENCE_S = 5.0
"""How long a snapshot may be on its way behind what was sent before it, until another one is asked for."""

_LOOK_UP_S = 0.1
"""How long `stop` in a signal handler may go unnoticed."""

_HIGH_WATER_MARK = 1000
_PACKER: Packer[Any] = Packer(Any)
_EVENTS, _NAMES = topic(Topic.EVENTS), topic(Topic.NAMES)


class Subscriber:
    """Iterate `items`; read `account` at any time. `workers` are slots; none means all and the supervisor's own.

    Of what the supervisor records, a stage of a worker belongs to that worker, a stage of an instance to the one that
    its agent dialled.

    `joined` is true once the subscription is in force, `gone` when the pool ended it. `high_water_mark` is how many
    frames may wait here while nobody iterates.
    """

    def __init__(
        self,
        endpoint: str,
        kinds: Collection[str] = KINDS,
        workers: Collection[int] = (),
        *,
        high_water_mark: int = _HIGH_WATER_MARK,
    ) -> None:
        """Raises `NoSuchPool` when nothing is bound at `endpoint`."""
        self.joined = False
        self.gone = False
        self._kinds = frozenset(kinds)
        self._workers = frozenset(workers)
        self._prefixes = tuple(self._choose_prefixes())
        self._ledger = Ledger()
        self._received = self._lost_ring = self._lost_bus = 0
        self._fields = Fields()
        self._names: dict[bytes, list[str]] = {}
        self._waiting: deque[Item] = deque()
        self._joining = b""
        self._ask_again_at = 0.0
        self._outdated = self._stopping = False
        self._line = Line(zmq.SUB, endpoint, high_water_mark)
        self._line.subscribe(topic(Topic.HEARTBEAT))
        for prefix in self._prefixes:
            self._line.subscribe(prefix)

    def _choose_prefixes(self) -> Iterator[bytes]:
        for kind in sorted(self._kinds):
            for each in _TOPICS[kind]:
                yield from worker_prefixes(each, () if each is Topic.INSTANCES else self._workers)
        if not self._kinds.isdisjoint(_RECORDED_BY_SUPERVISOR):
            yield topic(Topic.EVENTS, SUPERVISOR)
            yield topic(Topic.NAMES, SUPERVISOR)

    @property
    def account(self) -> Account:
        """Of records of rings: those given by `items` so far, and those that never will be."""
        return Account(self._received, self._lost_ring, self._lost_bus)

    def stop(self) -> None:
        """Let `items` come to its end. For signal handlers: it only takes a note."""
        self._stopping = True

    def close(self) -> None:
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def items(self, until: float = math.inf, join_timeout_s: float = 5.0) -> Iterator[Item]:
        """What happens, until `stop`, `until` (monotonic seconds) or the end of the pool (then `gone` is true).

        The present state of counters, workers and instances comes first. What had happened when the end was asked for
        is still given. Called again, also after a `break`, it goes on from there. Raises `NoSuchPool` or `TimeoutError`
        when the pool cannot be joined, and `PoolError` when it speaks another version.
        """
        yield from self._hand_out()
        try:
            for frames in self._frames(until, join_timeout_s):
                self._waiting.extend(self._read(frames))
                yield from self._hand_out()
        except PoolGone as error:
            if not self.joined:
                raise NoSuchPool(str(error)) from None
            self.gone = True

    def _hand_out(self) -> Iterator[Item]:
        while self._waiting:
            item = self._waiting.popleft()
            self._received += isinstance(item, Event | InstanceEvent)
            yield item

    # Life of the subscription

    def _frames(self, until: float, join_timeout_s: float) -> Iterator[list[bytes]]:
        if not self.joined:
            yield from self._join(join_timeout_s)
        while not self._stopping and (now := time.monotonic()) < until:
            frames = self._line.receive(min(until, now + _LOOK_UP_S))
            if frames is not None:
                yield frames
        if self.joined:
            yield from self._catch_up()

    def _join(self, timeout_s: float) -> Iterator[list[bytes]]:
        """Wait for the first snapshot; what comes before it is covered by it."""
        deadline = time.monotonic() + timeout_s
        again = 0.0
        while not self._stopping:
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError(f"the pool at {self._line.endpoint} did not answer within {timeout_s:g} s")
            if now >= again:
                again = now + _JOIN_AGAIN_S
                self._ask_for_snapshot()
            frames = self._line.receive(min(deadline, now + _LOOK_UP_S))
            if frames is not None and frames[0].startswith(topic(Topic.SNAPSHOT)):
                yield frames
                return

    def _catch_up(self) -> Iterator[list[bytes]]:
        """Read until the pool's present, so far as that takes no more than two seconds."""
        deadline = time.monotonic() + _LAST_JOIN_S
        while (now := time.monotonic()) < deadline:
            last, again = self._ask_for_snapshot(), min(deadline, now + _JOIN_AGAIN_S)
            while (frames := self._line.receive(again)) is not None and time.monotonic() < deadline:
                yield frames
                if frames[0] == last:
                    return

    def _ask_for_snapshot(self) -> bytes:
        """Subscribe to a topic of our own, which is answered once."""
        if self._joining:
            self._line.unsubscribe(self._joining)
        self._joining = topic(Topic.SNAPSHOT, secrets.token_hex(8))
        self._line.subscribe(self._joining)
        self._ask_again_at = time.monotonic() + _PATIENCE_S
        return self._joining

    # Reading

    def _read(self, frames: list[bytes]) -> Iterator[Item]:
        name, head, body = frames
        header = Header.unpack(head)
        kind = Topic(name.split(b".", 2)[1].decode())
        if kind is Topic.SNAPSHOT:
            yield from self._read_snapshot(Snapshot.unpack(body), header)
            return
        if kind is Topic.HEARTBEAT:
            yield from self._read_heartbeat(_PACKER.unpack(body), header)
            return
        yield from self._tell(self._ledger.frame(name, header.sequence, header.count, header.lost), header)
        match kind:
            case Topic.EVENTS:
                names = self._names.get(_NAMES + name.removeprefix(_EVENTS), [])
                yield from filter(self._asked_for, decode_events(body, slot_of(name), names, self._fields.tasks))
            case Topic.NAMES:
                self._learn_names(name, header.sequence, _PACKER.unpack(body))
            case Topic.COUNTERS:
                words = memoryview(body).cast("q").tolist()
                yield self._fields.decode(words, slot_of(name), header.time_ns)
            case Topic.WORKERS:
                row = _PACKER.unpack(body)
                yield WorkerState(header.time_ns / 1e9, row["slot"], row)
            case Topic.INSTANCES:
                rows = (row for row in _PACKER.unpack(body) if self._about_us(row.get("worker")))
                yield from (InstanceState(header.time_ns / 1e9, row) for row in rows)

    def _read_heartbeat(self, positions: Mapping[str, tuple[int, int]], header: Header) -> Iterator[Item]:
        yield from self._compare(positions, header)
        if self._outdated and time.monotonic() >= self._ask_again_at:
            self._ask_for_snapshot()
        if "heartbeat" in self._kinds:
            yield Heartbeat(header.time_ns / 1e9)

    def _read_snapshot(self, snapshot: Snapshot, header: Header) -> Iterator[Item]:
        if self.joined:
            yield from self._compare(snapshot.topics, header)
        else:
            self._ledger.begin(dict(self._followed(snapshot.topics)))
        self._ask_again_at = 0.0
        self._fields = snapshot.fields
        self._names = {name.encode(): names for name, names in snapshot.names.items()}
        if self._outdated or not self.joined:
            self.joined, self._outdated = True, False
            yield from self._present(snapshot)

    def _present(self, snapshot: Snapshot) -> Iterator[Item]:
        """How things are now, of the kinds that were asked for."""
        yield from (counters for name, counters in snapshot.counters_by_topic() if name.startswith(self._prefixes))
        if "worker" in self._kinds:
            yield from (state for state in snapshot.worker_states() if self._about_us(state.worker))
        if "instance" in self._kinds:
            yield from (state for state in snapshot.instance_states() if self._about_us(state.row.get("worker")))

    def _compare(self, positions: Mapping[str, tuple[int, int]], header: Header) -> Iterator[Item]:
        for name, (sequence, lost) in self._followed(positions):
            yield from self._tell(self._ledger.reached(name, sequence, lost), header)

    def _followed(self, by_topic: Mapping[str, Any]) -> Iterator[tuple[bytes, Any]]:
        """The entries of topics that we subscribed to."""
        for text, value in by_topic.items():
            if (name := text.encode()).startswith(self._prefixes):
                yield name, value

    def _tell(self, missing: Missing | None, header: Header) -> Iterator[Item]:
        """Enter into the account what will not come any more."""
        if missing is None:
            return
        if missing.topic.startswith(_EVENTS):
            self._lost_ring += missing.ring
            self._lost_bus += missing.bus
        else:
            self._outdated = True
        if "gap" in self._kinds:
            place, name = slot_of(missing.topic), missing.topic.decode()
            yield Gap(missing.first, header.time_ns / 1e9, place, name, missing.ring, missing.bus)

    def _learn_names(self, name: bytes, first: int, added: list[str]) -> None:
        """Names come in order; where a frame was lost, `other` stands until the next snapshot."""
        known = self._names.setdefault(name, [])
        known += [OTHER] * (first - len(known))
        known[first : first + len(added)] = added

    def _asked_for(self, item: Event | InstanceEvent) -> bool:
        kind = "instance" if isinstance(item, InstanceEvent) else "event"
        return kind in self._kinds and self._about_us(item.worker)

    def _about_us(self, worker: int | None) -> bool:
        return not self._workers or worker in self._workers
