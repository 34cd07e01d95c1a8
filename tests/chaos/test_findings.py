"""Each promise is broken by what breaks it, and by nothing else."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.chaos.findings import Findings, document, judge, quantiles, table


def findings(**values: Any) -> Findings:
    return Findings(seed=1, seconds=10.0, workers=4, residents=2, **({"kept_residents": 2} | values))


def broken(found: Findings) -> list[str]:
    return [promise.name for promise in judge(found) if not promise.kept]


def saw(**counts: int) -> Findings:
    return findings(saw=Counter({kind.replace("_", " "): count for kind, count in counts.items()}))


def test_a_clean_run_keeps_all() -> None:
    assert broken(findings(saw=Counter(right=10, executions=10))) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("refused", "connections refused"),
        ("reset", "connections reset"),
        ("dismissed", "connections dismissed"),
        ("not admitted", "connections not admitted"),
        ("not admitted in time", "connections not admitted"),
        ("wrong", "answers wrong"),
        ("duplicate", "answers duplicate or stray"),
        ("stray", "answers duplicate or stray"),
        ("without a final status", "executions without a final status"),
        ("refused executions", "executions refused"),
        ("failed", "executions failed, cancelled, timed out"),
        ("outcome unknown", "executions of unknown outcome, or lost with their connection"),
        ("lost with their connection", "executions of unknown outcome, or lost with their connection"),
    ],
)
def test_what_clients_saw(kind: str, name: str) -> None:
    assert broken(findings(saw=Counter({kind: 1}))) == [name]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"run_twice": 1}, "executions run twice"),
        ({"unsettled_executions": 1}, "executions not settled in the pool's books"),
        ({"sums_wrong": 1}, "sums that went back, or were below none"),
        ({"open_at_end": 1}, "open at the end, beside the agents"),
        ({"agents_at_end": 1}, "open at the end, beside the agents"),
        ({"kept_residents": 1}, "residents that are not on their first connection"),
        ({"unbidden_deaths": 1}, "workers that died unbidden"),
        ({"restarted_instances": 1}, "restarts of instances"),
        ({"recoveries_s": [0.1, None]}, "kills without an heir"),
        ({"slots_not_ready": 1}, "slots not ready at the end"),
        ({"missed_blows": 1}, "blows that met nobody within 10 s"),
        ({"operations": [{"words": "reload", "code": 1, "said": "no"}]}, "commands that failed"),
        ({"exit_code": -9}, "exit code of the pool"),
        ({"left_behind": ["process 1"]}, "processes and files left behind"),
    ],
)
def test_what_we_saw(values: dict[str, Any], name: str) -> None:
    assert broken(findings(**values)) == [name]


def test_an_instance_that_was_killed_takes_its_executions_along_and_nothing_else() -> None:
    counts = Counter({"outcome unknown": 2, "executions": 9})
    assert broken(findings(saw=counts, instances=2, restarted_instances=2)) == []
    assert broken(findings(saw=counts, zygotes=2)) == ["executions of unknown outcome, or lost with their connection"]
    assert broken(findings(instances=1, restarted_instances=2)) == ["restarts of instances"]
    assert broken(findings(instances=1, kept_residents=1)) == ["residents that are not on their first connection"]


def test_a_kill_allows_what_was_booked_and_no_more() -> None:
    counts = Counter({"reset": 3, "lost with their connection": 2, "outcome unknown": 1, "executions": 9})
    killed = {"saw": counts, "kills": 1, "recoveries_s": [0.03], "kept_residents": 0}
    assert broken(findings(**killed, booked_crash=3)) == []
    assert broken(findings(**killed, booked_crash=2)) == ["connections reset"]


def test_quantiles_are_of_nearest_rank() -> None:
    assert quantiles([]) is None
    assert quantiles([7.0]) == {"p50": 7.0, "p99": 7.0, "max": 7.0}
    assert quantiles(range(1, 201)) == {"p50": 100, "p99": 198, "max": 200}


def test_the_document_is_json_and_the_table_tells_the_same() -> None:
    found = findings(
        saw=Counter(refused=1),
        examples=["refused: 127.0.0.1:1"],
        left_out=["2 × reload: this pool has no such command"],
        recoveries_s=[0.0301],
        kills=1,
        calm_ms=[1.0],
        storm_ms=[2.0],
        operations=[{"words": "scale workers=8", "code": 3, "said": "no such pool"}],
        left_behind=["/dev/shm/x"],
    )
    result = json.loads(json.dumps(document(found, judge(found))))
    assert not result["kept"]
    assert result["heir_ready_ms"] == {"p50": 30.1, "p99": 30.1, "max": 30.1}
    assert result["admitted_ms"] == {"calm": dict.fromkeys(("p50", "p99", "max"), 1.0)} | {
        "storm": dict.fromkeys(("p50", "p99", "max"), 2.0)
    }
    text = table(result)
    for part in ("BROKEN connections refused", "2 × reload", "30.1 ms", "/dev/shm/x", "no such pool", "1 × scale"):
        assert part in text
    assert "BROKEN" not in table(document(findings(), judge(findings())))
