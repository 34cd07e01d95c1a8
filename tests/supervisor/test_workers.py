"""The workers' side of the supervisor, carried out for real: premises, seats, channels and sockets; only processes are
played. What the roster decides is in `test_roster`."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import cast

import pytest

from spearpool.config import Settings
from spearpool.errors import ConfigError, PoolError
from spearpool.instances.launch import Exited, Launched, LaunchFailed
from spearpool.metrics.layout import EventKind
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.metrics.vocabulary import COUNTER, SeatState
from spearpool.packing import replace
from spearpool.protocol.identifiers import ConnectionId
from spearpool.supervisor import roster_moves as moves
from spearpool.supervisor import workers
from spearpool.supervisor.change import Change
from spearpool.supervisor.crew import Member, worker_launch
from spearpool.supervisor.rescue import PATIENCE_S
from spearpool.supervisor.roster import PoolState, Roster
from spearpool.supervisor.slot import WorkerPolicy
from spearpool.supervisor.warden import Warden
from spearpool.supervisor.workers import Milestone, Workers
from spearpool.worker.control import (
    STACKS_SIGNAL,
    Claim,
    Drain,
    Drained,
    Emptied,
    Empty,
    ExternalAgent,
    ExternalRow,
    Leave,
    LeaveWanted,
    Link,
    Ready,
    Released,
    Rescue,
    RescueOver,
    Setup,
    StartFailed,
    TaskState,
    ToWorker,
)
from tests.conftest import RuntimeEnv, eventually
from tests.supervisor.offices import AGENT, Forks, Office, office


class Bench:
    """Two slots in an office whose own workers have gone home."""

    def __init__(self, place: Office) -> None:
        self.office = place
        self.premises = place.premises
        self.crew = place.crew
        self.forks = Forks()
        for member in self.crew:
            self.crew.exited(member.incarnation)
        self.crew._warden = cast(Warden, self.forks)
        self.milestones: list[Milestone] = []
        self.roster = Roster(2, WorkerPolicy(), time.monotonic())
        self.workers = Workers(
            place.settings,
            cast(Warden, self.forks),
            place.premises,
            self.roster,
            place.crew,
            place.owners,
            place.staff,
            place.monitoring,
            self.milestones.append,
        )

    def member(self, incarnation: int) -> Member:
        member = self.crew.get(incarnation)
        assert member is not None
        return member

    def heard(self, incarnation: int) -> list[ToWorker]:
        """What this worker has been told; descriptors are closed."""
        heard = self.forks.hear(incarnation)
        for _, fds in heard:
            for fd in fds:
                os.close(fd)
        return [record for record, _ in heard]

    def ready(self, incarnation: int) -> None:
        """It is forked, takes its seat, and says that it serves."""
        self.workers.handle(Launched(worker_launch(incarnation), 5000 + incarnation, 1, time.monotonic_ns()))
        Seat(self.premises.segment, self.member(incarnation).seat).occupy(incarnation, 5000 + incarnation)
        self.workers.hear(self.member(incarnation), Ready(5000 + incarnation))

    def die(self, incarnation: int, code: int | None = None) -> None:
        self.workers.handle(Exited(worker_launch(incarnation), 5000 + incarnation, code, 9 if code is None else None))

    def gained(self, stack: ExitStack) -> list[int]:
        """Make 40 connections, and see how many of them each slot has in its queue."""
        listeners = self.premises.listeners
        before = [listeners.accept_queue(slot) for slot in range(2)]
        for _ in range(40):
            stack.enter_context(socket.create_connection((listeners.host, listeners.port), timeout=10))
        return [listeners.accept_queue(slot) - before[slot] for slot in range(2)]

    def lives(self) -> list[str]:
        """What is on record of workers in the supervisor's own seat."""
        _, records, _ = Rollup(self.premises.segment).new_records(self.premises.segment.layout.supervisor_seat)
        names = [EventKind(kind).name.lower() for kind in records["kind"]]
        return [name for name in names if name.startswith("worker_")]


@pytest.fixture
def bench(runtime_env: RuntimeEnv) -> Iterator[Bench]:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as place:
        built = Bench(place)
        with closing(built.forks):
            yield built


def _running(bench: Bench) -> None:
    bench.workers.tick()
    bench.ready(1)
    bench.ready(2)


def test_the_first_tick_spawns_a_worker_for_each_slot_with_all_that_it_needs(bench: Bench) -> None:
    bench.workers.tick()
    assert bench.forks.names == ["0 [default]", "1 [default]"]
    for slot, incarnation in enumerate((1, 2)):
        ((setup, (listener, segment, agents)),) = bench.forks.hear(incarnation)
        assert isinstance(setup, Setup)
        assert (setup.slot, setup.seat, setup.incarnation) == (slot, 2 * slot, incarnation)
        assert (setup.epoch, setup.settings) == (bench.premises.epoch, bench.office.settings)
        assert setup.keys == bench.premises.keys.for_workers()
        assert os.path.sameopenfile(listener, bench.premises.listeners.sockets[slot].fileno())
        assert os.path.sameopenfile(segment, bench.premises.segment.fd)
        assert os.path.sameopenfile(agents, bench.premises.agents.fileno())
        for fd in (listener, segment, agents):
            os.close(fd)


