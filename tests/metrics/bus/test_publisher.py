from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from spearpool.metrics.bus.frames import MAX_BODY_BYTES, Encoding, Header, Topic, topic
from spearpool.metrics.bus.publisher import COUNTERS_INTERVAL_S, HEARTBEAT_INTERVAL_S, STATE_INTERVAL_S, Publisher
from spearpool.metrics.bus.snapshot import Snapshot
from spearpool.metrics.layout import Layout
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.vocabulary import RECORD_BYTES
from spearpool.packing import Packer
from spearpool.protocol.events import Authenticated
from tests.metrics.bus.living import monitoring, write_messages
from tests.metrics.segments import EPOCH, new_segment

EVENTS = b"sp1.e.0.0."
NAMES = b"sp1.n.0.0."
NOW_NS = 1_700_000_000_000_000_000
UNPACK: Packer[Any] = Packer(Any)


class Stage:
    """A publisher, a writer in seat 0, and all the frames that were sent."""

    def __init__(self, segment: Any) -> None:
        self.rollup = Rollup(segment)
        self.workers: list[dict[str, Any]] = [{"slot": 0, "connections": 1}, {"slot": 1, "connections": 1}]
        self.instances: list[dict[str, Any]] = []
        self.sent: list[tuple[bytes, Header, bytes]] = []
        self.publisher = Publisher(self.rollup, lambda: list(self.workers), lambda: list(self.instances), self.send)
        self.writer: MonitoringService = monitoring(segment, 0)
        self.now = 0.0

    def send(self, frames: Sequence[bytes]) -> None:
        name, head, body = frames
        self.sent.append((name, Header.unpack(head), body))

    def subscribe(self, *prefixes: bytes) -> None:
        for prefix in prefixes:
            self.publisher.subscription(b"\x01" + prefix, NOW_NS)

    def unsubscribe(self, prefix: bytes) -> None:
        self.publisher.subscription(b"\x00" + prefix, NOW_NS)

    def tick(self, after_s: float = 0.0) -> list[tuple[bytes, Header, bytes]]:
        """What a tick so much later sends."""
        self.now += after_s
        self.sent.clear()
        self.publisher.tick(self.now, NOW_NS)
        return list(self.sent)

    def snapshot(self) -> Snapshot:
        """What a subscription to a snapshot is answered."""
        self.sent.clear()
        self.subscribe(b"sp1.s.me.")
        self.unsubscribe(b"sp1.s.me.")
        name, _, body = self.sent[-1]
        assert name == b"sp1.s.me."
        return Snapshot.unpack(body)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with new_segment(tmp_path, Layout.plan(2, ["thumb", "sum"], 4096, rows=8)) as segment:
        yield Stage(segment)


def of(kind: Topic, frames: Sequence[tuple[bytes, Header, bytes]]) -> list[tuple[bytes, Header, bytes]]:
    return [frame for frame in frames if frame[0].startswith(topic(kind))]


def test_without_subscribers_nothing_is_wanted(stage: Stage) -> None:
    wanted = [stage.publisher.wanted]
    stage.subscribe(b"sp1.b.")
    wanted.append(stage.publisher.wanted)
    stage.unsubscribe(b"sp1.b.")
    wanted.append(stage.publisher.wanted)
    assert wanted == [False, True, False]


def test_without_subscribers_to_events_no_ring_is_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(seat: int) -> None:
        raise AssertionError(f"the ring of seat {seat} was read")

    monkeypatch.setattr(stage.rollup, "new_records", forbidden)
    stage.subscribe(b"sp1.b.", b"sp1.c.", b"sp1.w.", b"sp1.i.", b"sp1.n.")
    write_messages(stage.writer, 10)
    assert not of(Topic.EVENTS, stage.tick())


def test_only_what_was_asked_for_is_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    new_records = stage.rollup.new_records

    def note(seat: int) -> Any:
        read.append(seat)
        return new_records(seat)

    monkeypatch.setattr(stage.rollup, "new_records", note)
    stage.subscribe(topic(Topic.EVENTS, 1))
    write_messages(stage.writer, 10)
    assert not of(Topic.EVENTS, stage.tick())
    assert read == [2, 3]


