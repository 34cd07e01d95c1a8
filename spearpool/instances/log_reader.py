"""Reads what instances have written: whose logs there are, the last lines of one, and what comes after them.

A log is a file that its process writes and one before it (`logs`). A follower polls; when the file was emptied under
it, it goes on in the older one behind what it has read last.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["LogFollower", "last_lines", "names_of_logs", "newest_log"]

_SUFFIX = ".log"
_OLDER = ".log.1"
_MARK_BYTES = 256
"""How much of what was read last is looked for in the older file."""


def names_of_logs(directory: Path) -> list[str]:
    """Whose logs there are, the one that was written to last first."""
    found: list[tuple[float, str]] = []
    with suppress(FileNotFoundError):
        for path in directory.iterdir():
            if path.name.endswith(_SUFFIX):
                with suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime, path.name.removesuffix(_SUFFIX)))
    return [name for _, name in sorted(found, reverse=True)]


def newest_log(directory: Path, task: str) -> str | None:
    """The instance of a task that has written last; ids are `TASK-ROW-GENERATION`."""
    return next((name for name in names_of_logs(directory) if _task_of(name) == task), None)


def _task_of(name: str) -> str | None:
    task, _, numbers = name.rpartition("-")
    task, _, row = task.rpartition("-")
    return task if row.isdecimal() and numbers.isdecimal() else None


def last_lines(directory: Path, name: str, count: int | None) -> Iterator[bytes]:
    """The last so many lines (None: all that there are) of a log, without their ends. Raises FileNotFoundError."""
    with (directory / f"{name}{_SUFFIX}").open("rb") as file:
        newer = file.read()
    older = b""
    with suppress(FileNotFoundError):
        older = (directory / f"{name}{_OLDER}").read_bytes()
    if older and not older.endswith(b"\n"):
        older, newer = b"", older + newer
    lines: deque[bytes] = deque(maxlen=count)
    for text in (older, newer):
        lines.extend(text.splitlines())
    yield from lines


class LogFollower:
    """What is written to a log from now on. `lost` says that something was written and thrown away unread."""

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / f"{name}{_SUFFIX}"
        self._older = directory / f"{name}{_OLDER}"
        self._read = self._path.stat().st_size
        self._mark = self._end_of(self._path, self._read)
        self._partial = b""
        self.lost = False

    def read(self, *, final: bool = False) -> list[bytes]:
        """New lines, without their ends; a last one without an end is waited for unless this is `final`."""
        data = b""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            if not self._goes_on(file):
                data += self._rest_of_older()
                self._read = 0
            file.seek(self._read)
            fresh = file.read()
            self._read += len(fresh)
            data += fresh
        if data:
            self._mark = (self._mark + data)[-_MARK_BYTES:]
        *lines, self._partial = (self._partial + data).split(b"\n")
        if final and self._partial:
            lines.append(self._partial)
            self._partial = b""
        return lines

    def _goes_on(self, file: BinaryIO) -> bool:
        """Whether what was read last still stands where it stood: the file may have been emptied, and filled again."""
        mark = self._mark[-self._read :] if self._read else b""
        file.seek(self._read - len(mark))
        return file.read(len(mark)) == mark

    def _rest_of_older(self) -> bytes:
        """What the older file holds behind what was read last."""
        with suppress(FileNotFoundError):
            older = self._older.read_bytes()
            place = older.rfind(self._mark)
            if place >= 0:
                return older[place + len(self._mark) :]
            self.lost = True
            return older
        return b""

    @staticmethod
    def _end_of(path: Path, size: int) -> bytes:
        with path.open("rb") as file:
            file.seek(max(0, size - _MARK_BYTES), os.SEEK_SET)
            return file.read(_MARK_BYTES)
