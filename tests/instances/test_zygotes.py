from __future__ import annotations

import os
from pathlib import Path

import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.launch import ForkSpec, LaunchSpec, ZygoteSpec
from spearpool.instances.logs import InstanceLog
from spearpool.instances.zygotes import Zygotes

SPEC = ZygoteSpec("shop:thumb", {}, "/")
PENDING = LaunchSpec([], {}, "/", ResourceLimits())


class Recorder:
    """A launcher that takes notes; it writes its name into each log to show that the descriptor is good."""

    def __init__(self) -> None:
        self.launched: list[tuple[int, object]] = []
        self.killed: list[int] = []

    def launch(self, launch: int, spec: LaunchSpec | ZygoteSpec | ForkSpec, log_fd: int) -> None:
        os.write(log_fd, b"here\n")
        self.launched.append((launch, spec))

    def signal_group(self, launch: int, signum: int) -> None:
        raise AssertionError("zygotes are killed")

    def signal_tree(self, launch: int, signum: int) -> None:
        raise AssertionError("zygotes are killed")

    def kill_tree(self, launch: int) -> None:
        self.killed.append(launch)


def make() -> tuple[Recorder, Zygotes]:
    recorder = Recorder()
    return recorder, Zygotes(recorder, iter(range(7, 99)).__next__)


def test_one_per_key_started_on_first_use(tmp_path: Path) -> None:
    recorder, zygotes = make()
    log = InstanceLog(tmp_path, "thumb-zygote")
    first = zygotes.get("thumb", SPEC, log)
    assert zygotes.get("thumb", SPEC, log) is first
    other = zygotes.get("", SPEC, InstanceLog(tmp_path, "_runner"))
    assert recorder.launched == [(7, SPEC), (8, SPEC)]
    assert zygotes.find(7) is first
    assert zygotes.find(8) is other
    assert zygotes.find(9) is None
    assert len(zygotes) == 2
    assert log.path.read_bytes() == b"here\n"


def test_one_that_is_gone_is_replaced(tmp_path: Path) -> None:
    recorder, zygotes = make()
    log = InstanceLog(tmp_path, "thumb-zygote")
    zygotes.remove(zygotes.get("thumb", SPEC, log))
    assert len(zygotes) == 0
    assert zygotes.get("thumb", SPEC, log).launch == 8
    zygotes.kill_all()
    assert recorder.killed == [8]


def test_who_waits_for_which(tmp_path: Path) -> None:
    _, zygotes = make()
    zygote = zygotes.get("thumb", SPEC, InstanceLog(tmp_path, "thumb-zygote"))
    zygote.waiting[50] = PENDING
    assert zygotes.awaited_by(50) is zygote
    assert zygotes.awaited_by(51) is None


def test_without_a_log_nothing_is_started(tmp_path: Path) -> None:
    recorder, zygotes = make()
    with pytest.raises(FileNotFoundError):
        zygotes.get("thumb", SPEC, InstanceLog(tmp_path / "nowhere", "thumb-zygote"))
    assert len(zygotes) == len(recorder.launched) == 0
