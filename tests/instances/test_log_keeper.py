"""Logs are looked at when the kernel says that they are written to, and not before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from spearpool.instances import log_keeper
from spearpool.instances.log_keeper import POLL_S, LogKeeper
from spearpool.instances.logs import InstanceLog

MAX_BYTES = 1000


class Watched(InstanceLog):
    """Counts how often it is looked at."""

    looks = 0

    def has_grown(self) -> bool:
        self.looks += 1
        return super().has_grown()


class Keeping:
    """A keeper, its time, and logs with their writers."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.stack = stack
        self.keeper = LogKeeper()
        stack.callback(self.keeper.close)
        self.now = 1.0

    def log(self, name: str = "t-0-1") -> tuple[Watched, int]:
        log = Watched(self.directory, name, MAX_BYTES)
        fd = log.open()
        self.stack.callback(os.close, fd)
        self.keeper.follow(log)
        return log, fd

    def tick(self, count: int = 1, after_s: float = 0.05) -> None:
        for _ in range(count):
            self.now += after_s
            self.keeper.tick(self.now)


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Keeping]:
    with ExitStack() as stack:
        yield Keeping(tmp_path, stack)


def test_a_log_that_rests_is_left_alone_until_it_is_written_to(keeping: Keeping) -> None:
    log, fd = keeping.log()
    keeping.tick()
    looks = log.looks
    keeping.tick(100)
    assert log.looks == looks
    os.write(fd, b"x")
    keeping.tick()
    assert log.looks > looks
    keeping.tick(2)
    looks = log.looks
    keeping.tick(100)
    assert log.looks == looks, "it rests again"


def test_a_flood_is_met_at_every_tick(keeping: Keeping) -> None:
    log, fd = keeping.log()
    keeping.tick()
    rotated = log.path.with_name(f"{log.path.name}.1")
    for _ in range(50):
        os.write(fd, b"y" * 600)
        keeping.tick()
        assert log.path.stat().st_size <= MAX_BYTES
        assert not rotated.exists() or rotated.stat().st_size <= MAX_BYTES
    assert rotated.exists()


def test_what_is_written_between_a_look_and_the_watch_is_seen(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, fd = keeping.log()
    arm = LogKeeper._arm

    def late(keeper: LogKeeper, which: InstanceLog) -> bool:
        os.write(fd, b"z" * (MAX_BYTES + 1))
        monkeypatch.setattr(LogKeeper, "_arm", arm)
        return arm(keeper, which)

    monkeypatch.setattr(LogKeeper, "_arm", late)
    keeping.tick()
    assert log.path.stat().st_size == 0


def test_who_has_ended_is_not_looked_at(keeping: Keeping) -> None:
    log, fd = keeping.log()
    other, _ = keeping.log("t-1-1")
    keeping.tick()
    keeping.keeper.forget(log)
    keeping.keeper.forget(log)
    looks = log.looks, other.looks
    os.write(fd, b"x")
    keeping.tick(3)
    assert (log.looks, other.looks) == looks


def test_a_log_that_is_not_there_yet_is_waited_for(keeping: Keeping) -> None:
    log = Watched(keeping.directory, "t-9-1", MAX_BYTES)
    keeping.keeper.follow(log)
    keeping.tick(3)
    fd = log.open()
    keeping.stack.callback(os.close, fd)
    keeping.tick(1, POLL_S)
    keeping.tick(3)
    looks = log.looks
    os.write(fd, b"x")
    keeping.tick()
    assert log.looks > looks


@pytest.mark.parametrize("refuses", ["inotify_init1", "inotify_add_watch"])
def test_without_watches_logs_are_polled(refuses: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's watches and instances of inotify are limited."""
    monkeypatch.setattr(log_keeper._LIBC, refuses, lambda *_: -1)
    with ExitStack() as stack:
        keeping = Keeping(tmp_path, stack)
        log, fd = keeping.log()
        keeping.tick()
        looks = log.looks
        os.write(fd, b"x" * (MAX_BYTES + 1))
        keeping.tick(1, POLL_S / 2)
        assert log.looks == looks
        keeping.tick(1, POLL_S)
        assert log.path.stat().st_size == 0


def test_when_the_kernel_has_lost_count_all_are_looked_at(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = [keeping.log(f"t-{row}-1")[0] for row in range(3)]
    keeping.tick()
    looks = [log.looks for log in logs]
    overflow = log_keeper._EVENT.pack(-1, log_keeper._IN_Q_OVERFLOW, 0, 0)
    answers = iter([overflow])

    def read(fd: int, size: int) -> bytes:
        for answer in answers:
            return answer
        raise BlockingIOError

    monkeypatch.setattr(os, "read", read)
    keeping.tick()
    assert all(log.looks > before for log, before in zip(logs, looks, strict=True))
