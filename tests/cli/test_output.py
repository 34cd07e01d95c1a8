"""Numbers for people."""

from __future__ import annotations

import pytest

from spearpool.cli.output import duration, size, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (75, "75 s"), (720, "12 min"), (3 * 3600, "3.0 h"), (4 * 86_400, "4.0 d")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 * 2**20, "64.0 MiB"), (2**41, "2.0 TiB")],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_table_aligns_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    table("things", ("name", "#count"), [["a", 5], ["b", 12345]])
    title, _, first, second = capsys.readouterr().out.splitlines()
    assert title.strip() == "things"
    assert first.endswith("    5")
    assert second.endswith("12345")
    assert "\x1b" not in first


def test_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    table("things", ("name", "#count"), [["long" * 50, 5]])
    assert "long" * 50 in capsys.readouterr().out
