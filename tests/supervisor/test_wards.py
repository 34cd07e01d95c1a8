"""The table of launches: by number and by pid, pending and answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from spearpool.instances.zygote_messages import WardenEnd, warden_end
from spearpool.supervisor.wards import Stage, Ward, Wards, Zygote


@dataclass
class Worker:
    pid: int | None = 5
    exitcode: int | None = None

    def start(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def channel() -> Iterator[WardenEnd]:
    ours, theirs = WardenEnd.pair()
    with theirs, closing(warden_end(ours)) as channel:
        yield channel


def test_a_ward_is_found_by_launch_then_by_pid_too() -> None:
    wards, ward = Wards(), Ward(-3)
    wards.add(ward)
    assert wards.launched_as(-3) is ward
    assert wards.with_pid(77) is None
    wards.name(ward, 77, 5_000)
    assert wards.with_pid(77) is ward
    assert (ward.pid, ward.forked_ns) == (77, 5_000)


def test_pending_ends_with_the_answer() -> None:
    wards, wins, loses = Wards(), Ward(1), Ward(2)
    for ward in (wins, loses):
        wards.add(ward)
        wards.name(ward, 100 + ward.launch, 1)
    assert wards.pending == 2
    wards.answer(wins, Stage.RUNNING)
    wards.answer(loses, Stage.FAILED)
    assert wards.pending == 0
    assert wards.launched_as(1) is wins
    assert wards.launched_as(2) is None  # nobody may ask for it any more
    assert wards.with_pid(102) is loses  # but its process is no stranger


def test_removed_is_removed_everywhere() -> None:
    wards, ran, failed, unborn = Wards(), Ward(1), Ward(2), Ward(3)
    for ward in (ran, failed, unborn):
        wards.add(ward)
    wards.name(ran, 101, 1)
    wards.name(failed, 102, 1)
    wards.answer(ran, Stage.RUNNING)
    for ward in (failed, unborn):
        wards.answer(ward, Stage.FAILED)
    for ward in (ran, failed, unborn):
        wards.remove(ward)
    assert [wards.launched_as(launch) for launch in (1, 2, 3)] == [None] * 3
    assert [wards.with_pid(pid) for pid in (101, 102)] == [None] * 2


def test_kinds_can_be_walked_while_the_table_changes(channel: WardenEnd) -> None:
    wards = Wards()
    worker, zygote, deaf = Ward(1, worker=Worker()), Ward(2, zygote=Zygote(channel)), Ward(3, zygote=Zygote(channel))
    assert deaf.zygote is not None
    deaf.zygote.hung_up = True
    for ward in (worker, zygote, deaf, Ward(4)):
        wards.add(ward)
        wards.name(ward, 100 + ward.launch, 1)
    seen = []
    for ward in wards.workers():
        wards.remove(ward)
        seen.append(ward)
    for ward, _ in wards.zygotes():
        wards.remove(ward)
        seen.append(ward)
    assert seen == [worker, zygote]
    assert list(wards.workers()) == []
