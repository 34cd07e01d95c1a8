"""The bus: live metrics and commands of a pool over ZeroMQ, for other processes of the same user.

`Bus` is the supervisor's end; `Subscriber` and `ask` are everybody else's. Importing this does not load numpy.
"""

from __future__ import annotations

from .ask import Handler, ask
from .bus import Bus
from .items import Account, Counters, Event, Gap, Heartbeat, InstanceEvent, InstanceState, Item, WorkerState, plain
from .snapshot import Snapshot, ask_snapshot
from .sockets import PoolGone
from .subscriber import KINDS, Subscriber

__all__ = [
    "KINDS",
    "Account",
    "Bus",
    "Counters",
    "Event",
    "Gap",
    "Handler",
    "Heartbeat",
    "InstanceEvent",
    "InstanceState",
    "Item",
    "PoolGone",
    "Snapshot",
    "Subscriber",
    "WorkerState",
    "ask",
    "ask_snapshot",
    "plain",
]
