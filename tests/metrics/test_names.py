from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spearpool.metrics.names import NameTable, fit, read_name, write_name
from spearpool.metrics.vocabulary import (
    NAME_BYTES,
)


class Memory:
    """Room for a few names, and tables over it as different processes would have them."""

    def __init__(self, places: int = 4) -> None:
        self.head = memoryview(bytearray(16)).cast("q")
        self.entries = memoryview(bytearray(places * NAME_BYTES))

    def table(self) -> NameTable:
        return NameTable(self.head, self.entries)


def test_names_get_places_in_the_order_of_their_first_use() -> None:
    table = Memory().table()
    assert [table.add(name) for name in ("b", "a", "b", "c")] == [0, 1, 0, 2]
    assert table.names() == ["b", "a", "c"]
    assert (table.find("a"), table.find("z")) == (1, None)


def test_a_full_table_refuses_and_counts() -> None:
    table = Memory(2).table()
    assert [table.add(name) for name in ("a", "b", "c", "a", "d")] == [0, 1, None, 0, None]
    assert (table.names(), table.refused) == (["a", "b"], 2)


def test_a_reader_follows_and_a_successor_continues() -> None:
    memory = Memory()
    writer, reader = memory.table(), memory.table()
    assert reader.names() == []
    writer.add("a")
    assert reader.find("a") == 0
    writer.add("b")
    assert (reader.find("b"), reader.names()) == (1, ["a", "b"])
    successor = memory.table()
    assert [successor.add(name) for name in ("b", "c")] == [1, 2]


def test_a_name_is_there_before_it_is_counted() -> None:
    memory = Memory()
    write_name(memory.entries, 0, "unfinished")  # its writer was killed before it stored the count
    assert memory.table().names() == []
    assert memory.table().add("next") == 0
    assert memory.table().names() == ["next"]


def test_a_damaged_count_stays_within_the_table() -> None:
    memory = Memory(2)
    for damaged, length in ((10**9, 2), (-1, 0)):
        memory.head[0] = damaged
        assert len(memory.table()) == len(memory.table().names()) == length


@given(st.text())
def test_any_text_can_be_kept(name: str) -> None:
    memory = Memory()
    assert memory.table().add(name) == 0
    assert memory.table().names() == [fit(name)]
    assert memory.table().find(name) == 0
    assert len(fit(name).encode()) < NAME_BYTES


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=15))
def test_a_short_name_is_kept_as_it_is(name: str) -> None:
    entries = memoryview(bytearray(NAME_BYTES))
    write_name(entries, 0, name)
    assert read_name(entries, 0) == name
