from __future__ import annotations

import pytest

from spearpool.supervisor.budget import HOST_RESERVE_BYTES, Budget, Need

NOTHING = Need()


def test_places_are_counted() -> None:
    budget = Budget(instances=2)
    for _ in range(2):
        assert budget.shortage(NOTHING) == ""
        budget.take(NOTHING)
    assert budget.shortage(NOTHING) == "instances: all 2 places are taken (budget.instances)"
    budget.give_back(NOTHING)
    assert budget.shortage(NOTHING) == ""


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (Need(memory_bytes=60), "memory: 60 bytes are wanted, and 60 of 100 are reserved (budget.memory_bytes)"),
        (Need(cpu_cores=0.8), "CPU: 0.8 cores are wanted, and 0.8 of 1.5 are reserved (budget.cpu_cores)"),
    ],
)
def test_what_is_scarce_is_named(need: Need, words: str) -> None:
    budget = Budget(memory_bytes=100, cpu_cores=1.5)
    assert budget.shortage(need) == ""
    budget.take(need)
    assert budget.shortage(need) == words
    assert budget.shortage(NOTHING) == "", "without limits nothing is reserved"
    budget.give_back(need)
    assert budget.shortage(need) == ""


def test_tenths_of_cores_add_up() -> None:
    budget = Budget(cpu_cores=1.0)
    for _ in range(10):
        assert budget.shortage(Need(cpu_cores=0.1)) == ""
        budget.take(Need(cpu_cores=0.1))
    assert budget.shortage(Need(cpu_cores=0.1)) != ""


def test_the_host_has_its_own_say() -> None:
    assert "the host has only 1000 bytes free" in Budget().shortage(NOTHING, host_free_bytes=1000)
    assert Budget().shortage(NOTHING, host_free_bytes=HOST_RESERVE_BYTES) == ""
