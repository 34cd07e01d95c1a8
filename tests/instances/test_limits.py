from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.limits import LimitWatch, Usage
from spearpool.metrics.layout import LIMITS, LimitLevel
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


def usage_of(watch: LimitWatch, name: str) -> Usage:
    return next(usage for usage in watch.sample() if LIMITS[usage.index] == name)


def silent(watch: LimitWatch) -> bool:
    return not watch.limits() and not watch.sample()


def test_limits_are_read_back_from_the_kernel() -> None:
    with child(memory_bytes=512 * MIB, cpu_seconds=50, open_files=64, nice=7, cpu_affinity=(CPU,)) as (_, watch):
        found = {LIMITS[limit.index]: (limit.value, limit.level) for limit in watch.limits()}
    values = {"memory_bytes": 512 * MIB, "cpu_seconds": 50, "open_files": 64, "nice": 7, "cpu_affinity": 1}
    assert found == {name: (value, LimitLevel.ENFORCED) for name, value in values.items()}


def test_only_what_was_asked_for_is_told() -> None:
    with child(open_files=64) as (_, watch):
        assert [LIMITS[limit.index] for limit in watch.limits()] == ["open_files"]
        assert [LIMITS[usage.index] for usage in watch.sample()] == ["open_files"]
    with child() as (_, watch):
        assert silent(watch)


def test_a_value_that_is_not_the_one_asked_for_is_only_watched() -> None:
    with child(open_files=64, nice=3) as (process, watch):
        resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE, (50, 50))
        process.do("import os; os.nice(2)")
        assert [(limit.value, limit.level) for limit in watch.limits()] == [
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
        before = usage_of(watch, name).usage
        process.do(line)
        assert usage_of(watch, name).usage - before >= at_least


def test_cpu_time_is_counted_and_its_end_is_a_breach() -> None:
    with child(cpu_seconds=1) as (process, watch):
        assert process.popen.stdin is not None
        process.popen.stdin.write("while True: pass\n")
        process.popen.stdin.flush()
        assert process.popen.wait(30) == -signal.SIGXCPU
        assert watch.sample() == [], "it is gone"
        assert watch.ended(signal.SIGXCPU) == "its limit cpu_seconds = 1 was used up"
        (usage,) = watch.final()
        assert usage.breaches == 1


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


def loosened(name: str) -> tuple[dict[str, int | tuple[int, ...]], Callable[[int], None], Callable[[int], None]]:
    every = tuple(os.sched_getaffinity(0))
    if name == "nice":
        return (
            {"nice": 5},
            lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 2),
            lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 6),
        )
    return (
        {"cpu_affinity": (CPU,)},
        lambda pid: os.sched_setaffinity(pid, every),
        lambda pid: os.sched_setaffinity(pid, (CPU,)),
    )


@pytest.mark.parametrize("name", ["nice", "cpu_affinity"])
def test_what_a_process_may_loosen_itself_is_counted_each_time(name: str) -> None:
    if name == "nice" and os.geteuid() != 0:
        pytest.skip("a nice value can be lowered by root only")
    if name == "cpu_affinity" and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("one CPU: nothing to widen")
    limits, loosen, tighten = loosened(name)
    with child(**limits) as (process, watch):
        assert usage_of(watch, name).breaches == 0
        for count in (1, 2):
            loosen(process.popen.pid)
            assert usage_of(watch, name).breaches == count
            assert usage_of(watch, name).breaches == count, "once for each time it happens"
            assert watch.limits()[0].level is LimitLevel.WATCHED
            tighten(process.popen.pid)
            assert usage_of(watch, name).breaches == count


def test_a_process_that_is_gone_or_another_one() -> None:
    with child(open_files=64) as (process, watch):
        other = LimitWatch(ProcessIdentity(process.popen.pid, process.identity.start_ticks + 1), ResourceLimits(nice=1))
        assert silent(other)
        process.popen.kill()
        eventually(lambda: not process.identity.alive())
        assert silent(watch), "a zombie"
        process.popen.wait()
        assert silent(watch)
        assert watch.final() == [Usage(LIMITS.index("open_files"), 0, 0)]
