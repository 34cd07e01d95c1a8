from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spearpool.errors import NoSuchPool
from spearpool.metrics.bus import (
    Counters,
    Event,
    Gap,
    Heartbeat,
    InstanceEvent,
    InstanceState,
    Item,
    Subscriber,
    WorkerState,
)
from spearpool.metrics.monitoring import MonitoringService, StageReport
from spearpool.metrics.vocabulary import InstanceStage, WorkerStage
from spearpool.protocol.events import Authenticated
from spearpool.protocol.identifiers import ConnectionId, InstanceId
from tests.conftest import deadline
from tests.metrics.bus.living import LivingBus, living_bus, monitoring, write_messages


def joined(subscriber: Subscriber) -> list[Item]:
    """Join, and give what comes first: the present state."""
    return list(subscriber.items(until=-math.inf))


def the_rest(subscriber: Subscriber) -> list[Item]:
    """Everything until the pool's present."""
    return list(subscriber.items(until=-math.inf))


def until(subscriber: Subscriber, seen: Callable[[Item], bool], timeout_s: float = 10.0) -> list[Item]:
    """What comes, up to the first item of that kind."""
    items = []
    for item in subscriber.items(deadline(timeout_s)):
        items.append(item)
        if seen(item):
            return items
    raise AssertionError(f"not seen in {items}")


def account(subscriber: Subscriber) -> tuple[int, int, int]:
    closed = subscriber.account
    return closed.received, closed.lost_ring, closed.lost_bus


