from __future__ import annotations

import os
import signal
from pathlib import Path

from spearpool.config import ResourceLimits
from spearpool.instances.disk_gauge import DiskGauge
from spearpool.instances.watching import Watching
from spearpool.metrics.vocabulary import LIMITS, LimitLevel
from spearpool.processes import ProcessIdentity


def test_what_is_enforced_and_what_is_watched_come_together(tmp_path: Path) -> None:
    me = ProcessIdentity.of(os.getpid())
    limits = ResourceLimits(nice=os.getpriority(os.PRIO_PROCESS, 0), processes=100_000, file_size_bytes=5)
    watch = Watching(me, limits, tmp_path, DiskGauge())
    readings = {LIMITS[reading.index]: reading.level for reading in watch.sample(0.0)}
    assert readings == {
        "nice": LimitLevel.ENFORCED,
        "processes": LimitLevel.WATCHED,
        "file_size_bytes": LimitLevel.WATCHED,  # nobody has put it in force for this very process
    }
    assert watch.take_breach() == ""
    assert watch.ended(signal.SIGXFSZ) == "a file grew to its limit file_size_bytes = 5"
    assert {LIMITS[reading.index]: reading.breaches for reading in watch.final()} == {
        "nice": 0,
        "processes": 0,
        "file_size_bytes": 2,  # loosened (this process never had it), and met
    }


def test_a_breach_is_told_once(tmp_path: Path) -> None:
    watch = Watching(ProcessIdentity.of(os.getpid()), ResourceLimits(processes=1), tmp_path, DiskGauge())
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)  # until the test closes its end
        os._exit(0)
    try:
        watch.sample(0.0)
        assert watch.take_breach().startswith("it exceeded its limit processes = 1 (with ")
        assert watch.take_breach() == ""
    finally:
        os.close(write_end)
        os.waitpid(child, 0)
        os.close(read_end)
