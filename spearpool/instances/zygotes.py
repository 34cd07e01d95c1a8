"""The zygotes of a pool: which there are, which of them can fork, and which instances wait for them.

One per Python task, and one that all `exec:` tasks share. A zygote is started when the first instance needs it. When it
dies, its instances live on, and another one takes its place at once if it had ever been ready. A *candidate* is to
follow a zygote that works: it imports the task's code of today, and takes over when all candidates have (`promote`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from .launch import Launcher, LaunchSpec, ZygoteSpec
from .logs import InstanceLog

__all__ = ["Zygote", "Zygotes"]


@dataclass(slots=True, eq=False)
class Zygote:
    """A launch that forks others. `waiting` are the launches that need it and came before it was `ready`."""

    key: str
    launch: int
    spec: ZygoteSpec
    log: InstanceLog
    ready: bool = False
    waiting: dict[int, LaunchSpec] = field(default_factory=dict)


class Zygotes:
    """By key (a task's name, `""` for the runner of `exec:` tasks) and by launch number."""

    def __init__(self, launcher: Launcher, next_launch: Callable[[], int]) -> None:
        self._launcher = launcher
        self._next_launch = next_launch
        self._by_key: dict[str, Zygote] = {}
        self._candidates: dict[str, Zygote] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: str, spec: ZygoteSpec, log: InstanceLog) -> Zygote:
        """The zygote for `key`, started if there is none. Raises OSError when its log cannot be opened."""
        zygote = self._by_key.get(key)
        if zygote is None:
            zygote = self._by_key[key] = self._start(key, spec, log)
        return zygote

    def again(self, zygote: Zygote) -> None:
        """Start another one in the place of one that died. Raises OSError when its log cannot be opened."""
        self._by_key[zygote.key] = self._start(zygote.key, zygote.spec, zygote.log)

    def warm(self, key: str, spec: ZygoteSpec, log: InstanceLog) -> None:
        """Start a candidate. Raises OSError when its log cannot be opened."""
        self._candidates[key] = self._start(key, spec, log)

    def warming(self) -> list[str]:
        """Keys of candidates that are not ready yet."""
        return [key for key, zygote in self._candidates.items() if not zygote.ready]

    def promote(self) -> list[Zygote]:
        """Candidates take over; those that they follow end. Returns the new ones, with who waited for the old ones."""
        promoted = list(self._candidates.values())
        for zygote in promoted:
            before = self._by_key.pop(zygote.key, None)
            if before is not None:
                self._launcher.kill_tree(before.launch)
                zygote.waiting.update(before.waiting)
            self._by_key[zygote.key] = zygote
        self._candidates.clear()
        return promoted

    def drop_candidates(self) -> None:
        for zygote in self._candidates.values():
            self._launcher.kill_tree(zygote.launch)
        self._candidates.clear()

    def drop(self, key: str) -> None:
        """End the zygote of a task that is no more."""
        zygote = self._by_key.pop(key, None)
        if zygote is not None:
            self._launcher.kill_tree(zygote.launch)

    def _start(self, key: str, spec: ZygoteSpec, log: InstanceLog) -> Zygote:
        zygote = Zygote(key, self._next_launch(), spec, log)
        log_fd = log.open()
        try:
            self._launcher.launch(zygote.launch, spec, log_fd)
        finally:
            os.close(log_fd)
        return zygote

    def find(self, launch: int) -> Zygote | None:
        known = (*self._by_key.values(), *self._candidates.values())
        return next((zygote for zygote in known if zygote.launch == launch), None)

    def is_candidate(self, zygote: Zygote) -> bool:
        return self._candidates.get(zygote.key) is zygote

    def awaited_by(self, launch: int) -> Zygote | None:
        """The zygote that an instance's launch waits for."""
        return next((zygote for zygote in self._by_key.values() if launch in zygote.waiting), None)

    def remove(self, zygote: Zygote) -> None:
        """It is gone, or as good as gone."""
        del (self._candidates if self.is_candidate(zygote) else self._by_key)[zygote.key]

    def kill_all(self) -> None:
        """Their instances are not touched: they are the warden's children."""
        self.drop_candidates()
        for zygote in self._by_key.values():
            self._launcher.kill_tree(zygote.launch)
