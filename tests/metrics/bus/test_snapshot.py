from __future__ import annotations

from pathlib import Path

import pytest

from spearpool.errors import PoolError
from spearpool.metrics.bus.snapshot import Fields, Snapshot, ask_snapshot
from spearpool.metrics.layout import LAYOUT_VERSION
from spearpool.packing import Packer, replace
from tests.metrics.bus.living import living_bus, monitoring, write_messages

PACKER: Packer[Snapshot] = Packer(Snapshot)
FIELDS = Fields(("opened", "closed"), ("now",), ("received", "failed"), {0: "sum", 2: "other"})
SNAPSHOT = Snapshot(
    layout_version=LAYOUT_VERSION,
    epoch=7,
    time_ns=1_500_000_000,
    topics={"sp1.c.0.": (3, 0)},
    fields=FIELDS,
    names={},
    counters={"sp1.c.0.": [5, 4, 1, 9, 8, 0, 0, 0, 7], "sp1.c.supervisor.": [0] * 9},
    workers=[{"slot": 0, "state": "ready"}],
    instances=[{"instance_id": "sum-0-1"}],
)


def test_words_get_their_names_and_zeros_go() -> None:
    (_, first), (_, second) = SNAPSHOT.counters_by_topic()
    assert (first.time, first.worker, first.values) == (1.5, 0, {"opened": 5, "closed": 4, "now": 1})
    assert first.tasks == {"sum": {"received": 9, "failed": 8}, "other": {"failed": 7}}
    assert (second.worker, second.values, second.tasks) == (None, {}, {})


def test_states_carry_the_moment() -> None:
    (worker,) = SNAPSHOT.worker_states()
    (instance,) = SNAPSHOT.instance_states()
    assert (worker.time, worker.worker, worker.row) == (1.5, 0, {"slot": 0, "state": "ready"})
    assert (instance.time, instance.row) == (1.5, {"instance_id": "sum-0-1"})


def test_it_travels() -> None:
    assert Snapshot.unpack(PACKER.pack(SNAPSHOT)) == SNAPSHOT


@pytest.mark.parametrize(
    "body",
    [b"", b"\x80", PACKER.pack(replace(SNAPSHOT, layout_version=LAYOUT_VERSION + 1))],
    ids=["nothing", "no fields", "another layout"],
)
def test_another_version_is_refused(body: bytes) -> None:
    with pytest.raises(PoolError, match="another version"):
        Snapshot.unpack(body)


def test_a_living_pool_is_asked(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        write_messages(monitoring(living.segment, 2), 3, slot=1)
        snapshot = ask_snapshot(living.ask, 5.0)
    assert snapshot.totals["messages_in"] == 3
    ((name, counters),) = snapshot.counters_by_topic()
    assert (name, counters.values["messages_in_heartbeat"]) == (b"sp1.c.1.", 3)
    assert snapshot.workers == living.workers


def test_a_pool_that_answers_something_else_is_refused(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        living.bus._desk._handlers = {"snapshot": lambda _: {"layout_version": 99}}
        with pytest.raises(PoolError, match="another version"):
            ask_snapshot(living.ask, 5.0)
