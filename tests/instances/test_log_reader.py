"""What is read of a log that grows, is rotated and is emptied meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spearpool.instances.log_reader import LogFollower, last_lines, names_of_logs, newest_log
from spearpool.instances.logs import InstanceLog


def _write(directory: Path, name: str, text: bytes, age: int = 0) -> None:
    path = directory / name
    path.write_bytes(text)
    os.utime(path, (1000 - age, 1000 - age))


def test_whose_logs_there_are_newest_first(tmp_path: Path) -> None:
    for age, name in enumerate(["a-0-1.log", "a-b-3-2.log", "_runner.log", "a-zygote.log", "a-0-2.log"]):
        _write(tmp_path, name, b"", age)
    _write(tmp_path, "a-9-9.log.1", b"")
    assert names_of_logs(tmp_path) == ["a-0-1", "a-b-3-2", "_runner", "a-zygote", "a-0-2"]
    assert [newest_log(tmp_path, task) for task in ("a", "a-b", "b", "")] == ["a-0-1", "a-b-3-2", None, None]
    assert names_of_logs(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("count", "lines"), [(0, []), (1, [b"5"]), (3, [b"3", b"4", b"5"]), (None, [b"1", b"2", b"3", b"4", b"5"])]
)
def test_last_lines_go_back_into_the_older_file(tmp_path: Path, count: int | None, lines: list[bytes]) -> None:
    _write(tmp_path, "a-0-1.log", b"4\n5")
    _write(tmp_path, "a-0-1.log.1", b"1\n2\n3\n")
    assert list(last_lines(tmp_path, "a-0-1", count)) == lines


def test_a_line_that_was_cut_by_rotation_is_one(tmp_path: Path) -> None:
    _write(tmp_path, "a-0-1.log", b"f\nend\n")
    _write(tmp_path, "a-0-1.log.1", b"begin\nhal")
    assert list(last_lines(tmp_path, "a-0-1", None)) == [b"begin", b"half", b"end"]


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(last_lines(tmp_path, "a-0-1", 1))


def test_a_follower_reads_on_through_rotations(tmp_path: Path) -> None:
    log = InstanceLog(tmp_path, "a-0-1", max_bytes=2000)
    fd = log.open()
    os.write(fd, b"before\n")
    follower = LogFollower(tmp_path, "a-0-1")
    assert follower.read() == []
    seen: list[bytes] = []
    for number in range(1000):
        os.write(fd, b"line %d\n" % number)
        if number % 7 == 0:
            seen += follower.read()
        if number % 11 == 0:
            log.rotate()
    os.write(fd, b"no end")
    seen += follower.read()
    assert seen == [b"line %d" % number for number in range(1000)]
    assert follower.read(final=True) == [b"no end"]
    assert not follower.lost
    os.close(fd)


def test_what_was_thrown_away_unread_is_told(tmp_path: Path) -> None:
    log = InstanceLog(tmp_path, "a-0-1", max_bytes=100)
    fd = log.open()
    os.write(fd, b"known\n")
    follower = LogFollower(tmp_path, "a-0-1")
    for number in range(100):
        os.write(fd, b"line %d\n" % number)
    log.rotate()
    os.write(fd, b"after\n")
    lines = follower.read()
    assert follower.lost
    assert lines[-2:] == [b"line 99", b"after"]
    os.close(fd)


def test_a_log_that_is_deleted_ends_quietly(tmp_path: Path) -> None:
    _write(tmp_path, "a-0-1.log", b"x\n")
    follower = LogFollower(tmp_path, "a-0-1")
    (tmp_path / "a-0-1.log").unlink()
    assert follower.read(final=True) == []
