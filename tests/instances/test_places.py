from __future__ import annotations

from spearpool.instances.places import Place, Places


def test_a_new_place_was_never_restarted() -> None:
    places = Places()
    assert places.take("a") == Place(0)
    assert places.take("a") == Place(0)


def test_the_next_instance_of_the_task_takes_the_place_and_its_count() -> None:
    places = Places()
    first = places.take("a")
    places.leave("a", first.left(100))
    assert places.take("b") == Place(0), "another task's place is none for it"
    second = places.take("a")
    assert second == Place(1, 100)
    places.leave("a", second.left(250))
    assert places.take("a") == Place(2, 250)
    assert places.take("a") == Place(0), "each place is taken once"


def test_the_place_that_has_been_empty_longest_is_taken_first() -> None:
    places = Places()
    crashing, calm = places.take("a"), places.take("a")
    for now in (10, 20):
        places.leave("a", crashing.left(now))
        crashing = places.take("a")
    places.leave("a", calm.left(30))
    places.leave("a", crashing.left(40))
    assert [places.take("a") for _ in range(2)] == [Place(1, 30), Place(3, 40)]
