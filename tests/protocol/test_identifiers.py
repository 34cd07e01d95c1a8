"""Names of connections, instances and executions: packing into words and text, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.protocol.identifiers import ConnectionId, InstanceId, execution_id, execution_incarnation

words = st.integers(0, 2**32 - 1)


@given(st.integers(0, 255), st.integers(0, 2**24 - 1), words)
def test_a_connection_id_packs_into_one_word(slot: int, incarnation: int, counter: int) -> None:
    name = ConnectionId(slot, incarnation, counter)
    assert 0 <= name.pack() < 2**64
    assert ConnectionId.unpack(name.pack()) == name


def test_a_connection_id_wraps_inside_its_own_bits() -> None:
    assert ConnectionId.unpack(ConnectionId(7, 2**24 + 3, 2**32 + 5).pack()) == ConnectionId(7, 3, 5)


def test_a_connection_id_reads_as_text() -> None:
    assert str(ConnectionId(3, 1, 42)) == "c-3-1-42"


@given(words, words)
def test_an_instance_id_packs_into_one_word(row: int, generation: int) -> None:
    name = InstanceId(row, generation)
    assert 0 <= name.pack() < 2**64
    assert InstanceId.unpack(name.pack()) == name


def test_an_instance_id_of_a_generation_is_never_none() -> None:
    assert InstanceId(0, 1).pack() != 0


def test_an_instance_is_named_by_task_row_and_generation() -> None:
    assert InstanceId(4, 9).name("thumb-2") == "thumb-2-4-9"


@given(words, st.integers(0, 127), words, words)
def test_an_execution_id_names_the_worker_that_accepted_it(
    epoch: int, slot: int, incarnation: int, counter: int
) -> None:
    assert execution_incarnation(execution_id(epoch, slot, incarnation, counter)) == incarnation


def test_execution_ids_of_two_runs_differ() -> None:
    assert execution_id(0xAB, 2, 1, 77) == "2-ab-1-77"
    assert execution_id(1, 2, 1, 77) != execution_id(2, 2, 1, 77)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "7",
        "x-1-1-1",
        "-1-a-1-1",
        "1234-a-1-1",
        "²-a-1-1",
        "1-a-x-1",
        "1-a-12345678901-1",
        "1-a-1",
        "1-a-1-1-1",
        "job",
    ],
)
def test_what_is_not_an_execution_id_of_ours_names_no_worker(text: str) -> None:
    assert execution_incarnation(text) is None
