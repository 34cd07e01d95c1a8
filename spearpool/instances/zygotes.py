"""The zygotes of a pool: which there are, which of them can fork, and which instances wait for them.

One per Python task, and one that all `exec:` tasks share. A zygote is started when the first instance needs it; when it
dies, its instances live on, and the next one that is needed starts another.
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
    ready: bool = False
    waiting: dict[int, LaunchSpec] = field(default_factory=dict)


class Zygotes:
    """By key (a task's name, `""` for the runner of `exec:` tasks) and by launch number."""

    def __init__(self, launcher: Launcher, next_launch: Callable[[], int]) -> None:
        self._launcher = launcher
        self._next_launch = next_launch
        self._by_key: dict[str, Zygote] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: str, spec: ZygoteSpec, log: InstanceLog) -> Zygote:
        """The zygote for `key`, started if there is none. Raises OSError when its log cannot be opened."""
        zygote = self._by_key.get(key)
        if zygote is None:
            zygote = Zygote(key, self._next_launch())
            log_fd = log.open()
            try:
                self._launcher.launch(zygote.launch, spec, log_fd)
            finally:
                os.close(log_fd)
            self._by_key[key] = zygote
        return zygote

    def find(self, launch: int) -> Zygote | None:
        return next((zygote for zygote in self._by_key.values() if zygote.launch == launch), None)

    def awaited_by(self, launch: int) -> Zygote | None:
        """The zygote that an instance's launch waits for."""
        return next((zygote for zygote in self._by_key.values() if launch in zygote.waiting), None)

    def remove(self, zygote: Zygote) -> None:
        """It is gone, or as good as gone."""
        del self._by_key[zygote.key]

    def kill_all(self) -> None:
        """Their instances are not touched: they are the warden's children."""
        for zygote in self._by_key.values():
            self._launcher.kill_tree(zygote.launch)
