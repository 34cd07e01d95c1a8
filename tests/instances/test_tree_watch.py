"""Watched limits of real trees of processes: how much is used, and when that is too much."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.disk_gauge import DiskGauge
from spearpool.instances.tree_watch import CPU_WINDOW_S, TreeWatch
from spearpool.metrics.vocabulary import LIMITS, LimitLevel
from spearpool.processes import kill_tree
from tests.conftest import eventually

pytestmark = pytest.mark.process

FAMILY = """
import subprocess, sys
child = "import time; time.sleep(600)"
for _ in range(int(sys.argv[1])):
    subprocess.Popen([sys.executable, "-S", "-c", child])
print("there", flush=True)
while len(sys.argv) > 2: pass
input()
"""


@contextlib.contextmanager
def family(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A process with so many children; with a second word it is busy."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", FAMILY, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        kill_tree(process.pid)
        process.communicate()


def test_what_nobody_limits_is_not_looked_at(tmp_path: Path) -> None:
    watch = TreeWatch(1, ResourceLimits(memory_bytes=1), tmp_path, DiskGauge())
    assert (watch.sample(0.0), watch.final(), watch.breach) == ([], [], "")


def test_processes_are_counted_over_the_whole_tree(tmp_path: Path) -> None:
    with family("3") as process:
        watch = TreeWatch(process.pid, ResourceLimits(processes=4), tmp_path, DiskGauge())
        (reading,) = watch.sample(0.0)
        assert (reading.index, reading.value, reading.level) == (LIMITS.index("processes"), 4, LimitLevel.WATCHED)
        assert (reading.usage, reading.breaches, watch.breach) == (4, 0, "")
        tight = TreeWatch(process.pid, ResourceLimits(processes=3), tmp_path, DiskGauge())
        (reading,) = tight.sample(0.0)
        assert (reading.breaches, tight.breach) == (1, "it exceeded its limit processes = 3 (with 4)")
        (reading,) = tight.sample(1.0)
        assert (reading.breaches, tight.breach) == (1, ""), "once for each time it happens"
        assert tight.final() == [reading]


def test_cpu_use_is_an_average_and_judged_over_a_whole_window(tmp_path: Path) -> None:
    """One busy process among idle ones; the clock is ours, but for the kernel's own."""
    with family("1", "busy") as process:
        begun = time.monotonic()
        watch = TreeWatch(process.pid, ResourceLimits(cpu_cores=0.01), tmp_path, DiskGauge())
        (first,) = watch.sample(begun)
        assert (first.value, first.usage) == (10, 0)
        time.sleep(0.3)
        (second,) = watch.sample(time.monotonic())
        assert second.usage > 50, "thousandths of a CPU"
        assert watch.breach == "", "not for a whole window yet"
        watch.sample(begun + CPU_WINDOW_S)
        assert watch.breach.startswith("it exceeded its limit cpu_cores = 0.01 (with 0.")
        generous = TreeWatch(process.pid, ResourceLimits(cpu_cores=64.0), tmp_path, DiskGauge())
        readings = [generous.sample(now)[0] for now in (0.0, CPU_WINDOW_S, 2 * CPU_WINDOW_S)]
        assert (readings[-1].value, readings[-1].breaches) == (64_000, 0)


def test_room_on_disk(tmp_path: Path) -> None:
    watch = TreeWatch(1, ResourceLimits(disk_bytes=100_000), tmp_path, DiskGauge())
    watch.sample(0.0)
    (tmp_path / "file").write_bytes(bytes(1 << 20))

    def breached() -> str:
        watch.sample(0.0)
        return watch.breach

    assert eventually(breached).startswith("it exceeded its limit disk_bytes = 100000 (with 1")
    assert watch.final()[0].breaches == 1
