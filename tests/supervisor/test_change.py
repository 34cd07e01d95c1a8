from __future__ import annotations

import pytest

from spearpool.supervisor import roster_moves as moves
from spearpool.supervisor.change import Change
from spearpool.supervisor.slot import SlotView


def _views(count: int) -> list[SlotView]:
    return [SlotView(slot, "ready", 2 * slot, slot + 1, 100 + slot, 0, "") for slot in range(count)]


def _stages(change: Change) -> list[str]:
    return [row["stage"] for row in change.document()["slots"]]


def test_nothing_to_do_is_done() -> None:
    assert Change.scale(1, _views(2), 2).over


def test_a_reload_is_followed_slot_by_slot() -> None:
    change = Change.reload(7, _views(2))
    assert (_stages(change), change.over, change.begun) == (["waiting", "waiting"], False, False)
    change.follow(moves.Renewing(0, 1, "reload"))
    assert (_stages(change), change.begun) == (["starting", "waiting"], False)
    change.ready(0, 3, 200)
    change.follow(moves.Empty(0, 1, 30.0))
    assert (_stages(change), change.begun) == (["emptying", "waiting"], True)
    change.emptied(0, 5, 1, 2)
    change.follow(moves.Renewed(0, 1))
    change.follow(moves.Renewed(1, 2))
    assert change.over
    document = change.document()
    assert (document["change"], document["kind"], document["workers"]) == (7, "reload", 2)
    assert (document["done"], document["error"]) == (True, "")
    row = {"slot": 0, "stage": "done", "pid": 100, "heir_pid": 200, "handed_over": 5, "closed": 1, "awaited": 2}
    assert document["slots"][0] == row


def test_workers_that_it_is_not_about_are_not_its_business() -> None:
    change = Change.reload(1, _views(1))
    change.follow(moves.Renewed(0, 9))
    change.follow(moves.RenewalFailed(0, 9, "no"))
    change.follow(moves.Renewed(5, 1))
    assert _stages(change) == ["waiting"]
    assert not change.over


def test_a_failed_renewal_ends_it_with_the_first_reason() -> None:
    change = Change.reload(1, _views(2))
    change.follow(moves.RenewalFailed(0, 1, "the heir exited"))
    change.follow(moves.RenewalFailed(1, 2, "later"))
    change.fail("later still")
    assert (change.over, change.error) == (True, "the heir exited")


def test_new_slots_are_done_when_they_serve() -> None:
    change = Change.scale(1, _views(1), 3)
    assert [row["slot"] for row in change.document()["slots"]] == [1, 2]
    change.ready(1, 5, 201)
    assert (_stages(change), change.over) == (["done", "starting"], False)
    change.ready(2, 6, 202)
    assert change.over


@pytest.mark.parametrize("kind", ["new slot", "reload"])
def test_an_end_before_ready_fails_a_new_slot_only(kind: str) -> None:
    change = Change.scale(1, _views(1), 2) if kind == "new slot" else Change.reload(1, _views(2))
    change.failed(1, "exited with code 78")
    expected = "worker 1 exited with code 78; it is tried again, see `spearpool status`" if kind == "new slot" else ""
    assert change.error == expected


def test_removed_slots_are_done_when_they_are_gone() -> None:
    change = Change.scale(1, _views(3), 1)
    change.follow(moves.Empty(2, 3, 30.0))
    change.follow(moves.SlotRemoved(2))
    assert (_stages(change), change.over) == (["waiting", "done"], False)
    change.follow(moves.SlotRemoved(1))
    assert change.over
