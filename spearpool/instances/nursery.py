"""Where instances are forked: which zygote an instance needs, what becomes of zygotes, and who waits for them.

A zygote that had worked and died is replaced at once; one that never got ready takes the hopes of all that waited for
it along, and the next instance that needs one starts another. When a pool is reloaded, the code of Python tasks is
imported anew (`warm`) by candidates, which take over (`promote`) or not (`cool`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import assert_never

from spearpool.config import TargetKind, TaskConfig

from .artifact import resolve_target
from .launch import Exited, Launched, Launcher, LaunchFailed, LaunchSpec, ZygoteReady, ZygoteSpec
from .lifecycle import describe_exit, shorten
from .surroundings import Surroundings
from .zygotes import Zygote, Zygotes

__all__ = ["RUNNER", "Nursery"]

RUNNER = ""
"""Key and target of the zygote that the instances of all `exec:` tasks are forked from."""


class Nursery:
    """The zygotes of a pool. `fork(zygote, launch, spec)` is called for each launch that waited for a zygote which is
    ready now, `lose(launch, reason)` for one that waits in vain; `on_warm(task, failure)` when the code of a task was
    imported anew, or why not."""

    def __init__(
        self,
        launcher: Launcher,
        surroundings: Surroundings,
        next_launch: Callable[[], int],
        *,
        fork: Callable[[Zygote, int, LaunchSpec], None],
        lose: Callable[[int, str], None],
        on_warm: Callable[[str, str], None],
    ) -> None:
        self._surroundings = surroundings
        self._zygotes = Zygotes(launcher, next_launch)
        self._fork = fork
        self._lose = lose
        self._on_warm = on_warm
        self._stopping = False

    def zygote_for(self, task: str, config: TaskConfig, words: list[str]) -> Zygote:
        """The zygote of a task, ready or not; `words` are what its target was resolved to. Raises OSError."""
        surroundings = self._surroundings
        if config.parsed_target.kind is TargetKind.EXEC:
            surroundings.work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            runner = ZygoteSpec(RUNNER, surroundings.common_environment({}), str(surroundings.work_dir))
            return self._zygotes.get(RUNNER, runner, surroundings.log("_runner"))
        return self._zygotes.get(task, surroundings.imports(words, config), surroundings.log(f"{task}-zygote"))

    def awaited_by(self, launch: int) -> Zygote | None:
        """The zygote that an instance's launch waits for."""
        return self._zygotes.awaited_by(launch)

    # A reload

    def warm(self, task: str, config: TaskConfig) -> None:
        """Import the code of a Python task as it is now. Raises `ArtifactError`, or OSError when there is no log."""
        environ = self._surroundings.common_environment(config.environment)
        words = resolve_target(config.parsed_target, environ, config.working_dir)
        self._zygotes.warm(task, self._surroundings.imports(words, config), self._surroundings.log(f"{task}-zygote"))

    def warming(self) -> list[str]:
        """The tasks whose code is being imported anew."""
        return self._zygotes.warming()

    def promote(self, gone: Iterable[str]) -> None:
        """From now on instances are forked from what was warmed; the tasks `gone` need no zygote any more."""
        for zygote in self._zygotes.promote():
            self._fork_waiting(zygote)
        for task in gone:
            self._zygotes.drop(task)

    def cool(self) -> None:
        """What was warmed is not wanted after all."""
        self._zygotes.drop_candidates()

    # What is heard

    def handle(self, record: Launched | LaunchFailed | ZygoteReady | Exited) -> bool:
        """What the launcher says; False when it is not about a zygote."""
        zygote = self._zygotes.find(record.launch)
        if zygote is None:
            return False
        match record:
            case Launched():
                pass
            case ZygoteReady():
                zygote.ready = True
                if self._zygotes.is_candidate(zygote):
                    self._on_warm(zygote.key, "")
                else:
                    self._fork_waiting(zygote)
            case LaunchFailed():
                self.bury(zygote, record.reason)
            case Exited():
                self.bury(zygote, f"its zygote {describe_exit(record.code, record.signal)}")
            case _:
                assert_never(record)
        return True

    def bury(self, zygote: Zygote, reason: str) -> None:
        """It is gone, or as good as gone."""
        candidate = self._zygotes.is_candidate(zygote)
        self._zygotes.remove(zygote)
        if candidate:
            self._on_warm(zygote.key, shorten(reason))
        elif zygote.ready and not self._stopping:
            with suppress(OSError):  # no log: the next instance that needs one says so
                self._zygotes.again(zygote)
        for launch in list(zygote.waiting):
            self._lose(launch, shorten(reason))

    def _fork_waiting(self, zygote: Zygote) -> None:
        waiting, zygote.waiting = zygote.waiting, {}
        for launch, spec in waiting.items():
            self._fork(zygote, launch, spec)

    # The end

    def stop(self) -> None:
        """End all of them; they are gone when `empty`."""
        self._stopping = True
        self._zygotes.kill_all()

    @property
    def empty(self) -> bool:
        return not len(self._zygotes)