def test_every_event_comes_once_in_order(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        writers = [monitoring(living.segment, seat) for seat in (0, 3, 4)]
        with Subscriber(living.live, ["event"]) as subscriber:
            assert joined(subscriber) == []
            for _ in range(20):
                for slot, writer in enumerate(writers):
                    write_messages(writer, 25, slot)
                time.sleep(0.01)  # so that they come in many frames
            events = [item for item in the_rest(subscriber) if isinstance(item, Event)]
        assert account(subscriber) == (1500, 0, 0)
    for worker in (0, 1, None):
        assert [event.seq for event in events if event.worker == worker] == list(range(500))
    assert {event.type for event in events} == {"message_received"}


def test_the_present_comes_first(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        living.instances = [{"instance_id": "sum-0-1", "worker": 1, "state": "ready"}]
        write_messages(monitoring(living.segment, 2), 5, slot=1)
        with Subscriber(living.live) as subscriber:
            items = joined(subscriber)
        (counters,) = (item for item in items if isinstance(item, Counters))
        assert (counters.worker, counters.values["messages_in_heartbeat"]) == (1, 5)
        assert [item.row for item in items if isinstance(item, WorkerState)] == living.workers
        assert [item.row for item in items if isinstance(item, InstanceState)] == living.instances
        assert account(subscriber) == (0, 0, 0)


def test_a_late_comer_knows_the_names_that_were_given_before(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        writer = monitoring(living.segment, 0)
        writer.record_connection_event(1, Authenticated("alice", "client"))
        with Subscriber(living.live, ["event"]) as subscriber:
            joined(subscriber)
            write_messages(writer, 1)
            write_messages(writer, 1, connection=1)
            writer.record_connection_event(2, Authenticated("bob", "client"))
            writer.record_connection_event(1, Authenticated("carol", "client"))
            events = [item for item in the_rest(subscriber) if isinstance(item, Event)]
    assert [event.instance_id for event in events] == [None, "alice", "bob", "carol"]
    assert [event.seq for event in events] == [1, 2, 3, 4]


def test_only_the_asked_for_workers_and_kinds(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        living.instances = [{"instance_id": f"sum-{n}-1", "worker": n} for n in (0, 1)]
        writers = [monitoring(living.segment, seat) for seat in (0, 2, 4)]
        with Subscriber(living.live, ["event", "worker", "instance"], [1]) as subscriber:
            first = joined(subscriber)
            for writer in writers:
                write_messages(writer, 10)
            rest = the_rest(subscriber)
        assert [(type(item), item.row.get("slot", item.row.get("worker"))) for item in first] == [  # type: ignore[union-attr]
            (WorkerState, 1),
            (InstanceState, 1),
        ]
        assert {type(item) for item in rest} - {WorkerState} == {Event}
        assert {item.worker for item in rest if isinstance(item, Event)} == {1}
        assert account(subscriber) == (10, 0, 0)


ALL_LIFE = {("worker_ready", 0), ("worker_ready", 1), ("requested", None), ("connected", 0), ("connected", 1)}


@pytest.mark.parametrize(
    ("kinds", "workers", "expected"),
    [
        (["event", "instance"], [], ALL_LIFE),
        (["instance"], [], {("requested", None), ("connected", 0), ("connected", 1)}),
        (["event"], [], {("worker_ready", 0), ("worker_ready", 1)}),
        (["event", "instance"], [1], {("worker_ready", 1), ("connected", 1)}),
        (["instance"], [0], {("connected", 0)}),
        (["counters", "worker"], [], set()),
    ],
)
def test_what_the_supervisor_records_comes_by_kind_and_worker(
    kinds: list[str], workers: list[int], expected: set[tuple[str, int | None]], tmp_path: Path
) -> None:
    with living_bus(tmp_path) as living:
        writer = monitoring(living.segment, living.segment.layout.supervisor_seat)
        with Subscriber(living.live, kinds, workers) as subscriber:
            joined(subscriber)
            writer.record_instance(InstanceStage.REQUESTED, InstanceId(3, 1), 1, StageReport())
            for slot in (0, 1):
                writer.record_worker(WorkerStage.READY, slot, 1)
                told = StageReport(connection=ConnectionId(slot, 1, 1).pack())
                writer.record_instance(InstanceStage.CONNECTED, InstanceId(3, 1), 1, told)
            items = the_rest(subscriber)
        seen = [(item.stage, item.worker) for item in items if isinstance(item, InstanceEvent)]
        assert {item.instance_id for item in items if isinstance(item, InstanceEvent)} <= {"sum-3-1"}
        seen += [(item.type, item.worker) for item in items if isinstance(item, Event)]
        assert sorted(seen, key=str) == sorted(expected, key=str)
        assert account(subscriber) == (len(expected), 0, 0), "what was given"


def test_a_ring_that_overran_is_accounted_for(tmp_path: Path) -> None:
    with living_bus(tmp_path, ring_records=1024) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, ["event", "gap"]) as subscriber:
            joined(subscriber)
            living.call(lambda: write_messages(writer, 3000))  # the supervisor cannot read meanwhile
            living.publish()
            items = until(subscriber, lambda item: isinstance(item, Event))
            (gap,) = (item for item in items if isinstance(item, Gap))
            assert (gap.topic, gap.seq, gap.lost_ring, gap.lost_bus) == ("sp1.e.0.0.", 0, 3000 - 1024, 0)
            the_rest(subscriber)
        assert account(subscriber) == (1024, 3000 - 1024, 0)


def flood(living: LivingBus, writer: MonitoringService, frames: int) -> int:
    """So many frames of a thousand events, each published at once; how many events."""
    for _ in range(frames):
        write_messages(writer, 1000)
        living.publish()
    return 1000 * frames


def test_a_subscriber_that_is_too_slow_is_told_what_it_lost(tmp_path: Path) -> None:
    with living_bus(tmp_path, high_water_mark=4) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, ["event", "gap"], high_water_mark=4) as subscriber:
            joined(subscriber)
            written = flood(living, writer, 60)
            until(subscriber, lambda item: isinstance(item, Event))  # it reads again, and frames flow again
            written += flood(living, writer, 3)
            items = until(subscriber, lambda item: isinstance(item, Gap))
            items += the_rest(subscriber)
        received, lost_ring, lost_bus = account(subscriber)
        assert lost_bus > 10_000
        assert received + lost_ring + lost_bus == written
        assert lost_ring == 0


def test_a_lost_tail_is_noticed_by_the_heartbeat(tmp_path: Path) -> None:
    with living_bus(tmp_path, high_water_mark=4) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, ["event", "gap", "heartbeat"], high_water_mark=4) as subscriber:
            joined(subscriber)
            written = flood(living, writer, 60)
            items = until(subscriber, lambda item: isinstance(item, Gap))  # though nothing more is written
            received, lost_ring, lost_bus = account(subscriber)
            assert received + lost_ring + lost_bus == written
            (gap,) = (item for item in items if isinstance(item, Gap))
            assert (gap.seq, gap.lost_bus) == (received, written - received)
            assert isinstance(next(subscriber.items(deadline(10))), Heartbeat)


def test_after_a_loss_of_state_the_present_is_asked_for(tmp_path: Path) -> None:
    """What was dropped: counters, a worker's state, a name. All are there again, though they do not change any more."""
    with living_bus(tmp_path, high_water_mark=4) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, high_water_mark=4) as subscriber:
            joined(subscriber)
            flood(living, writer, 60)
            writer.record_connection_event(5, Authenticated("alice", "client"))
            living.workers = [{"slot": 0, "state": "draining"}]
            living.publish()
            items = until(subscriber, lambda item: isinstance(item, WorkerState) and item.row["state"] == "draining")
            lost = {item.topic for item in items if isinstance(item, Gap)}
            assert lost >= {"sp1.e.0.0.", "sp1.n.0.0.", "sp1.c.0.", "sp1.w.0."}
            counters = [item for item in items if isinstance(item, Counters)]
            assert counters[-1].values["authenticated"] == 1
            write_messages(writer, 1, connection=5)
            event = until(subscriber, lambda item: isinstance(item, Event))[-1]
            assert isinstance(event, Event)
            assert event.instance_id == "alice"


