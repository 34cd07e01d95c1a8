"""Instances between decisions and runtime: started, told of, lost, stopped. Only the launcher is played."""

from __future__ import annotations

import resource
import signal

import pytest

from spearpool.instances.launch import Exited, ForkSpec, LaunchFailed, LaunchSpec, ZygoteReady, ZygoteSpec
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.packing import replace
from spearpool.protocol.credentials import TokenKey, Verifier
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.identity import Identity
from spearpool.protocol.messages import AuthRequest
from spearpool.worker.control import Overran, Released, RowCleared, SignalAgent, TaskState
from tests.conftest import RuntimeEnv, eventually
from tests.supervisor.offices import AGENT, Office, office


def _staff_of(office: Office) -> dict[str, tuple[int, int]]:
    return {task.task: (task.starting, task.ready) for task in office.staff._scaling.snapshot()}


def test_each_task_gets_its_instances_and_secrets_that_verify(runtime_env: RuntimeEnv) -> None:
    tasks = {
        "a": {"target": AGENT, "min_instances": 2},
        "b": {"target": AGENT},
        "c": {"target": AGENT, "min_instances": 0},
    }
    with office(runtime_env, tasks=tasks) as bench:
        assert not bench.staff.settled(0.0)
        bench.staff.tick()
        specs = [spec for _, spec in bench.recorder.launches]
        assert [row.task for row in bench.table.snapshots()] == ["a", "b", "a"]
        assert _staff_of(bench) == {"a": (2, 0), "b": (1, 0), "c": (0, 0)}
        keys = [TokenKey(key.key_id, key.secret) for key in bench.premises.keys.for_workers()]
        verifier = Verifier(keys, row_is_alive=bench.table.is_alive)
        for spec, row in zip(specs, bench.table.snapshots(), strict=True):
            assert isinstance(spec, LaunchSpec)
            assert spec.environ["SPEAR_COMMUNICATION_PORT"] == str(bench.premises.listeners.port)
            assert spec.environ["SPEAR_INSTANCE_ID"] == row.instance_id
            found = verifier.verify(AuthRequest(row.instance_id, spec.environ["SPEAR_SECRET"], "1", "t", {}), 0.0)
            assert isinstance(found, Identity)
            assert found.instance == row.instance


