from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spearpool.errors import SegmentError
from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.layout import (
    HEADER_BYTES,
    HEADER_WORDS,
    SPARE_TASKS,
    Layout,
)
from spearpool.metrics.seat import Seat
from spearpool.metrics.segment import DEFAULT_RING_RECORDS, MIN_RING_RECORDS, Segment, orphans, plan_ring_records
from spearpool.metrics.vocabulary import (
    COUNTER,
    HISTOGRAM,
    OTHER,
    EventKind,
    ExecutionStage,
)
from spearpool.processes import ProcessIdentity
from tests.metrics.segments import EPOCH, new_segment

SMALL = Layout.plan(1, ["thumb"], 64, rows=1)


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    with new_segment(tmp_path) as made:
        yield made


def path_of(segment: Segment) -> Path:
    assert segment.path is not None
    return segment.path


def test_a_new_segment_is_private_allocated_and_closed_on_exec(segment: Segment) -> None:
    status = path_of(segment).lstat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == segment.layout.total_bytes
    assert status.st_blocks * 512 >= status.st_size
    assert not os.get_inheritable(segment.fd)


def test_who_attaches_or_opens_it_sees_the_same(segment: Segment) -> None:
    with Segment.attach(os.dup(segment.fd)) as attached, Segment.open(path_of(segment)) as opened:
        assert attached.layout == opened.layout == segment.layout
        assert attached.epoch == opened.epoch == segment.epoch == EPOCH
        assert opened.owner == ProcessIdentity.of(os.getpid())
        attached.seat_part(1, "counters")[5] = 42
        assert segment.seat_part(1, "counters")[5] == opened.seat_part(1, "counters")[5] == 42
        assert attached.path is None


def test_a_reader_cannot_write(segment: Segment) -> None:
    with Segment.open(path_of(segment)) as opened, pytest.raises(TypeError, match="read-only"):
        opened.seat_part(0, "counters")[0] = 1
    with Segment.open(path_of(segment), writable=True) as opened:
        opened.seat_part(0, "counters")[0] = 1
    assert segment.seat_part(0, "counters")[0] == 1


