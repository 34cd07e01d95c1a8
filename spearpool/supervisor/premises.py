"""What a pool holds while it runs: its directories and locks, listeners, segment and keys.

Opened in the order in which they can fail without leaving anything behind, closed in reverse, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spearpool import __version__
from spearpool.config import Settings
from spearpool.errors import SegmentError
from spearpool.instances.cgroups import PoolGroup, open_pool_group
from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.layout import Layout
from spearpool.metrics.segment import Segment, plan_ring_records
from spearpool.processes import ProcessIdentity, descendants
from spearpool.runtime_dir import Endpoints, PoolDescription, RuntimeDir, StateDir

from .keys import Keys
from .leftovers import sweep_leftovers
from .listeners import Listeners, adopt_listener, listen_locally, open_listeners

__all__ = ["Premises", "open_premises"]


@dataclass(frozen=True)
class Premises:
    """Everything here belongs to the supervisor; workers are given descriptors of their listener, the segment, and the
    Unix socket `agents`: those of tasks with that transport dial it, and all workers accept there side by side. `group`
    is the control group that instances get theirs in, where we may make some."""

    runtime_dir: RuntimeDir
    state: StateDir
    listeners: Listeners
    agents: socket.socket
    group: PoolGroup | None
    segment: Segment
    table: InstancesTable
    keys: Keys
    identity: ProcessIdentity
    epoch: int

    def describe(self, endpoints: Endpoints) -> PoolDescription:
        """What others find the pool by."""
        return PoolDescription(
            name=self.runtime_dir.name,
            pid=self.identity.pid,
            start_ticks=self.identity.start_ticks,
            host=self.listeners.host,
            port=self.listeners.port,
            endpoints=endpoints,
            segment=str(self.segment.path),
            epoch=self.epoch,
            runtime_dir=str(self.runtime_dir.path),
            log_dir=str(self.state.log_path),
            version=__version__,
            workers=len(self.listeners.sockets),
        )

    def renew_client_token(self) -> float:
        """Write a fresh `client.token`; the seconds until the next one (half its life)."""
        now = time.time()
        token, expires = self.keys.for_client("client.token", now)
        self.runtime_dir.write_client_token(token)
        return (expires - now) / 2


@contextlib.contextmanager
def open_premises(
    settings: Settings, runtime_dir: RuntimeDir, state: StateDir, given: socket.socket | None = None
) -> Iterator[Premises]:
    """Take the pool's name, sweep what a killed pool of that name left, and open everything.

    `given` is a socket that listens already, to be the first one; it is ours once the name is taken.
    Raises `PoolError` (name or port taken, directory not ours) or `SegmentError` (memory filesystem too small).
    """
    directory = Path(settings.monitoring.shared_memory_dir)
    identity = ProcessIdentity.of(os.getpid())
    with contextlib.ExitStack() as stack:
        runtime_dir.lock()
        stack.callback(runtime_dir.remove)
        state.lock()
        stack.callback(state.unlock)
        runtime_dir.clear()
        sweep_leftovers(directory, settings.pool.name)
        keys = Keys.open(state, settings.security.token_ttl_s)
        pool = settings.pool
        backlog = settings.connections.backlog
        if given is None:
            listeners = open_listeners(pool.host, pool.port, pool.workers, backlog)
        else:
            listeners = adopt_listener(given, pool.workers, backlog, pool.port)
        stack.callback(listeners.close)
        agents = stack.enter_context(listen_locally(runtime_dir.agents_path, backlog))
        group = open_pool_group(pool.cgroup, pool.name, [identity.pid, *descendants(identity.pid)])
        if group is not None:
            stack.callback(group.close)
        tasks = list(settings.tasks)
        records = plan_ring_records(directory, pool.slots, tasks, settings.monitoring.metrics_buffer_size)
        layout = Layout.plan(pool.slots, tasks, records)
        epoch, segment = _new_segment(directory, pool.name, layout, identity)
        stack.callback(segment.close)
        stack.callback(segment.unlink)
        yield Premises(
            runtime_dir, state, listeners, agents, group, segment, InstancesTable(segment), keys, identity, epoch
        )


def _new_segment(directory: Path, name: str, layout: Layout, owner: ProcessIdentity) -> tuple[int, Segment]:
    """A pool of the same name with another runtime directory may have been started in this very millisecond."""
    epoch = time.time_ns() // 1_000_000
    while True:
        try:
            return epoch, Segment.create(directory, name, layout, epoch, owner.pid, owner.start_ticks)
        except SegmentError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            epoch += 1
