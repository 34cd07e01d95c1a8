from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from spearpool.metrics.seat import Seat
from spearpool.metrics.vocabulary import HISTOGRAM, ExecutionStage
from tests.cli.metrics_pool import metrics_pool
from tests.cli.running import invoke
from tests.conftest import RuntimeEnv
from tests.metrics.bus.living import LivingBus, monitoring, write_messages


@pytest.fixture
def living(runtime_env: RuntimeEnv) -> Iterator[LivingBus]:
    with metrics_pool(runtime_env) as living:
        for slot in (0, 1):
            service = monitoring(living.segment, 2 * slot)
            write_messages(service, 3 + slot, slot)
            service.record_execution(ExecutionStage.COMPLETED, 1, 2_000_000)
        Seat(living.segment, 0).observe(HISTOGRAM["connection_lifetime_ns"], 2**50)
        living.instances = [{"instance_id": "sum-0-1", "task": "sum", "worker": 1, "pid": None, "limits": []}]
        yield living


def show(env: RuntimeEnv, *words: str) -> tuple[int, str, str]:
    said = invoke(env, "metrics", "show", *words)
    return said.code, said.out.decode(), said.err


def test_one_document(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    code, out, _ = show(runtime_env, "--json")
    document = json.loads(out)
    assert code == 0
    assert list(document) == ["name", "time", "totals", "latencies", "counters", "workers", "instances"]
    assert (document["totals"]["messages_in"], document["totals"]["executions_completed"]) == (7, 2)
    assert [(row["worker"], row["values"]["messages_in_heartbeat"]) for row in document["counters"]] == [(0, 3), (1, 4)]
    assert document["counters"][0]["tasks"] == {"sum": {"completed": 1}}
    assert document["latencies"]["execution_duration_ns{sum}"]["count"] == 2
    assert (document["workers"], document["instances"]) == (living.workers, living.instances)


def test_only_what_was_asked_for(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    _, out, _ = show(runtime_env, "--json", "--kind", "worker", "--kind", "instance", "--worker", "0")
    document = json.loads(out)
    assert list(document) == ["name", "time", "workers", "instances"]
    assert (document["workers"], document["instances"]) == (living.workers[:1], [])


def test_tables_for_people(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    code, out, _ = show(runtime_env)
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "executions_completed 2" in lines
    assert "execution_duration_ns{sum} 2 2 ms 2.1 ms 2.1 ms 2.1 ms" in lines
    assert any(line.startswith("connection_lifetime_ns 1 ") and line.endswith("> max") for line in lines)
    assert "counter w0 w1" in lines
    assert "messages_in_heartbeat 3 4" in lines
    assert "sum.completed 1 1" in lines
    assert "slot state" in lines
    assert "0 ready" in lines
    assert "sum-0-1 sum 1 -" in lines


def test_an_empty_pool_shows_its_totals(runtime_env: RuntimeEnv) -> None:
    with metrics_pool(runtime_env) as living:
        living.workers = []
        code, out, _ = show(runtime_env)
    assert code == 0
    assert out.startswith("totals")
    assert "latencies" not in out


def test_no_such_pool(runtime_env: RuntimeEnv) -> None:
    code, out, err = show(runtime_env)
    assert (code, out) == (3, "")
    assert "no pool 'default' is running" in err
