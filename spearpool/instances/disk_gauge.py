"""How much directories hold on disk, found out by a thread: a walk may take long, and who asks must not wait."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

__all__ = ["DiskGauge", "disk_bytes"]


class DiskGauge:
    """One walk at a time; what is asked for meanwhile is what the last one found."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None  # made when first needed
        self._walks: dict[Path, Future[int]] = {}
        self._found: dict[Path, int] = {}

    def read(self, directory: Path) -> int:
        """Bytes below a directory as of the last walk, 0 before the first; begins another one."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk-gauge")
        walk = self._walks.get(directory)
        if walk is not None and walk.done():
            self._found[directory] = walk.result()
        if walk is None or walk.done():
            self._walks[directory] = self._thread.submit(disk_bytes, directory)
        return self._found.get(directory, 0)

    def forget(self, directory: Path) -> None:
        self._found.pop(directory, None)
        walk = self._walks.pop(directory, None)
        if walk is not None:
            walk.cancel()


def disk_bytes(directory: Path) -> int:
    """What the directory and all below it take on disk: blocks, not lengths; files with several names once.

    Symbolic links are not followed, and what vanishes or may not be read meanwhile is left out.
    """
    total = 0
    seen: set[tuple[int, int]] = set()
    open_directories = [os.fspath(directory)]
    while open_directories:
        with suppress(OSError), os.scandir(open_directories.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    stat = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        open_directories.append(entry.path)
                    elif stat.st_nlink > 1:
                        if (stat.st_dev, stat.st_ino) in seen:
                            continue
                        seen.add((stat.st_dev, stat.st_ino))
                    total += stat.st_blocks * 512
    return total
