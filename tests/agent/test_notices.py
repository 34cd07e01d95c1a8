from __future__ import annotations

from collections.abc import Iterator

import pytest

from spearpool.agent import notices, on_signal


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[None]:
    before = list(notices._listeners)
    notices._listeners.clear()
    yield
    notices._listeners[:] = before


def test_everybody_who_listens_hears_in_order() -> None:
    heard: list[tuple[int, str]] = []

    @on_signal
    def first(name: str) -> None:
        heard.append((1, name))

    on_signal(lambda name: heard.append((2, name)))
    notices.deliver("reload")
    assert heard == [(1, "reload"), (2, "reload")]
    first("called as what it is")
    assert heard[-1] == (1, "called as what it is")


def test_what_a_listener_raises_is_logged_and_the_next_one_hears(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []

    @on_signal
    def wrong(_name: str) -> None:
        raise ValueError("no such model")

    @on_signal
    def ends(_name: str) -> None:
        raise SystemExit(3)

    on_signal(heard.append)
    notices.deliver("reload")
    assert heard == ["reload"]
    assert "ValueError: no such model" in capsys.readouterr().err


def test_names_of_spearpools_own_are_nobodys() -> None:
    heard: list[str] = []
    on_signal(heard.append)
    notices.deliver("@nudge:t")
    assert heard == []
