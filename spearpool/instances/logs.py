"""The log of one instance: a file that its process writes to directly, so that nobody has to read for it to go on.

The file is opened for appending by the instance, which makes rotation by *copy and truncate* possible: when it has
grown beyond its limit, its last part, as much as the limit and from the beginning of a line, moves to `NAME.log.1`, and
the file is emptied. What is written between the two is lost, and so is what exceeds the limit: that is the price of not
needing the program's help, and of a supervisor that never copies more than it must. Ended instances' logs are kept, the
newest `KEEP` per task.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

__all__ = ["KEEP", "MAX_LOG_BYTES", "InstanceLog", "left_by_dead", "prune_logs"]

MAX_LOG_BYTES = 10 * 1024 * 1024
KEEP = 20

_LINE_BYTES = 64 * 1024
"""How far the beginning of a line is looked for."""

_TAIL_BYTES = 4096


class InstanceLog:
    """The log file of an instance, zygote or other process. Bytes before `begin` are an earlier namesake's."""

    def __init__(self, directory: Path, name: str, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.path = directory / f"{name}.log"
        self._max_bytes = max_bytes
        self._begin = 0
        self._size = 0

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

    def has_grown(self) -> bool:
        """Whether it has since this was asked last; it is rotated then, if there is too much of it."""
        before, self._size = self._size, self._size_now()
        grown = self._size != before
        if grown and self.rotate():
            self._size = 0
        return grown

    def rotate(self) -> bool:
        """Move the content aside when there is too much of it. Whether it was."""
        with suppress(OSError):  # a full disk: the program's own writes meet it, too
            if self._size_now() > self._max_bytes:
                self._copy_end(self.path.with_name(f"{self.path.name}.1"))
                os.truncate(self.path, 0)
                self._begin = 0
                return True
        return False

    def _size_now(self) -> int:
        with suppress(OSError):
            return self.path.stat().st_size
        return 0

    def _copy_end(self, to: Path) -> None:
        """The last `max_bytes`, in the kernel, put in place at once."""
        part = to.with_name(f"{to.name}.part")
        with self.path.open("rb") as source, part.open("wb") as target:
            size = os.fstat(source.fileno()).st_size
            start = max(0, size - self._max_bytes)
            if start:
                source.seek(start - 1)
                line_end = source.read(_LINE_BYTES).find(b"\n")
                start += max(0, line_end)
            while start < size and (count := os.sendfile(target.fileno(), source.fileno(), start, size - start)):
                start += count
        part.replace(to)


def prune_logs(directory: Path, task: str, alive: Collection[str], keep: int = KEEP) -> None:
    """Delete the oldest logs of the task's instances, except of those `alive`, until `keep` are left."""
    for path in left_by_dead(directory, task, alive, r"\.log(\.1)?")[:-keep]:
        path.unlink(missing_ok=True)


def left_by_dead(directory: Path, task: str, alive: Collection[str], suffix: str = "") -> list[Path]:
    """What is named after ended instances of the task, with what matches `suffix` behind the name; the oldest first."""
    of_task = re.compile(rf"({re.escape(task)}-\d+-\d+){suffix}")
    dead: list[tuple[float, Path]] = []
    for path in directory.glob(f"{task}-*"):
        match = of_task.fullmatch(path.name)
        if match and match[1] not in alive:
            with suppress(FileNotFoundError):
                dead.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(dead)]
