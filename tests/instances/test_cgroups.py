"""Control groups: which one is used, what is written into them, and what the kernel makes of it where it lets us.

What the kernel would do with limits is tried with real groups where controllers are delegated; elsewhere these tests
skip, and say so. A plain directory stands in for a group where only what we write and read is looked at.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from spearpool.config import ResourceLimits
from spearpool.errors import PoolStartError
from spearpool.instances.cgroups import InstanceGroup, PoolGroup, open_pool_group
from spearpool.metrics.vocabulary import LIMITS, LimitLevel
from tests.conftest import eventually
from tests.integration.live_pool import writable_cgroup_root

HELD = {"memory_bytes": 64 << 20, "cpu_cores": 0.25, "processes": 8}
CONTROLLERS = {"memory_bytes": "memory", "cpu_cores": "cpu", "processes": "pids"}


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Iterator[PoolGroup]:
    """A pool's group in the kernel's own tree."""
    root = writable_cgroup_root()
    if root is None:
        pytest.skip("no control group of version 2 is writable here")
    parent = root / f"spearpool-test-{uuid.uuid4().hex[:8]}"
    group = open_pool_group(str(parent), "p", [])
    assert group is not None
    try:
        yield group
    finally:
        group.close()
        assert not parent.exists(), "it was made for this"


def _sleeper(group: InstanceGroup, code: str = "import time; time.sleep(600)") -> subprocess.Popen[bytes]:
    """A process that enters the group before its program runs, as instances do."""
    enter = f"import os; open({str(group.path / 'cgroup.procs')!r}, 'w').write('0')\n"
    return subprocess.Popen([sys.executable, "-c", f"{enter}print(1, flush=True)\n{code}"], stdout=subprocess.PIPE)


def _there(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"


def test_everybody_in_a_group_dies_with_it_wherever_he_went(real: PoolGroup) -> None:
    group = real.make("t-0-1", ResourceLimits())
    code = "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\ntime.sleep(600)"
    with _sleeper(group, code) as process:
        _there(process)
        process.wait(10)
        daemon = eventually(lambda: (group.path / "cgroup.procs").read_text().split())
        real.leave(group)

        def gone() -> bool:
            real.tick()
            return not group.path.exists()

        assert eventually(gone)
        assert all(not Path(f"/proc/{pid}/exe").exists() for pid in daemon)


def test_what_an_earlier_pool_of_the_name_left_is_ended(real: PoolGroup) -> None:
    left = real.make("t-0-1", ResourceLimits())
    other = real.make("t-1-1", ResourceLimits())
    with _sleeper(left) as process:
        _there(process)
        again = open_pool_group(str(real.path.parent), "p", [])
        assert again is not None
        assert again.path == real.path
        assert process.wait(10) == -9
        assert not left.path.exists()
        assert not other.path.exists()
    assert real.make("t-0-1", ResourceLimits()).path == left.path, "its name is free"


@pytest.mark.parametrize("name", HELD)
def test_a_limit_that_the_kernel_keeps(real: PoolGroup, name: str) -> None:
    if CONTROLLERS[name] not in (real.path / "cgroup.controllers").read_text().split():
        pytest.skip(f"the controller {CONTROLLERS[name]} is not to be had here")
    group = real.make("t-0-1", ResourceLimits(**{name: HELD[name]}))  # type: ignore[arg-type]
    assert group.enforced == {name: HELD[name]}
    greedy = {
        "memory_bytes": "held = []\nwhile True: held.append(bytearray(1 << 20))",
        "cpu_cores": "while True: pass",
        "processes": "import os, time\nwhile True:\n  try:\n    if not os.fork(): time.sleep(600)\n"
        "  except BlockingIOError: time.sleep(600)",
    }
    with _sleeper(group, greedy[name]) as process:
        _there(process)
        try:
            (reading,) = group.readings()
            assert (LIMITS[reading.index], reading.level) == (name, LimitLevel.ENFORCED)

            def met() -> bool:
                return any(reading.breaches for reading in group.readings())

            assert eventually(met, 10)
            if name == "memory_bytes":
                assert process.wait(10) == -9
                assert "memory_bytes" in group.killed_by()
            elif name == "processes":
                assert len((group.path / "cgroup.procs").read_text().split()) <= HELD[name]
            else:
                group.readings()
                time.sleep(1)
                (reading,) = group.readings()
                assert reading.usage <= 0.25 * 1.5 * 1000
        finally:
            group.kill()


def _plain(directory: Path, *files: str) -> InstanceGroup:
    """A directory that looks like a group with these files."""
    for file in files:
        (directory / file).write_text("")
    return InstanceGroup(directory)


def test_what_is_written_and_what_is_read(tmp_path: Path) -> None:
    group = _plain(tmp_path, "memory.max", "cpu.max", "pids.max", "memory.oom.group")
    group.take(ResourceLimits(memory_bytes=1 << 20, cpu_cores=1.5, processes=7, open_files=20))
    assert group.enforced == {"memory_bytes": 1 << 20, "cpu_cores": 1.5, "processes": 7}
    assert (tmp_path / "cpu.max").read_text() == "150000 100000"
    assert (tmp_path / "memory.oom.group").read_text() == "1"
    for file, text in (
        ("memory.current", "5000\n"),
        ("memory.events", "low 0\noom 2\noom_kill 1\n"),
        ("cpu.stat", "usage_usec 0\nnr_throttled 3\n"),
        ("pids.current", "4\n"),
        ("pids.events", "max 9\n"),
    ):
        (tmp_path / file).write_text(text)
    read = {LIMITS[reading.index]: reading for reading in group.readings()}
    assert {name: (each.usage, each.breaches) for name, each in read.items()} == {
        "memory_bytes": (5000, 2),
        "cpu_cores": (0, 3),
        "processes": (4, 9),
    }
    assert {each.level for each in read.values()} == {LimitLevel.ENFORCED}
    assert group.killed_by() == "its limit memory_bytes = 1048576 was reached"
    (tmp_path / "pids.current").unlink()
    assert len(group.readings()) == 2, "it is going just now"


def test_without_controllers_nothing_is_enforced(tmp_path: Path) -> None:
    group = _plain(tmp_path, "cgroup.procs")
    group.take(ResourceLimits(memory_bytes=1 << 20, processes=7))
    assert group.enforced == {}
    assert group.readings() == []
    assert group.killed_by() == ""


def _machine(directory: Path, own: str, members: str = "") -> tuple[Path, Path]:
    """A stand-in for /proc, and for a tree of groups in which we are in `own`."""
    proc, tree = directory / "proc", directory / "tree"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text(f"30 20 0:1 / {tree} rw,relatime shared:1 - cgroup2 cgroup2 rw\n")
    (proc / "self/cgroup").write_text(f"0::/{own}\n")
    (tree / own).mkdir(parents=True)
    for file, text in (
        ("cgroup.procs", members),
        ("cgroup.controllers", "cpu io pids"),
        ("cgroup.subtree_control", ""),
    ):
        (tree / own / file).write_text(text)
    if os.geteuid() == 0:
        os.chown(tree / own, 65534, -1)  # what belongs to root was delegated to nobody
    return proc, tree / own


def test_our_own_group_is_used_when_it_is_ours_alone(tmp_path: Path) -> None:
    proc, own = _machine(tmp_path, "user.slice/pool.service", "11\n12\n")
    pool = own / "pool-p"
    pool.mkdir()
    for file in ("cgroup.controllers", "cgroup.subtree_control"):
        (pool / file).write_text("cpu pids")
    (own / "spearpool-main").mkdir()
    group = open_pool_group("auto", "p", [11, 12, 13], proc)
    assert group is not None
    assert group.path == pool
    assert (own / "spearpool-main/cgroup.procs").read_text() == "13", "written one by one"
    assert (own / "cgroup.subtree_control").read_text() == "+pids"


CASES = ["others are in it", "the root", "not writable", "the service manager's", "off", "no version 2"]


@pytest.mark.parametrize("case", CASES)
def test_a_group_that_is_not_ours_to_arrange_is_left_alone(tmp_path: Path, case: str) -> None:
    own = "" if case == "the root" else "user.slice/session.scope"
    proc, group = _machine(tmp_path, own, "11\n4711\n" if case == "others are in it" else "11\n")
    if case == "not writable":
        (group / "cgroup.subtree_control").unlink()
    if case == "the service manager's":
        if os.geteuid() != 0:
            pytest.skip("only root could mistake it for its own")
        os.chown(group, 0, -1)
    if case == "no version 2":
        (proc / "self/mountinfo").write_text("30 20 0:1 / /sys rw - sysfs sysfs rw\n")
    before = sorted(group.rglob("*"))
    assert open_pool_group("off" if case == "off" else "auto", "p", [11], proc) is None
    assert sorted(group.rglob("*")) == before


def test_a_directory_that_is_no_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolStartError, match="is no control group of version 2"):
        open_pool_group(str(tmp_path / "elsewhere"), "p", [])
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(PoolStartError, match="cannot be used: No such file"):
        open_pool_group(str(tmp_path / "no/such/parent"), "p", [])


def test_what_is_gone_already_is_no_trouble(tmp_path: Path) -> None:
    group = InstanceGroup(tmp_path / "gone")
    group.kill()
    assert group.readings() == []
    pool = PoolGroup(tmp_path)
    pool.leave(group)
    pool.tick()
    with suppress(FileNotFoundError):
        pool.close()
