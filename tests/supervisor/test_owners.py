"""Who owns which row: claims, newer wins, releases, external agents. Real table and channels, workers played here."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.layout import Layout
from spearpool.metrics.segment import Segment
from spearpool.packing import replace
from spearpool.processes import ProcessIdentity
from spearpool.protocol.identifiers import ConnectionId, InstanceId
from spearpool.supervisor.crew import Crew, Member
from spearpool.supervisor.owners import Owners
from spearpool.worker.control import (
    Claim,
    Disown,
    ExternalAgent,
    ExternalRow,
    Released,
    RowCleared,
    ToWorker,
    WorkerEnd,
    supervisor_end,
    worker_end,
)


class Bench:
    """A table, a crew of two workers whose ends are read here, and the owners under test."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        me = ProcessIdentity.of(os.getpid())
        layout = Layout.plan(2, ["embed"], 64, rows=4)
        self.segment = Segment.create(directory, "test", layout, 1, me.pid, me.start_ticks)
        stack.callback(self.segment.close)
        stack.callback(self.segment.unlink)
        self.table = InstancesTable(self.segment)
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        crew = Crew(loop, None, "test", lambda _member, _record: None)  # type: ignore[arg-type] # forks nothing here
        stack.callback(crew.close)
        self.members: list[Member] = []
        self.ends: list[WorkerEnd] = []
        for slot in range(2):
            ours, theirs = WorkerEnd.pair()
            member = Member(slot, 2 * slot, slot + 1, supervisor_end(ours))
            crew._members[slot + 1] = member
            self.members.append(member)
            self.ends.append(worker_end(theirs))
            stack.callback(self.ends[-1].close)
        self.owners = Owners(self.table, crew)

    def heard(self, slot: int) -> list[ToWorker]:
        records = []
        while (received := self.ends[slot].receive()) is not None:
            records.append(received[0])
        return records


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.ExitStack() as stack:
        yield Bench(tmp_path, stack)


def _claim(instance: InstanceId, slot: int, counter: int) -> Claim:
    return Claim(instance.row, instance.generation, ConnectionId(slot, slot + 1, counter).pack(), 1, 2)


def test_newer_claim_wins(bench: Bench) -> None:
    row = bench.table.open_row(0)
    older, newer = _claim(row, 0, 1), _claim(row, 1, 1)
    assert bench.owners.claim(older, bench.members[0])
    assert bench.owners.claim(newer, bench.members[1])
    assert bench.heard(0) == [Disown(row.row, row.generation, older.connection)]
    assert bench.heard(1) == []
    assert not bench.owners.release(Released(row.row, row.generation, older.connection, "replaced"))
    assert bench.owners.member_of(row) is bench.members[1]
    snapshot = bench.table.snapshot(row.row)
    assert snapshot is not None
    assert snapshot.owner == newer.connection


def test_claim_of_a_dead_row_is_void(bench: Bench) -> None:
    row = bench.table.open_row(0)
    bench.table.close_row(row.row)
    assert not bench.owners.claim(_claim(row, 0, 1), bench.members[0])
    assert bench.owners.member_of(row) is None


def test_death_of_a_worker_releases_its_rows(bench: Bench) -> None:
    rows = [bench.table.open_row(0) for _ in range(2)]
    for slot, row in enumerate(rows):
        bench.owners.claim(_claim(row, slot, 1), bench.members[slot])
    assert bench.owners.died(bench.members[0]) == [rows[0]]
    assert bench.owners.member_of(rows[0]) is None
    assert bench.owners.member_of(rows[1]) is not None


def test_an_agent_that_was_handed_over_is_not_lost_with_who_accepted_it(bench: Bench) -> None:
    row = bench.table.open_row(0)
    claim = _claim(row, 0, 1)
    for member in bench.members:
        assert bench.owners.claim(claim, member)
    assert [bench.heard(slot) for slot in range(2)] == [[], []]  # it is one connection: nobody closes it
    assert bench.owners.died(bench.members[0]) == []
    assert bench.owners.member_of(row) is bench.members[1]
    assert bench.owners.died(bench.members[1]) == [row]


def test_a_connection_that_was_on_its_way_while_its_agent_dialled_again_is_closed(bench: Bench) -> None:
    row = bench.table.open_row(0)
    older, newer = _claim(row, 0, 1), replace(_claim(row, 0, 2), authenticated_ns=3)
    assert bench.owners.claim(newer, bench.members[0])
    assert not bench.owners.claim(older, bench.members[1])
    assert bench.heard(0) == []
    assert bench.heard(1) == [Disown(row.row, row.generation, older.connection)]
    assert bench.owners.member_of(row) is bench.members[0]


def test_end_of_an_instance_is_told_to_all(bench: Bench) -> None:
    row = bench.table.open_row(0)
    bench.owners.claim(_claim(row, 0, 1), bench.members[0])
    bench.owners.forget(row)
    for slot in range(2):
        assert bench.heard(slot)[-1] == RowCleared(row.row, row.generation)


def test_external_agent_gets_a_row_and_gives_it_back(bench: Bench) -> None:
    bench.owners.admit(bench.members[0], ExternalAgent(5, "gpu-1", "embed"), 0)
    (answer,) = bench.heard(0)
    assert isinstance(answer, ExternalRow)
    assert answer.request == 5
    row = InstanceId(answer.row, answer.generation)
    assert bench.table.is_alive(row.row, row.generation)
    claim = _claim(row, 0, 9)
    bench.owners.claim(claim, bench.members[0])
    bench.owners.release(Released(row.row, row.generation, claim.connection, "peer"))
    assert not bench.table.is_alive(row.row, row.generation)


def test_external_agent_that_comes_twice_keeps_one_row(bench: Bench) -> None:
    for slot in range(2):
        bench.owners.admit(bench.members[slot], ExternalAgent(1, "gpu-1", "embed"), 0)
    (first, cleared) = bench.heard(0)
    assert isinstance(first, ExternalRow)
    assert cleared == RowCleared(first.row, first.generation)
    assert len(bench.table.snapshots()) == 1


def test_full_table_refuses_external_agents(bench: Bench) -> None:
    for _ in range(4):
        bench.table.open_row(0)
    bench.owners.admit(bench.members[0], ExternalAgent(7, "gpu-1", "embed"), 0)
    assert bench.heard(0) == [ExternalRow(7, 0, 0)]
