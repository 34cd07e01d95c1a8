"""A pool for the metrics commands: a living bus that `pool.json` points to, without workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from spearpool.processes import ProcessIdentity
from spearpool.runtime_dir import PoolDescription, RuntimeDir
from tests.conftest import RuntimeEnv
from tests.metrics.bus.living import LivingBus, living_bus

__all__ = ["metrics_pool"]


@contextmanager
def metrics_pool(env: RuntimeEnv, name: str = "default") -> Iterator[LivingBus]:
    directory = RuntimeDir.locate(name, env.environ)
    directory.create()
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    with living_bus(directory.path) as living:
        pool = PoolDescription(
            name=name,
            pid=me.pid,
            start_ticks=me.start_ticks,
            host="127.0.0.1",
            port=9100,
            endpoints=living.bus.endpoints,
            segment=str(living.segment.path),
            epoch=living.segment.epoch,
            runtime_dir=str(directory.path),
            log_dir="/nowhere/logs",
            version="0",
            workers=2,
        )
        directory.write_pool(pool)
        yield living
