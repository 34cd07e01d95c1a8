"""How far a reload or a scaling has got, slot by slot, for whoever asked for it and wants to watch. Pure.

The roster carries it out; its actions, and what workers say, are noted here. One that has ended says nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from . import roster_moves as moves
from .slot import SlotView

__all__ = ["Change", "Stage"]


class Stage(Enum):
    """Where a slot stands."""

    WAITING = "waiting"
    STARTING = "starting"
    EMPTYING = "emptying"
    DONE = "done"


@dataclass(slots=True)
class _Row:
    """`pid` is whom it replaces or removes, `heir_pid` who comes; either may be nobody."""

    slot: int
    pid: int | None
    incarnation: int | None
    stage: Stage = Stage.WAITING
    heir_pid: int | None = None
    handed_over: int = 0
    closed: int = 0
    awaited: int = 0


def _rows(slots: Iterable[SlotView]) -> list[_Row]:
    return [_Row(view.slot, view.pid, view.incarnation) for view in slots]


class Change:
    """One reload or scaling. `number` tells it from others; `workers` is how many there will be; `tasks` says how many
    instances of each task are still to be replaced, None when that is done."""

    def __init__(self, number: int, kind: str, workers: int, rows: Iterable[_Row]) -> None:
        self.number = number
        self.kind = kind
        self.workers = workers
        self.error = ""
        self.tasks: dict[str, int] | None = None
        self._rows = {row.slot: row for row in rows}

    @classmethod
    def reload(cls, number: int, slots: Iterable[SlotView]) -> Change:
        rows = _rows(slots)
        return cls(number, "reload", len(rows), rows)

    def begin(self, slots: Iterable[SlotView]) -> None:
        """The workers that are there now are to be replaced; some may have died since the change was announced."""
        self._rows = {row.slot: row for row in _rows(slots)}

    def with_tasks(self, tasks: Iterable[str]) -> Change:
        """Instances of these are to be replaced as well."""
        self.tasks = dict.fromkeys(tasks, 0)
        return self

    @classmethod
    def scale(cls, number: int, slots: Iterable[SlotView], workers: int) -> Change:
        """Only slots that come or go have a row."""
        views = list(slots)
        rows = _rows(views[workers:])
        rows += [_Row(slot, None, None, Stage.STARTING) for slot in range(len(views), workers)]
        return cls(number, "scale", workers, rows)

    @property
    def over(self) -> bool:
        return bool(self.error) or (self.workers_done and self.tasks is None)

    @property
    def workers_done(self) -> bool:
        return all(row.stage is Stage.DONE for row in self._rows.values())

    @property
    def begun(self) -> bool:
        """Whether anything has been changed for good."""
        return any(row.stage in {Stage.EMPTYING, Stage.DONE} for row in self._rows.values())

    def fail(self, reason: str) -> None:
        if not self.over:
            self.error = reason

    # What happens

    def ready(self, slot: int, incarnation: int, pid: int) -> None:
        """A worker serves: the first of a new slot, or an heir."""
        row = self._rows.get(slot)
        if row is not None and incarnation != row.incarnation and not self.over:
            row.heir_pid = pid
            if row.incarnation is None and row.pid is None:
                row.stage = Stage.DONE

    def failed(self, slot: int, end: str) -> None:
        """A worker of this slot ended before it was ready."""
        row = self._rows.get(slot)
        if row is not None and self.kind == "scale" and row.stage is Stage.STARTING:
            self.fail(f"worker {slot} {end}; it is tried again, see `spearpool status`")

    def emptied(self, slot: int, handed_over: int, closed: int, awaited: int) -> None:
        row = self._rows.get(slot)
        if row is not None:
            row.handed_over, row.closed, row.awaited = handed_over, closed, awaited

    def follow(self, action: moves.Action) -> None:
        """The roster ordered this."""
        match action:
            case moves.Renewing() if self._is_about(action.slot, action.incarnation):
                self._rows[action.slot].stage = Stage.STARTING
            case moves.Empty() if self._is_about(action.slot, action.incarnation):
                self._rows[action.slot].stage = Stage.EMPTYING
            case moves.Renewed() if self._is_about(action.slot, action.incarnation):
                self._rows[action.slot].stage = Stage.DONE
            case moves.SlotRemoved() if action.slot in self._rows:
                self._rows[action.slot].stage = Stage.DONE
            case moves.RenewalFailed() if self._is_about(action.slot, action.incarnation):
                self.fail(action.reason)
            case _:
                pass

    def _is_about(self, slot: int, incarnation: int) -> bool:
        row = self._rows.get(slot)
        return row is not None and row.incarnation == incarnation and not self.over

    # What is told

    def document(self) -> dict[str, Any]:
        return {
            "change": self.number,
            "kind": self.kind,
            "workers": self.workers,
            "done": self.over,
            "error": self.error,
            "tasks": [{"task": task, "outdated": outdated} for task, outdated in (self.tasks or {}).items()],
            "slots": [
                {
                    "slot": row.slot,
                    "stage": row.stage.value,
                    "pid": row.pid,
                    "heir_pid": row.heir_pid,
                    "handed_over": row.handed_over,
                    "closed": row.closed,
                    "awaited": row.awaited,
                }
                for row in sorted(self._rows.values(), key=lambda row: row.slot)
            ],
        }