def test_ready_when_the_agent_has_come(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        bench.staff.tick()
        bench.launched(bench.recorder.launches[0][0])
        (row,) = bench.table.snapshots()
        assert bench.staff.state_of(row) == "starting"
        assert bench.staff.warnings() == ["task 'a' has 0 of 1 instances: not ready yet"]
        bench.claim(row.instance)
        assert bench.staff.state_of(row) == "ready"
        assert bench.staff.warnings() == []
        assert bench.staff.settled(0.0)
        assert bench.staff.problem("a") == ""


def test_exec_and_python_wait_for_their_zygotes(runtime_env: RuntimeEnv) -> None:
    tasks = {"e": {"target": "exec:cat -n"}, "p": {"target": "python:json:loads"}}
    with office(runtime_env, tasks=tasks) as bench:
        bench.staff.tick()
        zygotes = dict(bench.recorder.launches)
        assert sorted(spec.target for spec in zygotes.values() if isinstance(spec, ZygoteSpec)) == ["", "json:loads"]
        for launch in zygotes:
            bench.staff.handle(ZygoteReady(launch))
        forks = [spec for _, spec in bench.recorder.launches[2:]]
        assert all(isinstance(spec, ForkSpec) for spec in forks)
        assert sorted(spec.argv[1:] for spec in forks if isinstance(spec, ForkSpec)) == [[], ["-n"]]


def test_an_end_is_told_to_all_workers_counted_and_made_good(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        bench.staff.tick()
        ((launch, _),) = bench.recorder.launches
        bench.launched(launch)
        before = bench.instance()
        bench.staff.handle(Exited(launch, 1, 7, None))
        for slot in range(2):
            assert bench.heard(slot) == [RowCleared(before.row, before.generation)]
        assert not bench.table.is_alive(before.row, before.generation)
        assert bench.staff.failures("a") == 1
        assert "exited with code 7" in bench.staff.problem("a")
        assert "exited with code 7" in bench.staff.warnings()[0]

        def replaced() -> bool:
            bench.staff.tick()
            return len(bench.recorder.launches) == 2

        eventually(replaced, 5)
        assert bench.instance() != before


def test_an_instance_that_is_stuck_is_killed_and_one_that_lets_go_is_not(runtime_env: RuntimeEnv) -> None:
    tasks = {"a": {"target": AGENT, "limits": {"execution_timeout_s": 5}}}
    with office(runtime_env, tasks=tasks) as bench:
        found = bench.ready()
        bench.staff.overran(Overran(found.row, found.generation, "1-1-1-1", 0.0))
        (limit,) = bench.table.snapshots()[0].limits
        assert (limit.name, limit.value, limit.breaches) == ("execution_timeout_s", 5, 1)
        assert bench.recorder.kills == []
        bench.staff.overran(Overran(found.row, found.generation + 1, "1-1-1-1", 1.0))
        assert bench.recorder.kills == []
        bench.staff.overran(Overran(found.row, found.generation, "1-1-1-1", 1.04))
        ((launch, _),) = bench.recorder.launches
        assert bench.recorder.kills == [launch]
        bench.staff.handle(Exited(launch, 1, None, signal.SIGKILL))
        assert bench.staff.failures("a") == 1
        words = "it did not let go of an execution 1 s after its limit execution_timeout_s = 5"
        assert bench.staff.problem("a").startswith(words)


def test_ends_starts_and_restarts_are_counted_by_task(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}, "b": {"target": AGENT}}) as bench:
        rollup = Rollup(bench.premises.segment)

        def counted(task: str) -> dict[str, int]:
            return {name: count for name, count in rollup.task_totals()[task].items() if count}

        instance = bench.ready()
        assert counted("a") == counted("b") == {"instances_started": 1}
        first, other = (launch for launch, _ in bench.recorder.launches)
        bench.launched(other)
        bench.staff.handle(Exited(first, 1, None, 9))

        def replaced() -> bool:
            bench.staff.tick()
            return len(bench.recorder.launches) == 3

        eventually(replaced, 5)
        assert counted("a") == {"instances_started": 2, "instances_failed": 1, "instances_restarted": 1}
        (successor,) = [row for row in bench.table.snapshots() if row.task == "a"]
        assert (successor.restarts, successor.instance != instance) == (1, True)
        bench.staff.stop_all()
        bench.staff.handle(Exited(other, 1, None, 15))
        assert counted("b") == {"instances_started": 1, "instances_exited": 1}
        assert bench.staff.failures("a") == rollup.totals()["instances_failed"] == 1


def test_a_crash_long_after_it_was_ready_is_a_failure_as_well(
    runtime_env: RuntimeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spearpool.instances.lifecycle.SETTLED_S", 0.0)
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        for crashes, end in ((1, Exited(0, 1, None, 11)), (1, Exited(0, 1, 0, None))):
            bench.ready()
            launch, _ = bench.recorder.launches[-1]
            bench.staff.handle(replace(end, launch=launch))
            assert bench.staff.failures("a") == crashes, "one that is done is none"


@pytest.mark.parametrize(("answered", "delayed"), [(1, True), (2, False)])
def test_who_has_answered_was_no_failed_start(runtime_env: RuntimeEnv, answered: int, delayed: bool) -> None:
    """One that holds an execution at a time has answered the first when it is given the second."""
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        seat = Seat(bench.premises.segment, 0)
        for count in range(6):
            where = bench.ready()
            seat.set_agent(where.row, where.generation, 1, 0)
            for _ in range(answered):
                seat.count_execution(where.row, where.generation)
            launch, _ = bench.recorder.launches[-1]
            bench.staff.handle(Exited(launch, 1, None, 9))
            assert bench.staff.failures("a") == count + 1, "a crash it is"
            if delayed:
                assert "SIGKILL" in bench.staff.problem("a")
                break
            assert len(bench.recorder.launches) == count + 2, "the next one is started at once"
            assert bench.staff.problem("a") == ""


def test_a_task_that_fails_again_and_again_is_closed_for_all_workers_and_for_later_ones(
    runtime_env: RuntimeEnv,
) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}, "b": {"target": AGENT, "min_instances": 0}}) as bench:

        def closed() -> list[TaskState]:
            bench.staff.tick()
            for launch, _ in bench.recorder.launches[bench.staff.failures("a") :]:
                bench.staff.handle(LaunchFailed(launch, "no such luck"))
            return [record for record in bench.heard(0) if isinstance(record, TaskState)]

        (state,) = eventually(closed, 20)
        assert (state.task, state.available) == ("a", False)
        assert "no such luck" in state.reason
        assert state in bench.heard(1)
        assert bench.staff.settled(0.0)  # the pool does not wait for what will not come
        bench.staff.tell_states(bench.members[1])
        assert bench.heard(1) == [state]


