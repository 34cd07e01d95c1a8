from __future__ import annotations

import os
from pathlib import Path

from spearpool.instances.disk_gauge import DiskGauge, disk_bytes
from tests.conftest import eventually

BLOCK = 1 << 20


def _write(path: Path, size: int = BLOCK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def test_blocks_are_counted_once_and_links_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    first = _write(inside / "a" / "b" / "file")
    os.link(first, inside / "again")
    _write(outside / "large")
    (inside / "link").symlink_to(outside)
    with (inside / "sparse").open("wb") as file:
        file.truncate(100 * BLOCK)
    assert BLOCK <= disk_bytes(inside) < 2 * BLOCK


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert disk_bytes(tmp_path / "nowhere") == 0


def test_it_answers_at_once_and_finds_out_behind(tmp_path: Path) -> None:
    gauge = DiskGauge()
    assert gauge.read(tmp_path) == 0
    _write(tmp_path / "one")
    eventually(lambda: gauge.read(tmp_path) >= BLOCK)
    _write(tmp_path / "two")
    eventually(lambda: gauge.read(tmp_path) >= 2 * BLOCK)
    gauge.forget(tmp_path)
    assert gauge.read(tmp_path) == 0
    gauge.forget(tmp_path / "never asked for")
