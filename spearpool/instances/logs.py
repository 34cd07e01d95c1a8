"""The log of one instance: a file that its process writes to directly, so that nobody has to read for it to go on.

The file is opened for appending by the instance, which makes rotation by *copy and truncate* possible: when it has
grown beyond its limit, its content moves to `NAME.log.1` and the file is emptied. What is written between the two is
lost, which is the price of not needing the program's help. Ended instances' logs are kept, the newest `KEEP` per task.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

__all__ = ["KEEP", "MAX_LOG_BYTES", "InstanceLog", "prune_logs"]

MAX_LOG_BYTES = 10 * 1024 * 1024
KEEP = 20

_TAIL_BYTES = 4096


class InstanceLog:
    """The log file of an instance, zygote or other process. Bytes before `begin` are an earlier namesake's."""

    def __init__(self, directory: Path, name: str, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.path = directory / f"{name}.log"
        self._max_bytes = max_bytes
        self._begin = 0

    def open(self) -> int:
        """A descriptor for the process to write to; the caller closes it. Raises OSError."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        fd = os.open(self.path, flags, 0o600)
        self._begin = os.fstat(fd).st_size
        return fd

    def tail(self, lines: int = 10) -> str:
        """The last lines that this process wrote, `""` when it was silent."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = max(self._begin if self._begin <= size else 0, size - _TAIL_BYTES)
                file.seek(start)
                text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def rotate(self) -> bool:
        """Move the content aside when there is too much of it. Whether it was."""
        with suppress(OSError):  # a full disk: the program's own writes meet it, too
            if self.path.stat().st_size > self._max_bytes:
                shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
                os.truncate(self.path, 0)
                self._begin = 0
                return True
        return False


def prune_logs(directory: Path, task: str, alive: Collection[str], keep: int = KEEP) -> None:
    """Delete the oldest logs of the task's instances, except of those `alive`, until `keep` are left."""
    of_task = re.compile(rf"({re.escape(task)}-\d+-\d+)\.log(\.1)?")
    dead: list[tuple[float, Path]] = []
    for path in directory.glob(f"{task}-*"):
        match = of_task.fullmatch(path.name)
        if match and match[1] not in alive:
            with suppress(FileNotFoundError):
                dead.append((path.stat().st_mtime, path))
    for _, path in sorted(dead)[: max(0, len(dead) - keep)]:
        path.unlink(missing_ok=True)
