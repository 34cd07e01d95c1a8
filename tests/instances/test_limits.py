from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.limits import _KINDS, UNLIMITED, LimitWatch, Reading
from spearpool.metrics.vocabulary import LIMITS, LimitLevel
from spearpool.processes import ProcessIdentity
from tests.conftest import eventually

MIB = 2**20
CPU = min(os.sched_getaffinity(0))

OBEDIENT = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Child:
    """A Python process that executes the lines it is sent."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.identity = ProcessIdentity.of(popen.pid)

    def do(self, line: str) -> None:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()
        assert self.popen.stdout.readline() == "done\n"


@contextmanager
def child(**limits: int | tuple[int, ...]) -> Iterator[tuple[Child, LimitWatch]]:
    """A process with these limits in force, as `instances.confine` sets them."""
    wanted = ResourceLimits(**limits)  # type: ignore[arg-type]
    with subprocess.Popen(
        [sys.executable, "-c", OBEDIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline() == "ready\n"
        for name, which in (
            ("memory_bytes", resource.RLIMIT_DATA),
            ("cpu_seconds", resource.RLIMIT_CPU),
            ("open_files", resource.RLIMIT_NOFILE),
        ):
            if (value := getattr(wanted, name)) is not None:
                resource.prlimit(popen.pid, which, (value, value + (name == "cpu_seconds")))
        if wanted.nice is not None:
            os.setpriority(os.PRIO_PROCESS, popen.pid, wanted.nice)
        if wanted.cpu_affinity is not None:
            os.sched_setaffinity(popen.pid, wanted.cpu_affinity)
        try:
            process = Child(popen)
            yield process, LimitWatch(process.identity, wanted)
        finally:
            popen.kill()


def reading_of(watch: LimitWatch, name: str) -> Reading:
    return next(reading for reading in watch.sample() if LIMITS[reading.index] == name)


def test_limits_are_read_back_from_the_kernel() -> None:
    with child(memory_bytes=512 * MIB, cpu_seconds=50, open_files=64, nice=7, cpu_affinity=(CPU,)) as (_, watch):
        found = {LIMITS[limit.index]: (limit.value, limit.level) for limit in watch.sample()}
    values = {"memory_bytes": 512 * MIB, "cpu_seconds": 50, "open_files": 64, "nice": 7, "cpu_affinity": 1}
    assert found == {name: (value, LimitLevel.ENFORCED) for name, value in values.items()}


def test_only_what_was_asked_for_is_told() -> None:
    with child(open_files=64) as (_, watch):
        assert [LIMITS[reading.index] for reading in watch.sample()] == ["open_files"]
    with child() as (_, watch):
        assert watch.sample() == []


def test_a_value_that_is_not_the_one_asked_for_is_only_watched() -> None:
    with child(open_files=64, nice=3) as (process, watch):
        resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, (50, 50))
        process.do("import os; os.nice(2)")
        assert [(reading.value, reading.level) for reading in watch.sample()] == [
            (50, LimitLevel.WATCHED),
            (5, LimitLevel.WATCHED),
        ]


@pytest.mark.parametrize(
    ("name", "line", "at_least"),
    [
        ("memory_bytes", "held = bytearray(50_000_000)", 50_000_000),
        ("open_files", "held = [open('/dev/null') for _ in range(20)]", 20),
        ("nice", "import os; os.nice(4)", 4),
    ],
)
def test_usage_follows_the_process(name: str, line: str, at_least: int) -> None:
    with child(**{name: {"memory_bytes": 512 * MIB, "open_files": 100, "nice": 1}[name]}) as (process, watch):
        before = reading_of(watch, name).usage
        process.do(line)
        assert reading_of(watch, name).usage - before >= at_least


def test_cpu_time_is_counted_and_its_end_is_a_breach() -> None:
    with child(cpu_seconds=1) as (process, watch):
        assert process.popen.stdin is not None
        process.popen.stdin.write("while True: pass\n")
        process.popen.stdin.flush()
        (before,) = watch.sample()
        assert process.popen.wait(30) == -signal.SIGXCPU
        assert watch.sample() == [], "it is gone"
        assert watch.ended(signal.SIGXCPU) == "its limit cpu_seconds = 1 was used up"
        (after,) = watch.final()
        assert (before.breaches, after.breaches) == (0, 1)


def test_a_kill_is_a_breach_only_when_the_time_is_used_up() -> None:
    with child(cpu_seconds=1) as (process, watch):
        assert watch.ended(signal.SIGKILL) is None
        assert watch.ended(signal.SIGTERM) is None
        assert watch.ended(None) is None
        process.do("import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)")
        assert process.popen.stdin is not None
        process.popen.stdin.write("while True: pass\n")
        process.popen.stdin.flush()

        def over() -> bool:
            watch.sample()
            return process.popen.poll() is not None

        eventually(over, 30)
        assert process.popen.returncode == -signal.SIGKILL
        assert watch.ended(signal.SIGKILL) is not None
    with child(open_files=64) as (_, watch):
        assert watch.ended(signal.SIGXCPU) is None, "no limit of ours"


def set_cpu_seconds(pid: int, soft: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_CPU, (soft, 51))


Change = Callable[[int], None]
EVERY = tuple(os.sched_getaffinity(0))
CHANGES: dict[str, tuple[int | tuple[int, ...], int, int, Change, Change]] = {
    "nice": (
        5,
        5,
        2,
        lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 2),
        lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 5),
    ),
    "cpu_affinity": (
        (CPU,),
        1,
        len(EVERY),
        lambda pid: os.sched_setaffinity(pid, EVERY),
        lambda pid: os.sched_setaffinity(pid, (CPU,)),
    ),
    "cpu_seconds": (
        50,
        50,
        51,
        lambda pid: set_cpu_seconds(pid, 51),
        lambda pid: set_cpu_seconds(pid, 50),
    ),
}
"""Limit → what is asked for, its value, the value when it is loosened, how that is done, and undone."""


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_process_loosens_itself_is_watched_and_counted_each_time(name: str) -> None:
    if name == "nice" and os.geteuid() != 0:
        pytest.skip("a nice value can be lowered by root only")
    if name == "cpu_affinity" and len(EVERY) == 1:
        pytest.skip("one CPU: nothing to widen")
    wanted, kept, loose, loosen, restore = CHANGES[name]
    with child(**{name: wanted}) as (process, watch):

        def seen() -> tuple[int, LimitLevel, int]:
            reading = reading_of(watch, name)
            return reading.value, reading.level, reading.breaches

        assert seen() == (kept, LimitLevel.ENFORCED, 0)
        for count in (1, 2):
            loosen(process.popen.pid)
            assert seen() == (loose, LimitLevel.WATCHED, count)
            assert seen() == (loose, LimitLevel.WATCHED, count), "once for each time it happens"
            restore(process.popen.pid)
            assert seen() == (kept, LimitLevel.ENFORCED, count)


def test_a_stricter_limit_is_another_one_but_no_breach() -> None:
    with child(open_files=64, nice=3) as (process, watch):
        resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, (50, 64))
        os.setpriority(os.PRIO_PROCESS, process.popen.pid, 9)
        assert [(reading.level, reading.breaches) for reading in watch.sample()] == [(LimitLevel.WATCHED, 0)] * 2
        resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, (64, 64))
        assert reading_of(watch, "open_files").level is LimitLevel.ENFORCED


@pytest.mark.parametrize("name", ["memory_bytes", "cpu_seconds", "open_files"])
def test_no_limit_is_looser_than_any(name: str) -> None:
    """Only the privileged can do it to a process, so the rule is asked."""
    looser = _KINDS[name].looser
    assert [looser(found, 64) for found in (UNLIMITED, 65, 64, 63, 0)] == [True, True, False, False, False]


def test_a_process_that_may_not_be_looked_at_is_only_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it runs a program of another user; its limits are what was asked for, so far as we know."""
    with child(open_files=64) as (process, watch):
        process.do("held = [open('/dev/null') for _ in range(5)]")
        seen = reading_of(watch, "open_files")

        def denied(*_: object) -> int:
            raise psutil.AccessDenied(process.popen.pid)

        monkeypatch.setattr(psutil.Process, "rlimit", denied)
        assert reading_of(watch, "open_files") == replace(seen, level=LimitLevel.WATCHED)


def test_a_process_that_is_gone_or_another_one() -> None:
    with child(open_files=64) as (process, watch):
        other = LimitWatch(ProcessIdentity(process.popen.pid, process.identity.start_ticks + 1), ResourceLimits(nice=1))
        assert other.sample() == other.final() == []
        (last,) = watch.sample()
        process.popen.kill()
        eventually(lambda: not process.identity.alive())
        assert watch.sample() == [], "a zombie"
        process.popen.wait()
        assert watch.sample() == []
        assert watch.final() == [last]