def test_an_event_frame_begins_at_the_ring_position_of_its_first_record(stage: Stage) -> None:
    write_messages(stage.writer, 5)
    stage.subscribe(b"sp1.e.")
    write_messages(stage.writer, 3)
    ((name, header, body),) = of(Topic.EVENTS, stage.tick())
    assert (name, header.encoding, header.sequence, header.count) == (EVENTS, Encoding.RECORDS, 5, 3)
    assert (header.epoch, header.schema_hash, header.time_ns) == (EPOCH, stage.rollup.layout.schema_hash, NOW_NS)
    assert len(body) == 3 * RECORD_BYTES
    assert not of(Topic.EVENTS, stage.tick())


def test_frames_are_no_longer_than_64_kib(stage: Stage) -> None:
    stage.subscribe(b"sp1.e.")
    write_messages(stage.writer, 2500)
    frames = of(Topic.EVENTS, stage.tick())
    assert [(header.sequence, header.count) for _, header, _ in frames] == [(0, 1024), (1024, 1024), (2048, 452)]
    assert max(len(body) for _, _, body in frames) == MAX_BODY_BYTES


def test_an_overrun_is_told_with_the_next_frame(stage: Stage) -> None:
    stage.subscribe(b"sp1.e.")
    write_messages(stage.writer, 5000)
    frames = of(Topic.EVENTS, stage.tick())
    assert frames[0][1].sequence == frames[0][1].lost == 5000 - 4096
    assert sum(header.count for _, header, _ in frames) == 4096


def test_what_nobody_wanted_is_not_lost(stage: Stage) -> None:
    stage.subscribe(b"sp1.e.")
    stage.tick()
    stage.unsubscribe(b"sp1.e.")
    write_messages(stage.writer, 9000)
    stage.tick()
    stage.subscribe(b"sp1.e.")
    write_messages(stage.writer, 1)
    ((_, header, _),) = of(Topic.EVENTS, stage.tick())
    assert (header.sequence, header.lost) == (9000, 0)


def test_names_come_before_the_events_that_need_them(stage: Stage) -> None:
    stage.subscribe(b"sp1.e.", b"sp1.n.")
    stage.writer.record_connection_event(1, Authenticated("alice", "client"))
    frames = [frame for frame in stage.tick() if frame[0] in {EVENTS, NAMES}]
    assert [name for name, _, _ in frames] == [NAMES, EVENTS]
    assert frames[0][1].sequence == 2  # "" and "other" are there from the start
    assert UNPACK.unpack(frames[0][2]) == ["alice"]


def test_counters_are_sent_when_they_changed_and_not_too_often(stage: Stage) -> None:
    stage.subscribe(b"sp1.c.")
    ((_, header, body),) = of(Topic.COUNTERS, stage.tick())
    assert (header.encoding, header.count, header.sequence) == (Encoding.INT64, 1, 0)
    assert body == stage.rollup.slot_words(0).tobytes()
    assert not of(Topic.COUNTERS, stage.tick(COUNTERS_INTERVAL_S))
    write_messages(stage.writer, 1)
    assert not of(Topic.COUNTERS, stage.tick(COUNTERS_INTERVAL_S / 2))
    ((_, header, _),) = of(Topic.COUNTERS, stage.tick(COUNTERS_INTERVAL_S / 2))
    assert header.sequence == 1


def test_workers_are_sent_when_they_changed_each_under_its_own_topic(stage: Stage) -> None:
    stage.subscribe(b"sp1.w.")
    assert [name for name, _, _ in of(Topic.WORKERS, stage.tick())] == [b"sp1.w.0.", b"sp1.w.1."]
    stage.workers[1] = {"slot": 1, "connections": 2}
    assert not of(Topic.WORKERS, stage.tick(STATE_INTERVAL_S / 2))
    ((name, header, body),) = of(Topic.WORKERS, stage.tick(STATE_INTERVAL_S / 2))
    assert (name, header.sequence, UNPACK.unpack(body)) == (b"sp1.w.1.", 1, {"slot": 1, "connections": 2})


