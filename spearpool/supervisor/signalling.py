"""`signal`: what people have one instance do. Arguments are checked here, and what cannot be done is said in words.

A pause is kept in the instance's row, where a worker looks when an agent comes, from wherever: so it outlives the
agent's connection and the worker. It is written down there before all workers are told; so whoever has the agent hears
of it, or sees it when the agent arrives.

With `stop_process` the instance's whole tree is stopped as well (SIGSTOP). Its agent answers no heartbeat then, and
nobody expects it to. Whoever ends an instance has its processes go on first.
"""

from __future__ import annotations

import re
from typing import Any

from spearpool.config_mistakes import did_you_mean
from spearpool.errors import ConfigError, PoolError
from spearpool.instances.instance import Instance
from spearpool.metrics.instances_table import InstanceRow, InstancesTable
from spearpool.metrics.vocabulary import Pause
from spearpool.worker.control import AgentPaused, SignalAgent

from .crew import Crew
from .owners import Owners
from .staff import Staff

__all__ = ["Signalling"]

_NAME = re.compile(r"[A-Za-z0-9.-]{1,64}")
_MOST_LISTED = 20

Document = dict[str, Any]


class Signalling:
    """Does what `command` is asked, and answers with what was done."""

    def __init__(self, table: InstancesTable, crew: Crew, owners: Owners, staff: Staff) -> None:
        self._table = table
        self._crew = crew
        self._owners = owners
        self._staff = staff

    def command(self, arguments: Document) -> Document:
        """Signal `instance` with `signal`: terminate, restart, pause, resume, or a name of its own.

        Raises `ConfigError` for what is no signal, `PoolError` for what cannot be done to this instance.
        """
        signal, stop_process = _signal_of(arguments.get("signal")), arguments.get("stop_process") is True
        if stop_process and signal != "pause":
            raise ConfigError("stop_process", True, "it to go with the signal pause only")
        row = self._row(arguments.get("instance"))
        match signal:
            case "terminate" | "restart":
                done = self._end(row, signal)
            case "pause":
                done = self._pause(row, stop_process=stop_process)
            case "resume":
                done = self._resume(row)
            case _:
                self._tell(row, signal)
                done = "told"
        return {"instance_id": row.instance_id, "task": row.task, "signal": signal, "done": done}

    def _row(self, name: object) -> InstanceRow:
        rows = {row.instance_id: row for row in self._table.snapshots()}
        if isinstance(name, str) and name in rows:
            return rows[name]
        listed = ", ".join([*rows][:_MOST_LISTED]) or "none"
        rest = f" and {len(rows) - _MOST_LISTED} more" if len(rows) > _MOST_LISTED else ""
        hint = did_you_mean(name, rows) if isinstance(name, str) else ""
        raise PoolError(f"no instance is named {name!r}{hint}; there are: {listed}{rest}")

    def _end(self, row: InstanceRow, signal: str) -> str:
        """The pool fills the place again if it needs to, and before that of one that restarts: whoever wants fewer
        scales."""
        instance = self._staff.find(row.instance)
        if instance is None:
            if signal == "restart":
                raise PoolError(f"{row.instance_id} was started by somebody else, who alone can restart it")
            self._tell(row, "Terminate")
            return "asked to end"
        if instance.lifecycle.stopping:
            return "ending already"
        if signal == "restart":
            self._staff.recycle(instance, "it was asked to restart")
            return "restarting: it ends when its successor is ready"
        self._staff.stop_instance(instance)
        return "ending"

    def _pause(self, row: InstanceRow, *, stop_process: bool) -> str:
        pause = Pause.DISPATCH
        if stop_process:
            pause = Pause.PROCESS
            self._check_stoppable(row, self._staff.find(row.instance))
        elif row.pause is Pause.PROCESS:
            return "paused already, and its processes are stopped"
        self._set(row, pause)
        return "paused, and its processes are stopped" if stop_process else "paused"

    def _resume(self, row: InstanceRow) -> str:
        if row.pause is Pause.NONE:
            return "not paused"
        self._set(row, Pause.NONE)
        return "resumed"

    def _set(self, row: InstanceRow, pause: Pause) -> None:
        self._table.set_pause(row.instance.row, pause)
        self._owners.remember_pause(row.instance, pause)
        instance = self._staff.find(row.instance)
        if instance is not None:
            self._staff.pause(instance, paused=pause is not Pause.NONE)
            if (pause is Pause.PROCESS) is not instance.lifecycle.frozen:
                self._staff.freeze(instance, frozen=pause is Pause.PROCESS)
        self._crew.broadcast(AgentPaused(row.instance.row, row.instance.generation, pause))

    @staticmethod
    def _check_stoppable(row: InstanceRow, instance: Instance | None) -> None:
        if instance is None:
            raise PoolError(f"{row.instance_id} was started by somebody else: its processes are not ours to stop")
        if instance.lifecycle.starting or instance.lifecycle.stopping:
            raise PoolError(f"{row.instance_id} is {instance.state}: its processes can be stopped once it is ready")

    def _tell(self, row: InstanceRow, signal: str) -> None:
        member = self._owners.member_of(row.instance)
        if member is None:
            raise PoolError(
                f"{row.instance_id} is not connected now: nobody would hear the signal {signal!r}; try again"
            )
        self._crew.send(member, SignalAgent(row.instance.row, row.instance.generation, signal))


def _signal_of(value: object) -> str:
    """Which of ours it is, however it is written, or a name of its own."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(
            "signal",
            value,
            "terminate, pause, resume, restart, or a name of its own: up to 64 letters, digits, dashes and dots",
        )
    return value.lower() if value.lower() in {"terminate", "pause", "resume", "restart"} else value
