"""What is left of a pool whose supervisor and warden were killed: instances, perhaps, and its segment.

Nearly always the kernel has ended the instances by their parent-death signals. One that lost its signal (by running a
set-user-ID program, say) is found by the table of instances in the dead pool's segment: by pid *and* start time, so
that nobody else is taken for it. What had left an instance before it died is on no record, and not found.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from spearpool.errors import SegmentError
from spearpool.log import get_logger
from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.segment import Segment, orphans
from spearpool.processes import ProcessIdentity, kill_descendants, pidfd_open

__all__ = ["sweep_leftovers"]


def sweep_leftovers(directory: Path, pool: str) -> None:
    """End the instances of earlier pools of that name that were killed, and remove their segments from `directory`."""
    log = get_logger("leftovers")
    for path in orphans(directory, pool):
        for instance in _instances(path):
            log.warning("ended an instance of a pool that was killed", pid=instance.pid)
            _end(instance)
        path.unlink(missing_ok=True)
        log.info("removed the segment of a pool that was killed", path=str(path))


def _instances(path: Path) -> list[ProcessIdentity]:
    """Those in the segment's table that live."""
    try:
        with contextlib.closing(Segment.open(path)) as segment:
            rows = InstancesTable(segment).snapshots()
    except SegmentError:  # it was never finished
        return []
    found = [ProcessIdentity(row.pid, row.start_ticks) for row in rows if row.pid]
    return [process for process in found if process.alive()]


def _end(instance: ProcessIdentity) -> None:
    """Stop it, so that it has no more children; end those it has, which are its own whatever they did; then itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        pidfd = pidfd_open(instance)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            kill_descendants(instance.pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
