"""Turns the segment into frames: what is due, for whom, in which order. Pure: no zmq, no clock; it calls `send`.

A frame is built only when somebody subscribed to its topic. Publishing reads each wanted ring once per tick; a ring
that nobody wants is skipped, which is neither reading nor losing.

A subscriber joins exactly: its last subscription is to a snapshot topic with a scope of its own. Subscriptions of one
peer arrive in order, so when that one is seen, the others are in force; the snapshot that answers it says where every
topic stands, everything before it is covered by it, and everything after it follows in the same pipe. (The zguide's
Clone pattern asks for the snapshot on a second socket and must buffer and compare; it also cannot know when the
subscription came into force. `ask` answers `snapshot` too, for whoever wants nothing but that.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spearpool.metrics.layout import LAYOUT_VERSION
from spearpool.metrics.vocabulary import COUNTERS, GAUGES, RECORD_BYTES, TASK_COUNTERS
from spearpool.packing import Packer, replace, to_plain

from .frames import MAX_BODY_BYTES, Encoding, Header, Topic, event_topic, name_topic, scope_of, topic
from .snapshot import Fields, Snapshot

if TYPE_CHECKING:  # whoever only subscribes or asks need not load numpy
    from spearpool.metrics.rollup import Rollup

__all__ = ["COUNTERS_INTERVAL_S", "HEARTBEAT_INTERVAL_S", "STATE_INTERVAL_S", "Describe", "Publisher"]

COUNTERS_INTERVAL_S = 0.25
STATE_INTERVAL_S = 0.5
HEARTBEAT_INTERVAL_S = 1.0

Describe = Callable[[], list[dict[str, Any]]]

_PACKER: Packer[Any] = Packer(Any)
_RECORDS_AT_ONCE = MAX_BODY_BYTES // RECORD_BYTES
_INSTANCES_AT_ONCE = 64
_HEARTBEAT = topic(Topic.HEARTBEAT, "pool")
_INSTANCES = topic(Topic.INSTANCES, "pool")


@dataclass(slots=True)
class _Seat:
    """The two topics of one seat. `named` counts the names that were published."""

    index: int
    events: bytes
    names: bytes
    wants_events: bool = False
    wants_names: bool = False
    named: int = 0


class Publisher:
    """What `live` says. `workers` and `instances` describe them as `status` does; a worker has a `slot`, an instance
    an `instance_id`."""

    def __init__(
        self, rollup: Rollup, workers: Describe, instances: Describe, send: Callable[[Sequence[bytes]], None]
    ) -> None:
        self._rollup = rollup
        self._layout = layout = rollup.layout
        self._describe_workers = workers
        self._describe_instances = instances
        self._send = send
        self._prefixes: set[bytes] = set()
        self._seats = [
            _Seat(seat, event_topic(seat, layout.slots), name_topic(seat, layout.slots)) for seat in range(layout.seats)
        ]
        self._sequences: dict[bytes, int] = {}  # of topics that count frames
        self._told: dict[bytes, bytes] = {}  # what was last published of a worker, or of a slot's counters
        self._wants_instances = False
        self._instances: dict[str, dict[str, Any]] = {}  # the rows that were last published
        self._counters_due = self._state_due = self._heartbeat_due = 0.0

    @property
    def wanted(self) -> bool:
        """Whether anybody has subscribed to anything."""
        return bool(self._prefixes)

    # Subscriptions

    def subscription(self, message: bytes, time_ns: int) -> None:
        """An XPUB socket received this: 1 and a prefix to subscribe, 0 and a prefix to end it."""
        verb, prefix = message[:1], message[1:]
        if verb == b"\x01":
            self._prefixes.add(prefix)
        elif verb == b"\x00":
            self._prefixes.discard(prefix)
        else:
            return  # XPUB also hands on whatever else its peers care to send
        if not prefix.startswith(topic(Topic.SNAPSHOT)):
            self._look_who_listens()
        elif verb == b"\x01":
            self._publish_rings(time_ns)
            self._publish_counters(time_ns)
            self._publish_states(time_ns)
            body = _PACKER.pack(self._state(time_ns))
            self._send((prefix, self._header(Encoding.MSGPACK, 1, 0, time_ns).pack(), body))

    def _look_who_listens(self) -> None:
        for seat in self._seats:
            wants_events, wants_names = self._wants(seat.events), self._wants(seat.names)
            if wants_events and not seat.wants_events:
                self._rollup.skip_records(seat.index)
            if wants_names and not seat.wants_names:
                seat.named = len(self._rollup.names(seat.index))
            seat.wants_events, seat.wants_names = wants_events, wants_names
        if self._wants(_INSTANCES) and not self._wants_instances:
            self._instances = self._instances_now()
        self._wants_instances = self._wants(_INSTANCES)

    def _wants(self, name: bytes) -> bool:
        return any(name.startswith(prefix) for prefix in self._prefixes)

    # Publishing

    def tick(self, now: float, time_ns: int) -> None:
        """Publish what there is and what is due. `now` is monotonic seconds, `time_ns` the wall clock."""
        self._publish_rings(time_ns)
        if now >= self._counters_due:
            self._counters_due = now + COUNTERS_INTERVAL_S
            self._publish_counters(time_ns)
        if now >= self._state_due:
            self._state_due = now + STATE_INTERVAL_S
            self._publish_states(time_ns)
        if now >= self._heartbeat_due:
            self._heartbeat_due = now + HEARTBEAT_INTERVAL_S
            self.heartbeat(time_ns)

    def heartbeat(self, time_ns: int) -> None:
        """Where every topic stands: the only way for a subscriber to notice that the last frames never came."""
        self._publish(_HEARTBEAT, Encoding.MSGPACK, _PACKER.pack(self._positions()), time_ns)

    def _publish_rings(self, time_ns: int) -> None:
        for seat in self._seats:
            if seat.wants_events:
                first, records, lost = self._rollup.new_records(seat.index)
                self._publish_names(seat, time_ns)  # read after the records that refer to them
                for begin in range(0, len(records), _RECORDS_AT_ONCE):
                    batch = records[begin : begin + _RECORDS_AT_ONCE]
                    header = self._header(Encoding.RECORDS, len(batch), first + begin, time_ns, lost)
                    self._send((seat.events, header.pack(), batch.tobytes()))
            elif seat.wants_names:
                self._publish_names(seat, time_ns)

    def _publish_names(self, seat: _Seat, time_ns: int) -> None:
        if seat.wants_names and (added := self._rollup.names(seat.index, seat.named)):
            header = self._header(Encoding.MSGPACK, len(added), seat.named, time_ns)
            seat.named += len(added)
            self._send((seat.names, header.pack(), _PACKER.pack(added)))

    def _publish_counters(self, time_ns: int) -> None:
        if not self._wants_some(Topic.COUNTERS):
            return
        for name, slot in self._counter_topics():
            if self._wants(name):
                words = self._rollup.slot_words(slot).tobytes()
                if self._told.get(name) != words:
                    self._told[name] = words
                    self._publish(name, Encoding.INT64, words, time_ns)

    def _publish_states(self, time_ns: int) -> None:
        self._publish_workers(time_ns)
        self._publish_instances(time_ns)

    def _publish_workers(self, time_ns: int) -> None:
        if not self._wants_some(Topic.WORKERS):
            return
        for row in self._describe_workers():
            name, body = topic(Topic.WORKERS, row["slot"]), _PACKER.pack(row)
            if self._told.get(name) != body and self._wants(name):
                self._told[name] = body
                self._publish(name, Encoding.MSGPACK, body, time_ns)

    def _publish_instances(self, time_ns: int) -> None:
        if not self._wants_instances:
            return
        before, now = self._instances, self._instances_now()
        changed = [row for name, row in now.items() if before.get(name) != row]
        changed += [row | {"state": "stopped"} for name, row in before.items() if name not in now]
        self._instances = now
        for batch in _batches(changed, _INSTANCES_AT_ONCE):
            self._publish(_INSTANCES, Encoding.MSGPACK, _PACKER.pack(batch), time_ns)

    def _counter_topics(self) -> Iterator[tuple[bytes, int]]:
        for slot in self._rollup.slots_in_use():
            yield topic(Topic.COUNTERS, scope_of(slot, self._layout.slots)), slot

    def _instances_now(self) -> dict[str, dict[str, Any]]:
        return {row["instance_id"]: row for row in self._describe_instances()}

    def _wants_some(self, kind: Topic) -> bool:
        head = topic(kind)
        return any(prefix.startswith(head) or head.startswith(prefix) for prefix in self._prefixes)

    def _publish(self, name: bytes, encoding: Encoding, body: bytes, time_ns: int) -> None:
        """One frame of a topic that counts frames."""
        sequence = self._sequences.get(name, 0)
        self._sequences[name] = sequence + 1
        self._send((name, self._header(encoding, 1, sequence, time_ns).pack(), body))

    def _header(self, encoding: Encoding, count: int, sequence: int, time_ns: int, lost: int = 0) -> Header:
        epoch = self._rollup.segment.epoch
        return Header(encoding, count, self._layout.schema_hash, epoch, sequence, time_ns, lost)

    # Snapshot

    def snapshot(self, time_ns: int) -> Snapshot:
        """The pool now, with totals and latencies."""
        latencies = {name: to_plain(latency) for name, latency in self._rollup.latencies().items()}
        return replace(self._state(time_ns), totals=self._rollup.totals(), latencies=latencies)

    def _state(self, time_ns: int) -> Snapshot:
        """Everything that a late-comer has missed, and where each wanted topic goes on from."""
        rollup = self._rollup
        return Snapshot(
            layout_version=LAYOUT_VERSION,
            epoch=rollup.segment.epoch,
            time_ns=time_ns,
            topics=self._positions(),
            fields=Fields(COUNTERS, GAUGES, TASK_COUNTERS, rollup.task_names()),
            names={seat.names.decode(): rollup.names(seat.index) for seat in self._seats},
            counters={name.decode(): rollup.slot_words(slot).tolist() for name, slot in self._counter_topics()},
            workers=self._describe_workers(),
            instances=self._describe_instances(),
        )

    def _positions(self) -> dict[str, tuple[int, int]]:
        """The next sequence of every wanted topic, and how many records its ring has lost."""
        positions = {name: (sequence, 0) for name, sequence in self._sequences.items() if self._wants(name)}
        for seat in self._seats:
            if seat.wants_events:
                positions[seat.events] = self._rollup.position(seat.index)
            if seat.wants_names:
                positions[seat.names] = (seat.named, 0)
        return {name.decode(): position for name, position in positions.items() if name != _HEARTBEAT}


def _batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[begin : begin + size] for begin in range(0, len(rows), size))