def test_attaching_a_descriptor_for_reading_is_an_error_that_closes_it(segment: Segment) -> None:
    fd = os.open(path_of(segment), os.O_RDONLY)
    with pytest.raises(SegmentError, match="cannot map"):
        Segment.attach(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_an_existing_file_is_never_taken_over(segment: Segment, tmp_path: Path) -> None:
    with pytest.raises(SegmentError, match=r"cannot create .*File exists"), new_segment(tmp_path):
        pass
    assert path_of(segment).exists()


def test_a_symbolic_link_is_never_followed(segment: Segment, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path_of(segment))
    with pytest.raises(SegmentError, match="cannot open"):
        Segment.open(link)
    victim = tmp_path / "victim"
    path_of(segment).with_name(path_of(segment).name[:-16] + "0" * 15 + "7").symlink_to(victim)
    with pytest.raises(SegmentError, match="File exists"), new_segment(tmp_path, epoch=7):
        pass
    assert not victim.exists()


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, message in ((fifo, "not a regular file"), (tmp_path, "not a regular file"), (tmp_path / "no", "No such")):
        with pytest.raises(SegmentError, match=message):
            Segment.open(path)


def test_views_end_with_the_segment(tmp_path: Path) -> None:
    with new_segment(tmp_path) as segment:
        counters = segment.seat_part(0, "counters")
        assert segment.seat_part(0, "counters") is counters
        segment.close()
        with pytest.raises(ValueError, match="released"):
            counters[0] += 1
        segment.close()


def test_a_foreign_view_keeps_the_memory_and_nothing_else(tmp_path: Path) -> None:
    with new_segment(tmp_path) as segment:
        numpy = pytest.importorskip("numpy")
        array = numpy.frombuffer(segment.memory, dtype="<i8", count=1)
        fd = segment.fd
        segment.close()
        assert array[0] == int.from_bytes(b"SPEARSEG", "little")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_unlink_leaves_the_memory_to_those_who_have_it(segment: Segment) -> None:
    segment.unlink()
    segment.unlink()
    segment.seat_part(0, "counters")[0] = 1
    assert not path_of(segment).exists()


def test_task_columns(segment: Segment) -> None:
    last = segment.layout.columns - 1
    assert [segment.task_index(task) for task in ("thumb", "sum", "unknown", OTHER)] == [0, 1, last, last]
    assert [segment.add_task(f"new-{number}") for number in range(SPARE_TASKS + 2)] == [*range(2, last), last, last]
    assert segment.add_task("new-0") == 2
    assert segment.add_task(OTHER) == last
    with Segment.attach(os.dup(segment.fd)) as worker:
        assert [worker.task_index(task) for task in ("new-0", "new-9")] == [2, last]
        assert [worker.task_name(column) for column in (0, 2, last, last + 1, -1)] == [
            "thumb",
            "new-0",
            OTHER,
            OTHER,
            OTHER,
        ]


def test_a_program_without_spearpool_can_read_everything(segment: Segment) -> None:
    """What the file itself says suffices: the header's places are in the documentation, the rest is in its schema."""
    seat = Seat(segment, 3)
    seat.occupy(7, 4321)
    seat.add(COUNTER["connections_opened"], 5)
    seat.add_task(1, ExecutionStage.COMPLETED, 6)
    seat.intern("shop")
    seat.observe(HISTOGRAM["auth_duration_ns"], 1000)
    seat.ring.write(11, EventKind.ERROR, connection=12, code=400)
    row = InstancesTable(segment).open_row(1, external=True, label="agent-seven")

    np = pytest.importorskip("numpy")
    data = path_of(segment).read_bytes()
    words = np.frombuffer(data, "<i8", 10)
    schema = json.loads(data[256 : 256 + words[6]])
    record = np.dtype([tuple(field) for field in schema["record"]["fields"]])

    def array(part: dict[str, Any], base: int = 0) -> Any:
        dtype = record if part["dtype"] == "record" else np.dtype(part["dtype"])
        count = int(np.prod(part["shape"]))
        return np.frombuffer(data, dtype, count, base + part["offset"]).reshape(part["shape"])

    def of_seat(name: str) -> tuple[Any, list[str]]:
        part = schema["seats"]["parts"][name]
        return array(part, schema["seats"]["offset"] + 3 * schema["seats"]["stride"]), part["fields"]

    liveness, fields = of_seat("liveness")
    assert dict(zip(fields, liveness, strict=False))["pid"] == 4321
    counters, fields = of_seat("counters")
    assert counters[fields.index("connections_opened")] == 5
    tasks, fields = of_seat("tasks")
    assert tasks[list(array(schema["parts"]["task_names"])).index(b"sum"), fields.index("completed")] == 6
    names, _ = of_seat("names")
    assert list(names[:4]) == [b"", b"other", b"shop", b""]
    histograms, fields = of_seat("histograms")
    histogram = histograms[fields.index("auth_duration_ns")]
    assert histogram[schema["histogram"]["sum_word"]] == 1000
    assert histogram[schema["histogram"]["first_bucket"] :].sum() == 1
    ring, _ = of_seat("ring")
    assert (ring[0]["time_ns"], ring[0]["connection"], ring[0]["code"]) == (11, 12, 400)
    assert ring[0]["kind"] == schema["event_kinds"]["error"]
    rows = array(schema["parts"]["instances"])
    label = rows[row.row][schema["instance_row"]["label_word"] :].tobytes()[: schema["instance_row"]["label_bytes"]]
    assert label.rstrip(b"\0") == b"agent-seven"
    assert rows[row.row][schema["parts"]["instances"]["fields"].index("alive")] == 1


# Damage


def test_every_length_but_its_own_is_refused(tmp_path: Path) -> None:
    with new_segment(tmp_path, SMALL) as segment:
        whole = bytes(segment.memory)
    path = tmp_path / "cut"
    for length in (0, 1, HEADER_BYTES - 1, HEADER_BYTES, len(whole) - 1, len(whole) + 1, len(whole) + 4096):
        path.write_bytes(whole[:length].ljust(length, b"\0"))
        with pytest.raises(SegmentError, match=f"cut has {length} bytes"):
            Segment.open(path)


def test_a_segment_without_its_magic_is_not_complete(segment: Segment) -> None:
    segment.words[HEADER_WORDS.index("magic")] = 0
    with pytest.raises(SegmentError, match="not complete"):
        Segment.open(path_of(segment))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(st.tuples(st.integers(0, SMALL.total_bytes - 1), st.binary(min_size=1, max_size=64)), min_size=1)
)
def test_damage_is_an_error_or_harmless(tmp_path: Path, damage: list[tuple[int, bytes]]) -> None:
    """Whatever is overwritten: opening gives the same layout, or a SegmentError and nothing else."""
    with new_segment(tmp_path, SMALL) as segment:
        for start, data in damage:
            os.pwrite(segment.fd, data[: SMALL.total_bytes - start], start)
        with suppress(SegmentError), Segment.open(path_of(segment)) as opened:
            assert opened.layout == SMALL
            assert len(opened.tasks.names()) <= SMALL.columns


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2 * HEADER_BYTES))
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(data)
    with pytest.raises(SegmentError):
        Segment.open(path)


# Room


def with_free(monkeypatch: pytest.MonkeyPatch, free: int, blocks: int = 1_000_000) -> None:
    fields = [1, 1, blocks, free, free, 0, 0, 0, 0, 255]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))


def needed(records: int) -> int:
    return Layout.plan(4, ["thumb"], records).total_bytes