def test_changes_of_workers_and_instances_come(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living, Subscriber(living.live, ["worker", "instance"]) as subscriber:
        joined(subscriber)
        living.workers = [{"slot": 0, "state": "draining"}]
        living.instances = [{"instance_id": "sum-0-1", "state": "ready"}]
        until(subscriber, lambda item: isinstance(item, WorkerState) and item.row["state"] == "draining")
        until(subscriber, lambda item: isinstance(item, InstanceState) and item.row["state"] == "ready")
        living.instances = []
        until(subscriber, lambda item: isinstance(item, InstanceState) and item.row["state"] == "stopped")


def test_no_subscription_is_dropped_however_small_the_mark(tmp_path: Path) -> None:
    """zmq drops subscriptions, silently, beyond the high-water mark for sending."""
    with (
        living_bus(tmp_path) as living,
        Subscriber(living.live, workers=range(100), high_water_mark=1) as subscriber,
    ):
        joined(subscriber)
        assert living.call(lambda: living.bus._publisher._prefixes) >= set(subscriber._prefixes)
        assert len(subscriber._prefixes) == 403, "four of each worker, the instances, the supervisor's two"


def test_a_limit_leaves_the_account_at_the_last_item_taken(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, ["event"]) as subscriber:
            joined(subscriber)
            write_messages(writer, 100)
            items = subscriber.items()
            taken = [next(items) for _ in range(7)]
        assert len(taken) == 7
        assert account(subscriber) == (7, 0, 0)


def test_stop_gives_what_had_happened_until_then(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, ["event"]) as subscriber:
            joined(subscriber)

            def write_and_stop() -> None:
                write_messages(writer, 42)
                subscriber.stop()

            timer = threading.Timer(0.1, write_and_stop)
            timer.start()
            assert len(list(subscriber.items())) == 42
            timer.join()
            assert not subscriber.gone


def test_no_pool_cannot_be_joined(tmp_path: Path) -> None:
    with pytest.raises(NoSuchPool):
        Subscriber(f"ipc://{tmp_path}/live.sock")


def test_a_pool_that_does_not_answer_is_a_timeout(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        blocked = threading.Event()
        living.loop.call_soon_threadsafe(blocked.wait)
        try:
            with Subscriber(living.live) as subscriber, pytest.raises(TimeoutError, match=r"within 0\.2 s"):
                list(subscriber.items(join_timeout_s=0.2))
        finally:
            blocked.set()


SUPERVISOR = """
import sys
from pathlib import Path
from tests.metrics.bus.living import living_bus, monitoring, write_messages
with living_bus(Path(sys.argv[1])) as living:
    writer = monitoring(living.segment, 0)
    print(flush=True)
    sys.stdin.readline()
    write_messages(writer, 10)
    sys.stdin.readline()
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        yield process
        process.kill()
    for path in tmp_path.iterdir():
        path.unlink()


def test_the_death_of_the_pool_ends_the_stream(tmp_path: Path, other_process: subprocess.Popen[str]) -> None:
    with Subscriber(f"ipc://{tmp_path}/live.sock", ["event"]) as subscriber:
        joined(subscriber)
        assert other_process.stdin is not None
        other_process.stdin.write("\n")
        other_process.stdin.flush()
        items = subscriber.items(deadline(20))
        for _ in range(10):
            next(items)
        other_process.send_signal(signal.SIGKILL)
        assert list(items) == []
        assert subscriber.gone
        assert account(subscriber) == (10, 0, 0)