def test_a_program_that_went_away_is_a_failure_with_its_step(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": "agent:/no/such/program"}}) as bench:
        bench.staff.tick()
        assert bench.recorder.launches == []
        assert bench.table.snapshots() == []
        assert bench.staff.failures("a") >= 1
        assert "artifact: " in bench.staff.problem("a")
        assert "/no/such/program" in bench.staff.problem("a")


def test_start_deadline_lets_the_pool_go_on_with_a_warning(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT, "start_timeout_s": 5.0}}) as bench:
        bench.staff.tick()
        assert not bench.staff.settled(0.0)
        assert bench.staff.settled(float("inf"))
        assert bench.staff.warnings()


def test_stop_asks_the_agent_through_its_worker(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT, "stop_timeout_s": 2.0}}) as bench:
        instance = bench.ready()
        bench.staff.stop_all()
        assert bench.heard(0) == [SignalAgent(instance.row, instance.generation, "Terminate")]
        assert bench.heard(1) == []
        assert bench.recorder.signals == []
        assert bench.staff.state_of(bench.table.snapshots()[0]) == "stopping"
        assert not bench.staff.all_gone
        bench.staff.handle(Exited(bench.recorder.launches[0][0], 1, 0, None))
        eventually(lambda: bench.staff.all_gone, 0)
        assert bench.staff.failures("a") == 0
        bench.staff.tick()
        assert len(bench.recorder.launches) == 1  # nobody is hired any more
        assert 2.0 <= bench.staff.longest_stop_s() < 10.0


@pytest.mark.parametrize("away", ["released", "worker died"])
def test_stop_without_a_connection_signals_the_process_group(runtime_env: RuntimeEnv, away: str) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        instance = bench.ready()
        if away == "released":
            row = bench.table.snapshot(instance.row)
            assert row is not None
            released = Released(instance.row, instance.generation, row.owner, "peer")
            assert bench.owners.release(released)
            bench.staff.released(released)
        else:
            bench.crew.exited(1)
            bench.staff.disconnected(bench.owners.died(bench.members[0]))
        bench.staff.stop_all()
        assert bench.recorder.signals == [(bench.recorder.launches[0][0], signal.SIGTERM)]


def test_an_agent_that_comes_back_is_no_second_instance(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        instance = bench.ready()
        bench.crew.exited(1)
        bench.staff.disconnected(bench.owners.died(bench.members[0]))
        (row,) = bench.table.snapshots()
        assert bench.staff.state_of(row) == "starting"  # it is on its way back
        bench.claim(instance, slot=1)
        assert bench.staff.state_of(row) == "ready"
        assert _staff_of(bench) == {"a": (0, 1)}
        assert len(bench.recorder.launches) == 1


def test_rows_of_external_agents_are_not_the_runtimes(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT, "min_instances": 0}}) as bench:
        row = bench.table.open_row(0, external=True, label="gpu-1")
        assert bench.staff.state_of(bench.table.snapshots()[0]) == "starting"
        bench.claim(row)
        assert bench.staff.state_of(bench.table.snapshots()[0]) == "ready"
        assert _staff_of(bench) == {"a": (0, 0)}
        bench.staff.released(Released(row.row, row.generation, 1, "peer"))
        bench.staff.disconnected([row, InstanceId(7, 7)])
        bench.staff.stop_all()
        assert bench.staff.all_gone


def test_usage_of_limits_is_published(runtime_env: RuntimeEnv) -> None:
    tasks = {"a": {"target": AGENT, "limits": {"open_files": 64}}}
    with office(runtime_env, tasks=tasks) as bench:
        bench.ready()
        bench.staff.sample_usage()
        (limit,) = bench.table.snapshots()[0].limits
        assert limit.value == resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # as the process has it
        assert limit.usage > 0
