"""What `metrics tail` prints for people: a line per item, with colour where the output is a terminal."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from spearpool.metrics.bus import (
    Account,
    Counters,
    Event,
    Gap,
    Heartbeat,
    InstanceEvent,
    InstanceState,
    Item,
    WorkerState,
)

from .output import size

__all__ = ["LinePrinter", "short_time"]

_EVENT_STYLES = {
    "authenticated": "green",
    "authentication_failed": "red",
    "heartbeat_timeout": "red",
    "error": "red",
    "execution_failed": "red",
    "execution_lost": "red",
    "worker_exited": "red",
    "worker_killed": "red",
    "connected": "cyan",
    "disconnected": "cyan",
}
_STAGE_STYLES = {"ready": "green", "failed": "red", "restarted": "yellow"}


class LinePrinter:
    """Lines for people. Counters are shown by what changed since the last line of the same worker.

    Without `states`, instances are shown by what happens to them alone, not by how they are at every change.
    """

    def __init__(self, *, states: bool = True) -> None:
        self._console = Console(highlight=False)
        self._states = states
        self._before: dict[int | None, dict[str, int]] = {}

    def print(self, item: Item) -> bool:
        """Whether there was anything to print."""
        line = self._line(item)
        if line is not None:
            self._console.print(line, soft_wrap=True)
        return line is not None

    def _line(self, item: Item) -> Text | None:
        match item:
            case Event():
                return _line(item.time, item.worker, item.type, _EVENT_STYLES.get(item.type, ""), _event_words(item))
            case InstanceEvent():
                style = _STAGE_STYLES.get(item.stage, "magenta")
                return _line(item.time, item.worker, f"instance_{item.stage}", style, _stage_words(item))
            case Counters():
                words = self._changes(item)
                return _line(item.time, item.worker, "counters", "blue", words) if words else None
            case WorkerState():
                return _line(item.time, item.worker, "worker", "magenta", _row_words(item.row))
            case InstanceState():
                words = _row_words(item.row)
                return _line(item.time, item.row.get("worker"), "instance", "magenta", words) if self._states else None
            case Heartbeat():
                return _line(item.time, None, "heartbeat", "dim", "")
            case Gap():
                words = f"{item.topic} from {item.seq}: {item.lost_ring} lost in the ring, {item.lost_bus} on the bus"
                return _line(item.time, item.worker, "gap", "bold red", words)
            case Account():
                return _account_line(item)

    def _changes(self, item: Counters) -> str:
        now = dict(item.values)
        for task, stages in item.tasks.items():
            now |= {f"{task}.{stage}": count for stage, count in stages.items()}
        before = self._before.get(item.worker, {})
        self._before[item.worker] = now
        changes = {name: now.get(name, 0) - before.get(name, 0) for name in {**before, **now}}
        return "  ".join(f"{name} {now.get(name, 0)} ({change:+})" for name, change in changes.items() if change)


def _line(moment: float, worker: int | None, title: str, style: str, words: str) -> Text:
    clock = datetime.fromtimestamp(moment).strftime("%H:%M:%S.%f")[:-3]  # noqa: DTZ006 - the reader's own time
    place = "-" if worker is None else f"w{worker}"
    return Text.assemble((clock, "dim"), f"  {place:<4} ", (f"{title:<21} ", style), words)


def _account_line(account: Account) -> Text:
    lost = account.lost_ring + account.lost_bus
    words = f"{account.received} events received, {account.lost_ring} lost in rings, {account.lost_bus} lost on the bus"
    return Text(f"account: {words}", "bold yellow" if lost else "bold green")


def _event_words(event: Event) -> str:
    told = (
        event.instance_id,
        event.connection_id,
        event.direction,
        event.message_type,
        None if event.size_bytes is None else size(event.size_bytes),
        None if event.duration_s is None else short_time(event.duration_s),
        event.task if event.connection_id is None else None,
        event.reason,
        None if event.code is None else f"code {event.code}",
    )
    return "  ".join(word for word in told if word)


def _stage_words(event: InstanceEvent) -> str:
    told = (
        event.instance_id,
        event.connection_id,
        None if event.duration_s is None else short_time(event.duration_s),
        event.reason,
        None if event.restarts is None else f"restarts {event.restarts}",
    )
    return "  ".join(word for word in told if word)


def short_time(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.0f} ns"


def _row_words(row: dict[str, Any]) -> str:
    return "  ".join(f"{key} {value}" for key, value in row.items() if isinstance(value, str | int | float))
