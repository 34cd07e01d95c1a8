"""The segment: one file on a memory filesystem that all processes of a pool map.

The supervisor creates it, hands its descriptor to the workers and unlinks it; readers open it by path. Its space is
allocated before anything is written, so that a full memory filesystem is an error at start and not a SIGBUS later; its
magic is written last, so that a reader never sees half a header. `multiprocessing.shared_memory` is not used: before
Python 3.13 any process that attaches by name deletes the segment when it exits.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from spearpool.errors import SegmentError
from spearpool.processes import ProcessIdentity

from .layout import (
    HEADER_BYTES,
    HEADER_WORDS,
    LAYOUT_VERSION,
    MAGIC,
    SCHEMA_OFFSET,
    Layout,
    Part,
    read_header,
)
from .names import NameTable, write_name
from .vocabulary import (
    OTHER,
    RING_RECORDS,
)

__all__ = ["DEFAULT_RING_RECORDS", "MIN_RING_RECORDS", "Segment", "orphans", "plan_ring_records"]

DEFAULT_RING_RECORDS = 16_384
MIN_RING_RECORDS = 1_024
_ORPHAN_AGE_S = 60.0
_OPEN_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class Segment:
    """A mapped segment. Made by `create`, `attach` or `open`; owns its descriptor and its mapping.

    `memory` is the whole of it as bytes, `words` as int64. Views given out by `part` and `seat_part` end with `close`:
    using one after that raises `ValueError`.
    """

    def __init__(self, fd: int, path: Path | None, *, writable: bool) -> None:
        """Map what `fd` refers to, which must be a whole segment. Takes `fd` over, also when it raises."""
        with ExitStack() as undo:
            undo.callback(os.close, fd)
            self._mapping = _map(fd, path, writable=writable)
            undo.callback(self._mapping.close)
            header = self._mapping[:HEADER_BYTES]
            self.layout = Layout.from_header(header)
            if self.layout.total_bytes != len(self._mapping):
                raise SegmentError(
                    f"{path or 'segment'} has {len(self._mapping)} bytes: {self.layout.total_bytes} expected"
                )
            undo.pop_all()
        words = read_header(header)
        self.fd = fd
        self.path = path
        self.epoch = words["epoch"]
        self.owner = ProcessIdentity(words["owner_pid"], words["owner_ticks"])
        self.memory = memoryview(self._mapping)
        self.words = self.memory.cast("q")
        self._views: dict[Part, memoryview] = {}
        self.tasks = NameTable(self.part("task_names_head"), self.part("task_names"), self.layout.columns - 1)

    @classmethod
    def create(
        cls, directory: Path, pool: str, layout: Layout, epoch: int, owner_pid: int, owner_ticks: int
    ) -> Segment:
        """Make the segment of a pool. Raises `SegmentError` when it exists already or does not fit."""
        path = directory / _file_name(pool, epoch)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS, 0o600)
        except OSError as error:
            raise SegmentError(f"cannot create {path}: {error.strerror}") from error
        try:
            _allocate(fd, path, layout)
            _initialise(fd, layout, epoch, ProcessIdentity(owner_pid, owner_ticks))
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return cls(fd, path, writable=True)

    @classmethod
    def attach(cls, fd: int) -> Segment:
        """Map the segment behind a descriptor that was received, for writing; takes the descriptor over."""
        return cls(fd, None, writable=True)

    @classmethod
    def open(cls, path: Path, writable: bool = False) -> Segment:
        """Map a segment by path, for reading unless said otherwise. Raises `SegmentError`."""
        try:
            fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK | _OPEN_FLAGS)
        except OSError as error:
            raise SegmentError(f"cannot open {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SegmentError(f"{path} is not a regular file: expected a segment")
        return cls(fd, path, writable=writable)

    def part(self, name: str) -> memoryview:
        """A part outside the seats: int64 words, or bytes where it holds names."""
        return self._view(self.layout.parts[name])

    def seat_part(self, seat: int, name: str) -> memoryview:
        """A part of a seat: int64 words, or bytes where it holds names or records."""
        return self._view(self.layout.seat_part(seat, name))

    def task_index(self, task: str) -> int:
        """The column of a task; the last one, `other`, when it has none of its own."""
        column = self.tasks.find(task)
        return self.layout.columns - 1 if column is None else column

    def add_task(self, task: str) -> int:
        """Give a task that a reload added a spare column, or `other` when there is none left. Supervisor only."""
        column = None if task == OTHER else self.tasks.add(task)
        return self.layout.columns - 1 if column is None else column

    def task_name(self, column: int) -> str:
        """What a column counts; `other` for the last one and for those not in use."""
        names = self.tasks.names()
        return names[column] if 0 <= column < len(names) else OTHER

    def unlink(self) -> None:
        """Remove the file; the memory lives until the last process has closed it."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmap and close. An array of numpy that still looks at the memory keeps it mapped until it is gone."""
        for view in (*self._views.values(), self.words, self.memory):
            with suppress(BufferError):
                view.release()
        with suppress(BufferError):
            self._mapping.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _view(self, part: Part) -> memoryview:
        """Each part has one view, made when it is first asked for, so that `close` can end them all."""
        view = self._views.get(part)
        if view is None:
            if part.dtype == "<i8":
                view = self.words[part.offset // 8 : (part.offset + part.nbytes) // 8]
            else:
                view = self.memory[part.offset : part.offset + part.nbytes]
            self._views[part] = view
        return view


def plan_ring_records(directory: Path, slots: int, tasks: Sequence[str], requested: int = 0, rows: int = 1024) -> int:
    """Records per ring: `requested`, or for 0 the default, halved until the segment fits half of what is free.

    Raises `SegmentError` naming the figure that fits when `requested`, or even the smallest ring, does not.
    """
    free = _free_bytes(directory)
    layout = Layout.plan(slots, tasks, requested or DEFAULT_RING_RECORDS, rows)
    if not requested:
        layout = next(_fitting(layout, free // 2, MIN_RING_RECORDS), replace(layout, ring_records=MIN_RING_RECORDS))
    if layout.total_bytes > free:
        raise SegmentError(f"{directory} has {free} bytes free: {_advice(layout, free)}")
    return layout.ring_records


def _fitting(layout: Layout, free: int, least: int = RING_RECORDS[0]) -> Iterator[Layout]:
    """This layout and those with smaller rings, as far as they fit; the largest first."""
    records = layout.ring_records
    while records >= least:
        smaller = replace(layout, ring_records=records)
        if smaller.total_bytes <= free:
            yield smaller
        records //= 2


def _advice(layout: Layout, free: int) -> str:
    needs = f"a segment with rings of {layout.ring_records} records needs {layout.total_bytes}"
    for smaller in _fitting(layout, free):
        return f"{needs}; set monitoring.metrics_buffer_size to {smaller.ring_records} or less"
    return f"{needs}; make room there, or lower pool.max_workers"


def orphans(directory: Path, pool: str) -> list[Path]:
    """The segments of this pool whose owner is gone.

    A file of ours without a readable header belonged to a supervisor that died while making it; it is one of them once
    it is a minute old. Two pools of one name may exist (in different runtime directories): a living owner's is none.
    """
    pattern = re.compile(re.escape(_file_name(pool, 0)[:-16]) + "[0-9a-f]{16}")
    return [path for path in sorted(directory.iterdir()) if pattern.fullmatch(path.name) and _is_orphan(path)]


def _is_orphan(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN_FLAGS)
    except OSError:
        return False
    status = os.fstat(fd)
    try:
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        header = read_header(os.pread(fd, HEADER_BYTES, 0))
    except SegmentError:
        return time.time() - status.st_mtime > _ORPHAN_AGE_S
    finally:
        os.close(fd)
    return not ProcessIdentity(header["owner_pid"], header["owner_ticks"]).alive()


def _file_name(pool: str, epoch: int) -> str:
    return f"spearpool-{os.geteuid()}-{pool}-{epoch:016x}"


def _map(fd: int, path: Path | None, *, writable: bool) -> mmap.mmap:
    size = os.fstat(fd).st_size
    if size < HEADER_BYTES:
        raise SegmentError(f"{path or 'segment'} has {size} bytes: too few for a segment")
    try:
        return mmap.mmap(fd, size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise SegmentError(f"cannot map {path or 'the segment'}: {error}") from error


def _allocate(fd: int, path: Path, layout: Layout) -> None:
    try:
        os.posix_fallocate(fd, 0, layout.total_bytes)
    except OSError as error:
        free = _free_bytes(path.parent)
        advice = _advice(layout, min(free, layout.total_bytes - 1))
        raise SegmentError(f"cannot allocate {path}: {error.strerror}, {free} bytes are free: {advice}") from error


def _initialise(fd: int, layout: Layout, epoch: int, owner: ProcessIdentity) -> None:
    """Write names and header into a file of zeros; the magic last."""
    with mmap.mmap(fd, layout.total_bytes) as mapping, memoryview(mapping) as memory, memory.cast("q") as words:
        _write_names(memory, words, layout.parts["task_names_head"], layout.parts["task_names"], layout.tasks)
        for seat in range(layout.seats):
            head, entries = layout.seat_part(seat, "names_head"), layout.seat_part(seat, "names")
            _write_names(memory, words, head, entries, ("", OTHER))
        memory[SCHEMA_OFFSET : SCHEMA_OFFSET + len(layout.schema_json)] = layout.schema_json
        stamp = time.time_ns()
        header = {
            "generation_front": stamp,
            "layout_version": LAYOUT_VERSION,
            "epoch": epoch,
            "owner_pid": owner.pid,
            "owner_ticks": owner.start_ticks,
            "schema_bytes": len(layout.schema_json),
            "schema_hash": layout.schema_hash,
            "total_bytes": layout.total_bytes,
            "generation_back": stamp,
            "magic": MAGIC,
        }
        for name, value in header.items():
            words[HEADER_WORDS.index(name)] = value


def _write_names(memory: memoryview, words: memoryview, head: Part, entries: Part, names: Sequence[str]) -> None:
    with memory[entries.offset : entries.offset + entries.nbytes] as table:
        for place, name in enumerate(names):
            write_name(table, place, name)
    words[head.offset // 8] = len(names)


def _free_bytes(directory: Path) -> int:
    """What can still be allocated in a filesystem; one that names no size (tmpfs with size=0) sets no bound."""
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise SegmentError(f"cannot use {directory} for shared memory: {error.strerror}") from error
    return status.f_bavail * status.f_frsize if status.f_blocks else sys.maxsize
