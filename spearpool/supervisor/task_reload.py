"""The tasks' side of a reload, in step with the workers'.

    announced ─ all code imported anew ─► workers replaced ─► instances replaced ─► done
        └─ an import fails ─► given up: nothing has been changed

The code of Python tasks is imported first, in zygotes of its own: what cannot be imported changes nothing, and is told.
Tasks that are no more are closed before the workers are replaced, which do not know them any more; new ones are begun
after that. Then instances are replaced, one at a time per task and each successor first: those of Python tasks (their
code is another one now), of programs that speak the protocol (theirs may be), and of whatever task was changed in what
its instances are made of. Should workers or instances turn out not to start, what serves goes on to serve.
"""

from __future__ import annotations

from collections.abc import Callable

from spearpool.config import Settings
from spearpool.errors import ConfigError
from spearpool.metrics.segment import Segment

from .change import Change
from .staff import Staff

__all__ = ["FAILURES", "TaskReload"]

FAILURES = 3
"""After so many failures of a task's new instances in a row, nobody waits for them any longer."""


class TaskReload:
    """One reload. `replace_workers()` is called when the code has been imported. Raises `ConfigError` when there is no
    room for a new task."""

    def __init__(
        self, change: Change, settings: Settings, staff: Staff, segment: Segment, replace_workers: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._staff = staff
        self._replace_workers = replace_workers
        self._begun = False
        self._adopted = False
        for name in settings.tasks:
            if segment.add_task(name) == segment.layout.columns - 1:
                raise ConfigError(f"tasks.{name}", name, "no more new tasks: stop this pool and start it again")
        self._change = change.with_tasks(settings.tasks)
        self._staff.warm(settings, self._warmed)

    @property
    def over(self) -> bool:
        return self._change.over

    def _warmed(self, failure: str) -> None:
        """All code has been imported, or some of it cannot be."""
        if self._change.over:
            return
        if failure:
            self._change.fail(f"nothing was changed: {failure}")
            return
        self._begun = True
        self._staff.close(name for name in self._staff.tasks if name not in self._settings.tasks)
        self._replace_workers()

    def follow(self) -> None:
        """See how far it has got; for every tick until it is `over`, and once after that."""
        change = self._change
        if change.error:
            self._staff.cool()
            if self._begun and not self._adopted:
                self._staff.reopen()
            return
        if not change.workers_done:
            return
        if not self._adopted:
            self._adopted = True
            self._staff.adopt(self._settings)
        left = {}
        for name in self._settings.tasks:
            staff = self._staff.staff_of(name)
            lacking = max(0, staff.minimum - staff.ready) if not staff.waits_for else 0
            if staff.outdated or lacking:
                left[name] = staff.outdated or lacking
                if staff.failures >= FAILURES:
                    change.fail(f"the workers were replaced, but new instances of task {name!r} fail: {staff.reason}")
                    return
        change.tasks = left or None