@pytest.mark.parametrize(
    ("free", "records"),
    [
        (2 * needed(DEFAULT_RING_RECORDS), DEFAULT_RING_RECORDS),
        (2 * needed(DEFAULT_RING_RECORDS) - 2, DEFAULT_RING_RECORDS // 2),
        (2 * needed(2048), 2048),
        (2 * needed(2048) - 2, 1024),
        (2 * needed(1024) - 2, MIN_RING_RECORDS),  # half is asked for, the whole will do for the smallest
        (needed(1024), MIN_RING_RECORDS),
    ],
)
def test_rings_are_halved_until_half_of_the_free_memory_suffices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, records: int
) -> None:
    with_free(monkeypatch, free)
    assert plan_ring_records(tmp_path, 4, ["thumb"]) == records


def test_what_was_asked_for_is_given_or_refused_with_the_figure_that_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_free(monkeypatch, needed(4096))
    assert plan_ring_records(tmp_path, 4, ["thumb"], 4096) == 4096
    with pytest.raises(SegmentError, match="metrics_buffer_size to 4096 or less"):
        plan_ring_records(tmp_path, 4, ["thumb"], 2**20)
    with_free(monkeypatch, needed(1024) - 1)
    with pytest.raises(SegmentError, match="metrics_buffer_size to 512 or less"):
        plan_ring_records(tmp_path, 4, ["thumb"])
    with_free(monkeypatch, 4096)
    with pytest.raises(SegmentError, match=r"4096 bytes free: .* make room there, or lower pool\.max_workers"):
        plan_ring_records(tmp_path, 4, ["thumb"])


def test_a_filesystem_without_a_size_sets_no_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_free(monkeypatch, free=0, blocks=0)
    assert plan_ring_records(tmp_path, 4, ["thumb"]) == DEFAULT_RING_RECORDS


def test_no_directory_no_segment(tmp_path: Path) -> None:
    with pytest.raises(SegmentError, match=r"cannot use .*nowhere for shared memory: No such file"):
        plan_ring_records(tmp_path / "nowhere", 4, ["thumb"])
    with pytest.raises(SegmentError, match=r"cannot create .*No such file"), new_segment(tmp_path / "nowhere"):
        pass


def test_a_filesystem_that_fills_up_meanwhile_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SegmentError, match=r"cannot allocate .*No space left .* free"), new_segment(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


FILL_UP = """
import os
from pathlib import Path
from spearpool.errors import SegmentError
from spearpool.metrics.layout import Layout
from spearpool.metrics.segment import Segment, plan_ring_records
room = Path("{room}")
layout = Layout.plan(1, [], 4096)
for attempt in (lambda: Segment.create(room, "p", layout, 1, 1, 1), lambda: plan_ring_records(room, 1, [], 4096)):
    try:
        attempt()
    except SegmentError as error:
        print(error)
assert not list(room.iterdir())
"""


@pytest.mark.process
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_memory_filesystem_that_is_really_too_small(tmp_path: Path) -> None:
    """A tmpfs of 1250 KiB in a mount namespace of its own: an error with the figure that fits, no SIGBUS."""
    mount = f"mount -t tmpfs -o size=1250k none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("may not mount in a user namespace here")
    program = [sys.executable, "-c", FILL_UP.format(room=tmp_path)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && "$@"', "sh", *program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    create, plan = done.stdout.splitlines()
    assert create.startswith("cannot allocate")
    assert "No space left on device, 1282048 bytes are free" in create
    assert create.endswith("set monitoring.metrics_buffer_size to 512 or less")
    assert plan.endswith("set monitoring.metrics_buffer_size to 512 or less")


# Leftovers


def abandoned(directory: Path, pool: str, epoch: int, owner: ProcessIdentity) -> Path:
    with Segment.create(directory, pool, SMALL, epoch, owner.pid, owner.start_ticks) as segment:
        return path_of(segment)


def test_what_a_dead_owner_left_is_an_orphan_and_nothing_else_is(tmp_path: Path) -> None:
    me = ProcessIdentity.of(os.getpid())
    gone = ProcessIdentity(me.pid, me.start_ticks + 1)  # the pid was used again
    dead = [abandoned(tmp_path, "a", epoch, gone) for epoch in (1, 2)]
    for pool, epoch, owner in (("a", 3, me), ("a-b", 4, gone), ("b", 5, gone)):
        abandoned(tmp_path, pool, epoch, owner)
    assert orphans(tmp_path, "a") == sorted(dead)


def test_an_unfinished_file_has_a_minute(tmp_path: Path) -> None:
    path = abandoned(tmp_path, "a", 1, ProcessIdentity.of(os.getpid()))
    path.write_bytes(b"")
    assert orphans(tmp_path, "a") == []
    long_ago = time.time() - 61
    os.utime(path, (long_ago, long_ago))
    assert orphans(tmp_path, "a") == [path]


def test_what_is_no_file_of_ours_is_no_orphan(tmp_path: Path) -> None:
    path = abandoned(tmp_path, "a", 1, ProcessIdentity(1, 1))
    link, folder = path.with_name(path.name[:-1] + "2"), path.with_name(path.name[:-1] + "3")
    link.symlink_to(path)
    folder.mkdir()
    assert orphans(tmp_path, "a") == [path]
