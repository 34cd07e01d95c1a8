"""What the pool says of itself, read out of a real segment that workers and instances played here have written to."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator

import pytest

from spearpool import __version__
from spearpool.instances.launch import LaunchFailed
from spearpool.metrics.layout import ExecutionStage
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.metrics.vocabulary import COUNTER, GAUGE
from spearpool.supervisor import roster_moves as moves
from spearpool.supervisor.report import STATES, Report
from spearpool.supervisor.roster import Roster
from spearpool.supervisor.slot import WorkerPolicy
from spearpool.supervisor.steering import Steering
from tests.conftest import RuntimeEnv
from tests.supervisor.offices import AGENT, Office, office


class Bench:
    """The report of an office, and seats to write to as workers do."""

    def __init__(self, bench: Office) -> None:
        self.office = bench
        self.seats = [Seat(bench.premises.segment, index) for index in range(2 * bench.settings.pool.workers)]
        self.roster = Roster(bench.settings.pool.workers, WorkerPolicy(), time.monotonic())
        rollup = Rollup(bench.premises.segment)
        began = time.monotonic() - 100
        self.report = Report(bench.settings, bench.premises, self.roster, bench.staff, rollup, began)

    def tell_roster(self, event: moves.Event) -> None:
        self.roster.handle(event, time.monotonic(), 0.0)


TASKS = {"a": {"target": AGENT, "limits": {"open_files": 100_000}}, "b": {"target": AGENT, "min_instances": 0}}


@pytest.fixture
def bench(runtime_env: RuntimeEnv) -> Iterator[Bench]:
    with office(runtime_env, tasks=TASKS) as built:
        yield Bench(built)


def test_the_pool(bench: Bench) -> None:
    status = bench.report.status("starting")
    listeners = bench.office.premises.listeners
    assert (status["name"], status["version"], status["state"]) == ("default", __version__, "starting")
    assert (status["pid"], status["host"], status["port"]) == (os.getpid(), listeners.host, listeners.port)
    assert 100 <= status["uptime_s"] < 160
    assert status["warnings"] == ["task 'a' has 0 of 1 instances: not ready yet"]
    json.dumps(status)  # nothing in it but what JSON has


def test_how_connections_are_steered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    status = bench.report.status("ready")
    assert status["steering"] == "bpf"
    monkeypatch.setattr(Steering, "status", "hash: no")
    status = bench.report.status("ready")
    assert status["steering"] == "hash: no"
    assert status["warnings"][-1] == "connections may go to workers that are not ready: hash: no"
    assert bench.report.warnings() == status["warnings"]


def test_workers(bench: Bench) -> None:
    bench.tell_roster(moves.Tick())
    bench.tell_roster(moves.Started(0, 1, 4711))
    bench.tell_roster(moves.WorkerReady(0, 1))
    bench.tell_roster(moves.WorkerExited(1, 2, None, 9))
    ready, dead = bench.report.workers()
    assert ready == {
        "slot": 0,
        "pid": 4711,
        "state": "ready",
        "incarnation": 1,
        "restarts": 0,
        "connections": 0,
        "authenticated": 0,
        "accept_queue": 0,
        "last_end": "",
    }
    assert (dead["slot"], dead["pid"], dead["state"], dead["restarts"]) == (1, None, "starting", 1)
    assert "SIGKILL" in dead["last_end"]


def test_connections_of_a_slot_are_those_of_both_its_seats(bench: Bench) -> None:
    for seat in bench.seats[2:4]:
        seat.occupy(1, os.getpid())
        seat.add(COUNTER["connections_opened"], 3)
        seat.gauges[GAUGE["authenticated_now"]] = 2
    first, second = bench.report.workers()
    assert (first["connections"], first["authenticated"]) == (0, 0)
    assert (second["connections"], second["authenticated"]) == (6, 4)
    assert bench.report.status("ready")["totals"]["connections_open"] == 6


def test_an_instance_from_start_to_busy(bench: Bench) -> None:
    bench.office.staff.tick()
    (row,) = bench.report.instances()
    assert (row["instance_id"], row["task"], row["pid"], row["state"]) == ("a-0-1", "a", None, "starting")
    assert row["worker"] is None
    assert abs(row["started_s"] - time.time()) < 60
    bench.office.launched(bench.office.recorder.launches[0][0])
    instance = bench.office.instance()
    bench.office.claim(instance, slot=1)
    bench.office.staff.sample_usage()
    (row,) = bench.report.instances()
    assert (row["pid"], row["state"], row["worker"], row["external"]) == (os.getpid(), "ready", 1, False)
    (limit,) = row["limits"]
    assert (limit["name"], limit["value"], limit["breaches"]) == (
        "open_files",
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        0,
    )  # as the process has it
    assert limit["level"] in {"enforced", "watched"}
    assert limit["usage"] > 0
    assert set(row["stages_ms"]) >= {"requested", "spawned", "ready"}
    bench.seats[2].set_agent(instance.row, instance.generation, 1, 3)
    bench.seats[0].set_agent(instance.row, instance.generation - 1, 1, 5)  # what is left of another one
    (row,) = bench.report.instances()
    assert (row["state"], row["in_flight"]) == ("busy", 3)
    bench.seats[2].set_agent(instance.row, instance.generation, 0, 0)
    bench.seats[0].set_agent(instance.row, instance.generation, 1, 0)  # handed over
    (row,) = bench.report.instances()
    assert (row["state"], row["worker"]) == ("ready", 0)


def test_an_instance_that_stops_is_stopping_even_with_work_in_hand(bench: Bench) -> None:
    instance = bench.office.ready()
    bench.seats[0].set_agent(instance.row, instance.generation, 1, 1)
    bench.office.staff.stop_all()
    (row,) = bench.report.instances()
    assert row["state"] == "stopping"


def test_an_external_agent_has_its_own_name(bench: Bench) -> None:
    row = bench.office.table.open_row(1, external=True, label="gpu-1")
    bench.office.claim(row, slot=0)
    (shown,) = bench.report.instances()
    assert (shown["instance_id"], shown["task"], shown["state"], shown["worker"]) == ("gpu-1", "b", "ready", 0)
    assert (shown["external"], shown["pid"], shown["started_s"]) == (True, None, None)


def test_tasks_count_instances_queues_and_executions(bench: Bench) -> None:
    bench.office.ready()
    for seat in bench.seats[:3:2]:
        seat.occupy(1, os.getpid())
        seat.add_task(0, ExecutionStage.RECEIVED, 10)
        seat.add_task(0, ExecutionStage.COMPLETED, 4)
        seat.add_task(0, ExecutionStage.LOST, 1)
        seat.publish_capacity(0, 0, 2)
    first, second = bench.report.status("ready")["tasks"]
    assert (first["name"], first["target"], first["problem"]) == ("a", AGENT, "")
    assert first["instances"] == {**dict.fromkeys(STATES, 0), "ready": 1}
    assert (first["queued"], first["in_flight"]) == (4, 6)
    assert second["instances"] == dict.fromkeys(STATES, 0)
    assert (second["queued"], second["in_flight"]) == (0, 0)


def test_failures_are_counted_and_explained(bench: Bench) -> None:
    bench.office.staff.tick()
    bench.office.staff.handle(LaunchFailed(bench.office.recorder.launches[0][0], "out of luck"))
    status = bench.report.status("ready")
    assert status["tasks"][0]["instances"]["failed"] == 1
    assert "out of luck" in status["tasks"][0]["problem"]
    assert "out of luck" in status["warnings"][0]