def test_instances_are_sent_when_they_changed_and_when_they_are_gone(stage: Stage) -> None:
    stage.instances = [{"instance_id": f"sum-{n}-1", "state": "ready"} for n in range(100)]
    stage.subscribe(b"sp1.i.")
    assert not of(Topic.INSTANCES, stage.tick())  # the snapshot has them
    stage.instances = [row | {"state": "busy"} for row in stage.instances[:99]]
    frames = of(Topic.INSTANCES, stage.tick(STATE_INTERVAL_S))
    assert [header.sequence for _, header, _ in frames] == [0, 1]
    rows = [row for _, _, body in frames for row in UNPACK.unpack(body)]
    assert [row["state"] for row in rows] == ["busy"] * 99 + ["stopped"]
    assert rows[-1]["instance_id"] == "sum-99-1"


def test_a_heartbeat_says_where_every_wanted_topic_stands(stage: Stage) -> None:
    stage.subscribe(b"sp1.b.", topic(Topic.EVENTS, 0), topic(Topic.NAMES, 0), topic(Topic.COUNTERS, 0))
    write_messages(stage.writer, 5000)
    ((_, _, body),) = of(Topic.HEARTBEAT, stage.tick())
    assert UNPACK.unpack(body) == {
        "sp1.e.0.0.": [5000, 904],
        "sp1.e.0.1.": [0, 0],
        "sp1.n.0.0.": [2, 0],
        "sp1.n.0.1.": [2, 0],
        "sp1.c.0.": [1, 0],
    }
    assert not of(Topic.HEARTBEAT, stage.tick(HEARTBEAT_INTERVAL_S / 2))
    assert of(Topic.HEARTBEAT, stage.tick(HEARTBEAT_INTERVAL_S / 2))


def test_a_snapshot_follows_everything_that_was_before_it(stage: Stage) -> None:
    stage.subscribe(b"sp1.e.", b"sp1.c.", b"sp1.w.", b"sp1.i.")
    write_messages(stage.writer, 7)
    stage.instances = [{"instance_id": "sum-0-1"}]
    snapshot = stage.snapshot()
    before = [EVENTS, b"sp1.c.0.", b"sp1.w.0.", b"sp1.w.1.", b"sp1.i.pool."]
    assert [name for name, _, _ in stage.sent] == [*before, b"sp1.s.me."]
    assert {name: snapshot.topics[name.decode()] for name in before} == {
        name: (7 if name == EVENTS else 1, 0) for name in before
    }
    assert not stage.tick()[:-1]  # but for the heartbeat


def test_a_snapshot_knows_everything(stage: Stage) -> None:
    stage.instances = [{"instance_id": "sum-0-1"}]
    stage.writer.record_connection_event(1, Authenticated("alice", "client"))
    snapshot = stage.snapshot()
    assert snapshot.names["sp1.n.0.0."] == ["", "other", "alice"]
    ((name, counters),) = snapshot.counters_by_topic()
    assert (name, counters.worker, counters.values["authenticated"]) == (b"sp1.c.0.", 0, 1)
    assert (snapshot.workers, snapshot.instances) == (stage.workers, stage.instances)
    assert (snapshot.totals, snapshot.latencies) == ({}, {})


def test_the_answer_to_ask_has_totals_and_latencies(stage: Stage) -> None:
    write_messages(stage.writer, 4)
    snapshot = stage.publisher.snapshot(NOW_NS)
    assert snapshot.totals["messages_in"] == 4
    assert snapshot.latencies["message_size_bytes"]["count"] == 4


def test_what_is_no_subscription_is_ignored(stage: Stage) -> None:
    stage.publisher.subscription(b"\x02hello", NOW_NS)
    stage.publisher.subscription(b"", NOW_NS)
    assert not stage.publisher.wanted