def test_all_are_ready(bench: Bench) -> None:
    bench.workers.tick()
    bench.ready(2)
    assert bench.milestones == []
    bench.ready(1)
    assert bench.milestones == [moves.AllReady()]
    assert [view.pid for view in bench.roster.snapshot().slots] == [5001, 5002]
    assert bench.lives() == ["worker_spawned", "worker_ready"] * 2
    assert [type(record) for record in bench.heard(1)] == [Setup, Link]


def test_a_worker_that_becomes_ready_learns_which_tasks_cannot_be_served(bench: Bench) -> None:
    bench.office.staff._states["a"] = TaskState("a", False, "it fails")
    _running(bench)
    assert TaskState("a", False, "it fails") in bench.heard(1)


def test_connections_are_steered_to_slots_that_serve(bench: Bench) -> None:
    with ExitStack() as stack:
        bench.workers.tick()
        assert all(bench.gained(stack)), "nobody serves yet: they wait for whoever will be the first at each slot"
        bench.ready(2)
        assert bench.gained(stack) == [0, 40]
        bench.ready(1)
        assert all(bench.gained(stack))
        bench.die(2)
        assert bench.gained(stack) == [40, 0]
        bench.ready(3)
        assert all(bench.gained(stack)), "its heir serves"


def test_who_waits_at_a_slot_without_a_worker_is_rescued(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The neighbour gets the very listener, and gives it back when the heir is ready."""
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    _running(bench)
    bench.heard(2)
    bench.die(1)
    assert bench.heard(2) == []
    assert bench.workers.next_deadline() == pytest.approx(clock.now + PATIENCE_S, abs=0.021), "or sooner: its heir"
    clock.now += PATIENCE_S
    bench.workers.tick()
    ((record, (listener,)),) = bench.forks.hear(2)
    assert record == Rescue(0)
    assert os.path.sameopenfile(listener, bench.premises.listeners.sockets[0].fileno())
    os.close(listener)
    bench.ready(3)
    assert [record for record in bench.heard(2) if not isinstance(record, Link)] == [RescueOver(0)]


def test_while_the_pool_drains_connections_go_where_they_went(bench: Bench) -> None:
    with ExitStack() as stack:
        bench.workers.tick()
        bench.ready(2)
        bench.workers.drain(10.0)
        assert bench.gained(stack) == [0, 40]


def test_a_dead_worker_is_booked_before_its_heir_is_spawned(bench: Bench) -> None:
    _running(bench)
    seat = Seat(bench.premises.segment, 0)
    seat.add(COUNTER["connections_opened"], 3)
    bench.die(1)
    assert seat.state is SeatState.GONE
    assert Rollup(bench.premises.segment).open_connections(0) == 0
    assert bench.crew.get(1) is None
    heir = bench.member(3)
    assert (heir.slot, heir.seat) == (0, 1)
    assert bench.lives()[-1] == "worker_killed"


def test_the_seat_of_somebody_else_is_left_alone(bench: Bench) -> None:
    """A worker that died before it sat down: its predecessor's counts are booked already."""
    bench.workers.tick()
    seat = Seat(bench.premises.segment, 0)
    seat.occupy(77, 4711)
    bench.die(1, code=1)
    assert (seat.incarnation, seat.state) == (77, SeatState.STARTING)


def test_a_dead_workers_agents_are_expected_back(bench: Bench) -> None:
    _running(bench)
    bench.office.staff.tick()
    instance = bench.office.instance()
    bench.office.launched(bench.office.recorder.launches[0][0])
    bench.workers.hear(bench.member(1), _claim(bench, slot=0, incarnation=1))
    assert bench.office.owners.member_of(instance) is not None
    bench.die(1)
    assert bench.office.owners.member_of(instance) is None


def _claim(bench: Bench, slot: int, incarnation: int) -> Claim:
    instance, now_ns = bench.office.instance(), time.monotonic_ns()
    return Claim(instance.row, instance.generation, ConnectionId(slot, incarnation, 1).pack(), now_ns, now_ns)


def test_agents_come_and_go(bench: Bench) -> None:
    _running(bench)
    bench.office.staff.tick()
    instance = bench.office.instance()
    bench.office.launched(bench.office.recorder.launches[0][0])
    claim = _claim(bench, slot=1, incarnation=2)
    bench.workers.hear(bench.member(2), claim)
    (row,) = bench.office.table.snapshots()
    assert bench.office.staff.state_of(row) == "ready"
    assert row.owner == claim.connection
    bench.workers.hear(bench.member(2), Released(instance.row, instance.generation, claim.connection, "peer"))
    assert bench.office.owners.member_of(instance) is None


def test_an_agent_that_somebody_else_started_gets_a_row(bench: Bench) -> None:
    _running(bench)
    bench.heard(2)
    bench.workers.hear(bench.member(2), ExternalAgent(7, "gpu-1", "a"))
    (row,) = bench.office.table.snapshots()
    assert (row.instance_id, row.task, row.external) == ("gpu-1", "a", True)
    assert bench.heard(2) == [ExternalRow(7, row.instance.row, row.instance.generation)]


class Clock:
    """`time.monotonic` of the module under test, which the test sets."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


def test_a_worker_whose_heartbeat_stands_still_is_killed_and_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    _running(bench)
    seats = [Seat(bench.premises.segment, bench.member(incarnation).seat) for incarnation in (1, 2)]
    for seat in seats:
        seat.state = SeatState.READY
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(bench.crew, "signal", lambda member, number: signalled.append((member.incarnation, number)))
    while not bench.forks.kills:
        clock.now += 0.05
        seats[1].beat(int(clock.now * 1e9))
        bench.workers.tick()
        assert clock.now < time.monotonic() + 60.0
    assert bench.forks.kills == [worker_launch(1)]
    assert signalled == [(1, STACKS_SIGNAL)]
    assert bench.roster.snapshot().slots[0].last_end == "did not answer for 10 s and was killed"
    assert bench.member(3).slot == 0, "its heir"


def test_who_starts_or_has_left_its_seat_need_not_beat(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    bench.workers.tick()
    bench.ready(1)
    Seat(bench.premises.segment, bench.member(1).seat).vacate()
    Seat(bench.premises.segment, bench.member(2).seat).occupy(2, 5002)
    for _ in range(400):
        clock.now += 0.05
        bench.workers.tick()
    assert bench.forks.kills == []


def test_a_worker_that_cannot_start_ends_the_start(bench: Bench) -> None:
    bench.workers.tick()
    bench.workers.hear(bench.member(2), StartFailed("no key store"))
    assert bench.milestones == [moves.GiveUp("worker 1 cannot serve: no key store")]
    assert bench.forks.kills == [worker_launch(1), worker_launch(2)]
    bench.die(1)
    bench.die(2)
    assert bench.milestones[1:] == [moves.AllGone()]


def test_a_fork_that_fails_is_tried_again(bench: Bench) -> None:
    bench.workers.tick()
    bench.workers.handle(LaunchFailed(worker_launch(1), "Resource temporarily unavailable"))
    assert bench.crew.get(1) is None
    assert bench.member(3).slot == 0


def test_draining_and_leaving(bench: Bench) -> None:
    _running(bench)
    for incarnation in (1, 2):
        bench.heard(incarnation)
    bench.workers.drain(20.0)
    for incarnation in (1, 2):
        (drain,) = bench.heard(incarnation)
        assert isinstance(drain, Drain)
        assert 15 < drain.deadline_s <= 20
        assert not bench.workers.drained
        bench.workers.hear(bench.member(incarnation), Drained(0))
    assert bench.workers.drained
    assert bench.milestones[1:] == [moves.AllDrained()]
    bench.workers.leave(5.0)
    assert [bench.heard(incarnation) for incarnation in (1, 2)] == [[Leave()], [Leave()]]
    for incarnation in (1, 2):
        Seat(bench.premises.segment, bench.member(incarnation).seat).vacate()
        bench.die(incarnation, code=0)
    assert bench.milestones[2:] == [moves.AllGone()]
    assert bench.roster.snapshot().state is PoolState.GONE
    assert bench.lives()[-2:] == ["worker_exited"] * 2


def test_last_words_are_ignored(bench: Bench) -> None:
    """The warden's report was quicker than what the worker had said before."""
    _running(bench)
    member = bench.member(1)
    bench.die(1)
    before = bench.roster.snapshot()
    bench.workers.hear(member, Drained(0))
    bench.die(1)
    assert bench.roster.snapshot() == before


# Planned changes


def test_a_reload_gives_the_heirs_the_new_settings_and_tells_how_it_goes(bench: Bench) -> None:
    _running(bench)
    wanted = replace(bench.office.settings, pool=replace(bench.office.settings.pool, stop_timeout_s=7.0))
    change = _reload(bench, wanted)
    setup = bench.heard(3)[0]
    assert isinstance(setup, Setup)
    assert (setup.slot, setup.settings) == (0, wanted)
    with pytest.raises(PoolError, match="a reload is under way"):
        _reload(bench, wanted)
    with pytest.raises(PoolError, match="a reload is under way"):
        bench.workers.scale(1)
    for slot, old, heir in ((0, 1, 3), (1, 2, 4)):
        bench.heard(old)
        bench.ready(heir)
        assert Empty(7.0) in bench.heard(old)
        bench.workers.hear(bench.member(old), Emptied(5, 1, 2))
        assert bench.heard(old) == [Leave()]
        bench.die(old, code=0)
        assert change.document()["slots"][slot] == {
            "slot": slot,
            "stage": "done",
            "pid": 5000 + old,
            "heir_pid": 5000 + heir,
            "handed_over": 5,
            "closed": 1,
            "awaited": 2,
        }
    assert (change.over, change.error) == (True, "")


def _reload(bench: Bench, settings: Settings) -> Change:
    """As the supervisor does when all code has been imported."""
    change = bench.workers.announce_reload(settings)
    bench.workers.reload(settings)
    return change


def test_a_worker_that_dies_while_code_is_imported_does_not_hold_the_reload(bench: Bench) -> None:
    """It is announced first, and the workers that it is about are those that there are when the code has come."""
    _running(bench)
    wanted = bench.office.settings
    change = bench.workers.announce_reload(wanted)
    bench.die(1)
    bench.ready(3)
    bench.workers.reload(wanted)
    for old, heir in ((3, 4), (2, 5)):
        bench.ready(heir)
        bench.workers.hear(bench.member(old), Emptied(0, 0, 0))
        bench.die(old, code=0)
    assert (change.over, change.error) == (True, "")


def test_the_settings_before_hold_again_when_the_first_heir_fails(bench: Bench) -> None:
    _running(bench)
    before = bench.workers.settings
    change = _reload(bench, replace(before, pool=replace(before.pool, stop_timeout_s=7.0)))
    bench.workers.hear(bench.member(3), StartFailed("no such validator"))
    bench.die(3, code=78)
    assert "no such validator" in change.error
    assert bench.workers.settings == before
    assert _reload(bench, before).number == change.number + 1


def test_slots_come_and_go_with_their_listeners(bench: Bench) -> None:
    _running(bench)
    with pytest.raises(ConfigError, match="1 to 8"):
        bench.workers.scale(9)
    bench.workers.scale(3)
    assert len(bench.premises.listeners.sockets) == 3
    bench.ready(3)
    with ExitStack() as stack:
        peers = [stack.enter_context(_connected(bench)) for _ in range(60)]
        assert bench.premises.listeners.accept_queue(2) > 0
        bench.workers.scale(2)
        bench.workers.tick()
        assert Empty not in map(type, bench.heard(3)), "somebody waits there"
        with bench.premises.listeners.sockets[2].dup() as listener:
            for _ in peers[: bench.premises.listeners.accept_queue(2)]:
                listener.accept()[0].close()
    eventually(lambda: _told_to_empty_itself(bench), 10)
    bench.workers.hear(bench.member(3), Emptied(0, 0, 0))
    bench.die(3, code=0)
    bench.workers.tick()
    assert len(bench.premises.listeners.sockets) == 2
    assert bench.workers.change.over


def _told_to_empty_itself(bench: Bench) -> bool:
    bench.workers.tick()
    return Empty in map(type, bench.heard(3))


def _connected(bench: Bench) -> socket.socket:
    listeners = bench.premises.listeners
    return socket.create_connection((listeners.host, listeners.port), timeout=10)


def test_a_new_slot_that_cannot_serve_fails_the_scaling(bench: Bench) -> None:
    _running(bench)
    change = bench.workers.scale(3)
    bench.die(3, code=1)
    assert change.error == "worker 2 exited with code 1; it is tried again, see `spearpool status`"


def test_a_worker_that_was_told_to_end_gets_an_heir(bench: Bench) -> None:
    _running(bench)
    bench.workers.hear(bench.member(2), LeaveWanted())
    heir = bench.member(3)
    assert (heir.slot, heir.seat) == (1, 3)


def test_what_a_worker_has_opened_before_is_not_held_against_its_heir(bench: Bench) -> None:
    settings = bench.workers.settings
    seat = Seat(bench.premises.segment, 0)
    seat.add(COUNTER["connections_opened"], 1000)
    _running(bench)
    bench.workers._adopt(replace(settings, pool=replace(settings.pool, max_worker_connections=100)))
    bench.workers.measure()
    assert bench.crew.get(3) is None
    seat.add(COUNTER["connections_opened"], 100)
    bench.workers.measure()
    assert bench.member(3).slot == 0


def test_a_stop_ends_a_change_in_words(bench: Bench) -> None:
    _running(bench)
    change = _reload(bench, bench.workers.settings)
    bench.workers.drain(1.0)
    assert change.error == "the pool is being stopped"
    with pytest.raises(PoolError, match="starting or stopping"):
        bench.workers.scale(2)
