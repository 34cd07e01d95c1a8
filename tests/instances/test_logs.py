from __future__ import annotations

import os
import stat
from pathlib import Path

from spearpool.instances.logs import InstanceLog, prune_logs


def write(log: InstanceLog, data: bytes) -> None:
    fd = log.open()
    os.write(fd, data)
    os.close(fd)


def test_a_process_appends_to_a_private_file(tmp_path: Path) -> None:
    log = InstanceLog(tmp_path, "thumb-0-1")
    write(log, b"one\n")
    write(log, b"two\n")
    assert log.path == tmp_path / "thumb-0-1.log"
    assert log.path.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_the_tail_is_of_this_process_alone(tmp_path: Path) -> None:
    write(InstanceLog(tmp_path, "thumb-0-1"), b"an earlier run\n")
    log = InstanceLog(tmp_path, "thumb-0-1")
    fd = log.open()
    assert log.tail() == ""
    os.write(fd, b"\n".join(b"line %d" % number for number in range(20)) + b"\n\n")
    assert log.tail(3) == "line 17\nline 18\nline 19"
    os.write(fd, b"\xff broken \xc3")
    assert log.tail(1) == "\ufffd broken \ufffd"
    os.close(fd)


def test_the_tail_of_a_flood_is_short(tmp_path: Path) -> None:
    log = InstanceLog(tmp_path, "thumb-0-1")
    fd = log.open()
    os.write(fd, b"x" * 100_000)
    os.close(fd)
    assert len(log.tail()) == 4096


def test_the_tail_of_no_file(tmp_path: Path) -> None:
    assert InstanceLog(tmp_path, "nobody-0-1").tail() == ""


def test_rotation_empties_the_file_under_its_writer(tmp_path: Path) -> None:
    log = InstanceLog(tmp_path, "thumb-0-1", max_bytes=16)
    write(log, b"before\n")
    fd = log.open()
    assert not log.rotate()
    os.write(fd, b"much more\n")
    assert log.rotate()
    assert (tmp_path / "thumb-0-1.log.1").read_bytes() == b"much more\n", "whole lines"
    assert log.path.read_bytes() == b""
    os.write(fd, b"after\n")
    assert log.path.read_bytes() == b"after\n", "no hole: the writer appends"
    assert log.tail() == "after"
    assert not log.rotate()
    os.write(fd, b"and again, on\n")
    assert log.rotate()
    assert (tmp_path / "thumb-0-1.log.1").read_bytes() == b"and again, on\n"
    os.close(fd)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thumb-0-1.log").symlink_to(tmp_path / "elsewhere")
    try:
        InstanceLog(tmp_path, "thumb-0-1").open()
    except OSError:
        pass
    else:
        raise AssertionError("followed")
    assert not (tmp_path / "elsewhere").exists()


def test_pruning_keeps_the_newest_and_those_alive(tmp_path: Path) -> None:
    names = [f"a-0-{number}.log" for number in range(6)]
    others = ["a-1-0-1.log", "a-zygote.log", "b-0-1.log", "a-0-1.txt"]
    for age, name in enumerate(reversed(names)):
        path = tmp_path / name
        path.write_text("")
        os.utime(path, (1000 - age, 1000 - age))
    for name in others:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1, 1))
    prune_logs(tmp_path, "a", alive={"a-0-0"}, keep=2)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a-0-0.log", "a-0-4.log", "a-0-5.log", *others}


def test_of_a_flood_the_last_part_is_kept_from_the_beginning_of_a_line(tmp_path: Path) -> None:
    log = InstanceLog(tmp_path, "thumb-0-1", max_bytes=1000)
    write(log, b"".join(b"line %d\n" % number for number in range(100_000)))
    assert log.rotate()
    kept = (tmp_path / "thumb-0-1.log.1").read_bytes()
    assert 980 < len(kept) <= 1000
    assert kept.startswith(b"line ")
    assert kept.endswith(b"line 99999\n")
    assert list(tmp_path.glob("*.part")) == []


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    log = InstanceLog(tmp_path, "thumb-0-1", max_bytes=1000)
    write(log, b"x" * 1_000_000)
    assert log.rotate()
    assert (tmp_path / "thumb-0-1.log.1").read_bytes() == b"x" * 1000


def test_it_is_rotated_when_it_has_grown_too_large(tmp_path: Path) -> None:
    log = InstanceLog(tmp_path, "thumb-0-1", max_bytes=100)
    fd = log.open()
    assert not log.has_grown()
    os.write(fd, b"x" * 60)
    assert (log.has_grown(), log.has_grown()) == (True, False)
    os.write(fd, b"x" * 60)
    assert (log.has_grown(), log.has_grown()) == (True, False)
    assert (log.path.stat().st_size, (tmp_path / "thumb-0-1.log.1").stat().st_size) == (0, 100)
    os.close(fd)


def test_a_log_that_is_gone_is_no_trouble(tmp_path: Path) -> None:
    assert not InstanceLog(tmp_path, "nobody-0-1").has_grown()
