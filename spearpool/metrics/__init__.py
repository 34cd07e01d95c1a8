"""Live metrics of a pool, out of shared memory.

The public names here are those of the writing side and of plain readers; they need nothing but the standard library.
The vectorised reader is `spearpool.metrics.rollup` (numpy), the bus `spearpool.metrics.bus` (zmq).
"""

from __future__ import annotations

from .instances_table import InstanceRow, InstancesTable, LimitState
from .layout import Layout, SeatState
from .monitoring import MonitoringService
from .seat import Board, Loss, Seat
from .segment import Segment

__all__ = [
    "Board",
    "InstanceRow",
    "InstancesTable",
    "Layout",
    "LimitState",
    "Loss",
    "MonitoringService",
    "Seat",
    "SeatState",
    "Segment",
]
