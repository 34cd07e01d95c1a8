"""What the warden does with real processes: launches, reports, orphans, and the end of everything."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.launch import Exited, Launched, LaunchFailed, ZygoteReady
from spearpool.processes import ProcessIdentity, children_of, wait_gone
from tests.conftest import TIME_SCALE, eventually
from tests.supervisor.warden_driver import FACTS, PATH, Driver, driving

pytestmark = [pytest.mark.process, pytest.mark.timeout(60, method="signal")]  # no timer thread: these tests fork

SERVE = "import atexit, json, os, sys, time\nimport spearpool.agent\n"
"""Task modules here replace the agent's `serve`: no pool is needed to be an instance."""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    with driving(tmp_path) as driver:
        yield driver


@pytest.fixture
def careless_descriptor() -> Iterator[None]:
    """One that whoever started us forgot to close, and that programs would inherit. Requested before `driver`."""
    fd = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield
    os.close(fd)


def task(driver: Driver, body: str, name: str = "task") -> int:
    """A ready zygote of a module with that body, which defines `serve`."""
    text = f"{SERVE}{FACTS}{body}\nspearpool.agent.serve = lambda handler: serve()\ndef handle(request): pass\n"
    (driver.directory / f"{name}.py").write_text(text)
    zygote = driver.zygote(f"{name}:handle")
    driver.wait(zygote, ZygoteReady)
    return zygote


def is_over(driver: Driver, launch: int) -> bool:
    return any(isinstance(report, Exited | LaunchFailed) for report in driver.of(launch))


SLEEPING_TASK = "def serve():\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n"


# --- programs ---------------------------------------------------------------------------------------------------------


def test_a_program_is_a_session_of_its_own_in_a_clean_place(careless_descriptor: None, driver: Driver) -> None:
    launch = driver.python(FACTS + "print(json.dumps(facts()))", environ=PATH | {"OWN": "ü"})
    launched = driver.wait(launch, Launched)
    driver.wait(launch, Exited)
    facts: dict[str, Any] = json.loads(driver.log.read_text())
    assert facts["pid"] == facts["sid"] == facts["pgid"] == launched.pid
    assert facts["ppid"] == driver.warden.pid
    assert facts["environ"].pop("LC_CTYPE", None) in {None, "C.UTF-8"}  # Python sets it for itself
    assert facts["environ"] == PATH | {"OWN": "ü"}
    assert facts["cwd"] == str(driver.directory)
    assert facts["stdio"] == ["/dev/null", str(driver.log), str(driver.log)]
    assert facts["fds"] == [0, 1, 2]
    assert facts["death_signal"] == signal.SIGKILL
    assert facts["subreaper"] == 1
    assert facts["core"] == [0, 0]
    assert facts["ignored"] & ~(1 << signal.SIGPIPE - 1) & ~(1 << signal.SIGXFSZ - 1) == 0  # Python's own two
    assert facts["blocked"] == 0


def test_a_launch_is_told_with_the_time_of_its_fork(driver: Driver) -> None:
    """The clock is the same for all processes, so the fork is before whatever the child ever sees."""
    before = time.monotonic_ns()
    launch = driver.python("import time; print(time.monotonic_ns())")
    launched = driver.wait(launch, Launched)
    driver.wait(launch, Exited)
    assert before < launched.forked_ns < int(driver.log.read_text())


def test_output_is_appended(driver: Driver) -> None:
    driver.log.write_text("before\n")
    for word in ("one", "two"):
        driver.wait(driver.program(["sh", "-c", f"echo {word}; echo {word} >&2"]), Exited)
    assert driver.log.read_text() == "before\none\none\ntwo\ntwo\n"


def test_limits_are_there_before_the_program(driver: Driver) -> None:
    cpu = min(os.sched_getaffinity(0))
    limits = ResourceLimits(memory_bytes=500_000_000, cpu_seconds=7, open_files=33, nice=5, cpu_affinity=(cpu,))
    driver.wait(driver.python(FACTS + "print(json.dumps(facts()))", limits), Exited)
    facts = json.loads(driver.log.read_text())
    assert facts["data"] == [500_000_000] * 2
    assert facts["cpu"] == [7, 8]
    assert facts["files"] == [33, 33]
    assert facts["nice"] == 5
    assert facts["affinity"] == [cpu]


def test_greedy_programs_meet_their_limits(driver: Driver) -> None:
    memory = driver.python("bytearray(200_000_000)", ResourceLimits(memory_bytes=100_000_000))
    modest = driver.python("bytearray(20_000_000)", ResourceLimits(memory_bytes=100_000_000))
    files = driver.python("[open('/dev/null') for _ in range(40)]", ResourceLimits(open_files=32))
    cpu = driver.program(["sh", "-c", "while :; do :; done"], ResourceLimits(cpu_seconds=1))
    assert driver.wait(memory, Exited).code == 1
    assert driver.wait(modest, Exited).code == 0
    assert driver.wait(files, Exited).code == 1
    assert driver.wait(cpu, Exited).signal == signal.SIGXCPU
    assert "MemoryError" in driver.log.read_text()
    assert "Too many open files" in driver.log.read_text()


ENDS: list[tuple[str, int | None, int | None]] = [
    ("exit 0", 0, None),
    ("exit 7", 7, None),
    ("exit 127", 127, None),
    ("exit 255", 255, None),
    ("kill -TERM $$", None, signal.SIGTERM),
    ("kill -KILL $$", None, signal.SIGKILL),
    ("kill -SEGV $$", None, signal.SIGSEGV),
    ("kill -40 $$", None, 40),
]


def test_every_kind_of_end_is_reported_as_it_was(driver: Driver) -> None:
    launches = [driver.program(["sh", "-c", text]) for text, _, _ in ENDS]
    ends = [driver.wait(launch, Exited) for launch in launches]
    assert [(end.code, end.signal) for end in ends] == [(code, signum) for _, code, signum in ENDS]
    for launch, end in zip(launches, ends, strict=True):
        assert [type(report) for report in driver.of(launch)] == [Launched, Exited]
        assert driver.wait(launch, Launched).pid == end.pid


def test_the_pidfd_is_of_this_process_and_polls_at_its_end(driver: Driver) -> None:
    launch = driver.program(["sleep", "600"])
    identity = driver.identity(launch)
    assert identity == ProcessIdentity.of(identity.pid)
    pidfd = driver.pidfds[launch]
    assert not select.select([pidfd], [], [], 0)[0]
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 20)[0]
    assert driver.wait(launch, Exited).signal == signal.SIGKILL


NO_PROGRAMS: list[tuple[list[str], str]] = [
    (["no-such-program"], "cannot execute 'no-such-program': there is no such program"),
    (["/no/such/program"], "there is no such program"),
    (["/etc/passwd/x"], "there is no such program"),
    (["./plain"], "it is not an executable file"),
    (["/"], "it is not an executable file"),
    (["./garbage"], "neither a binary for this machine nor a script with a #! line"),
    (["./orphan"], "the interpreter named in its first line does not exist"),
    (["true", "x" * 140_000], "its arguments and environment are too long"),
]


@pytest.mark.parametrize(("argv", "words"), NO_PROGRAMS, ids=[argv[0] for argv, _ in NO_PROGRAMS])
def test_no_program_is_no_launch(driver: Driver, argv: list[str], words: str) -> None:
    for name, text, mode in [
        ("plain", "#!/bin/sh\n", 0o644),
        ("garbage", "\x7fnonsense", 0o755),
        ("orphan", "#!/no/such/interpreter\n", 0o755),
    ]:
        (driver.directory / name).write_text(text)
        (driver.directory / name).chmod(mode)
    launch = driver.program(argv)
    assert words in driver.wait(launch, LaunchFailed).reason
    after = driver.program(["true"])
    driver.wait(after, Exited)
    assert [type(report) for report in driver.of(launch)] == [LaunchFailed]  # its exit is not an exit of a program
    assert children_of(driver.warden.pid) == []


def test_a_place_or_limit_that_cannot_be_is_named(driver: Driver) -> None:
    nowhere = driver.program(["true"], working_dir="/no/such/dir")
    reason = driver.wait(nowhere, LaunchFailed).reason
    assert reason == "working directory '/no/such/dir': No such file or directory"
    many = driver.program(["true"], ResourceLimits(open_files=2**40))
    reason = driver.wait(many, LaunchFailed).reason
    assert reason.startswith(f"limits.open_files = {2**40}: this user may have at most ")


def test_signals_reach_the_whole_group_and_nobody_else(driver: Driver) -> None:
    # the first of them waits: what its death leaves of the tree is killed
    body = "trap 'wait; echo got; exit 3' TERM; (trap 'echo got; exit' TERM; sleep 600 & echo up; wait) & echo up; wait"
    first, second = (driver.program(["sh", "-c", body]) for _ in range(2))
    driver.lines(4)
    driver.warden.signal_group(first, signal.SIGTERM)
    driver.warden.signal_group(12345, signal.SIGTERM)  # no such launch
    assert driver.wait(first, Exited).code == 3
    eventually(lambda: driver.log.read_text().count("got\n") == 2)
    assert driver.identity(second).alive()
    driver.warden.signal_group(first, signal.SIGTERM)  # gone
    driver.warden.kill_tree(first)
    driver.wait(driver.program(["true"]), Exited)
    assert driver.identity(second).alive()


# --- trees and orphans ------------------------------------------------------------------------------------------------

DAEMON = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:          # a daemon: its parent is gone, its session its own
        if os.fork() == 0:      # and with a child
            pass
        print(os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
"""


def daemons(driver: Driver, body: str) -> tuple[int, list[ProcessIdentity]]:
    """A running program with two daemonised processes below it."""
    launch = driver.python(DAEMON + body)
    return launch, [ProcessIdentity.of(int(pid)) for pid in driver.lines(2)]


def test_signal_tree_reaches_daemons_too(driver: Driver) -> None:
    launch, below = daemons(driver, "time.sleep(600)")
    pids = [driver.identity(launch).pid, *(identity.pid for identity in below)]
    driver.warden.signal_tree(launch, signal.SIGSTOP)
    eventually(lambda: all(Path(f"/proc/{pid}/stat").read_text().split()[2] == "T" for pid in pids), timeout_s=20)
    driver.warden.kill_tree(launch)
    assert driver.wait(launch, Exited).signal == signal.SIGKILL
    assert all(wait_gone(identity, 20) for identity in below)


def test_kill_tree_ends_daemons_too(driver: Driver) -> None:
    launch, below = daemons(driver, "time.sleep(600)")
    assert children_of(driver.warden.pid) == [driver.identity(launch).pid]  # the instance adopted its orphan
    driver.warden.kill_tree(launch)
    assert driver.wait(launch, Exited).signal == signal.SIGKILL
    assert all(wait_gone(identity, 20) for identity in below)


def test_orphans_of_a_program_that_ended_by_itself_are_ended(driver: Driver) -> None:
    bystander = driver.program(["sleep", "600"])
    launch, below = daemons(driver, "while not os.path.exists('go'): time.sleep(0.005)\nsys.exit(5)")
    (driver.directory / "go").touch()
    assert driver.wait(launch, Exited).code == 5
    assert all(wait_gone(identity, 20) for identity in below)
    assert driver.identity(bystander).alive()
    eventually(lambda: children_of(driver.warden.pid) == [driver.identity(bystander).pid])


def test_nothing_of_an_orphan_is_reported(driver: Driver) -> None:
    launch = driver.program(["sh", "-c", "sleep 0.05 & sleep 600 & exit 0"])
    driver.wait(launch, Exited)
    eventually(lambda: children_of(driver.warden.pid) == [])
    driver.wait(driver.program(["true"]), Exited)
    assert {report.launch for report in driver.reports} == {launch, launch + 1}


def test_a_tree_that_changes_while_it_is_killed(driver: Driver) -> None:
    body = "import os, time\nprint(1, flush=True)\nwhile True:\n    os.fork() or (time.sleep(0.02), os._exit(0))\n"
    launch = driver.python(body)
    driver.lines(1)
    driver.warden.kill_tree(launch)
    assert driver.wait(launch, Exited).signal == signal.SIGKILL
    eventually(lambda: children_of(driver.warden.pid) == [], timeout_s=20)


# --- zygotes ----------------------------------------------------------------------------------------------------------


def test_an_instance_of_a_zygote_is_like_a_program(careless_descriptor: None, driver: Driver) -> None:
    zygote = task(driver, "def serve():\n    print(json.dumps(facts()))\n    sys.exit(9)\n")
    launch = driver.fork(zygote, environ={"ONLY": "this"}, limits=ResourceLimits(open_files=44, nice=3))
    launched = driver.wait(launch, Launched)
    end = driver.wait(launch, Exited)
    assert (end.pid, end.code) == (launched.pid, 9)
    facts = json.loads(driver.log.read_text())
    assert facts["pid"] == facts["sid"] == facts["pgid"] == launched.pid
    assert facts["ppid"] == driver.warden.pid
    assert facts["environ"] == {"ONLY": "this"}
    assert facts["cwd"] == str(driver.directory)
    assert facts["fds"] == [0, 1, 2]
    assert facts["stdio"] == ["/dev/null", str(driver.log), str(driver.log)]
    assert (facts["death_signal"], facts["subreaper"]) == (signal.SIGKILL, 1)
    assert (facts["files"], facts["nice"], facts["core"]) == ([44, 44], 3, [0, 0])
    assert facts["threads"] == 1


def test_instances_outlive_their_zygote(driver: Driver) -> None:
    zygote = task(driver, SLEEPING_TASK)
    instance = driver.fork(zygote)
    identity = driver.identity(instance)
    driver.warden.kill_tree(zygote)
    assert driver.wait(zygote, Exited).signal == signal.SIGKILL
    assert "its zygote is gone" in driver.wait(driver.fork(zygote), LaunchFailed).reason
    assert identity.alive()
    driver.warden.kill_tree(instance)
    assert driver.wait(instance, Exited).signal == signal.SIGKILL
    assert [type(report) for report in driver.of(zygote)] == [Launched, ZygoteReady, Exited]


def test_forks_under_way_when_the_zygote_dies_are_answered_each(driver: Driver) -> None:
    zygote = task(driver, SLEEPING_TASK)
    os.kill(driver.identity(zygote).pid, signal.SIGSTOP)
    launches = [driver.fork(zygote) for _ in range(20)]
    driver.warden.kill_tree(launches[0])  # under way
    driver.warden.kill_tree(launches[19])  # waits behind others
    for launch in (launches[0], launches[19]):
        assert driver.wait(launch, LaunchFailed).reason == "it was stopped before it was forked"
    driver.warden.kill_tree(zygote)
    for launch in launches[1:19]:
        assert driver.wait(launch, LaunchFailed).reason in {
            "its zygote is gone",
            "its zygote ended before it could fork",
        }
    driver.wait(zygote, Exited)
    assert Counter(report.launch for report in driver.reports if report.launch in launches) == Counter(launches)
    assert driver.log.read_text() == ""


def test_a_stopped_fork_that_happens_after_all_is_ended(driver: Driver) -> None:
    zygote = task(driver, SLEEPING_TASK)
    os.kill(driver.identity(zygote).pid, signal.SIGSTOP)
    stopped, wanted = driver.fork(zygote), driver.fork(zygote)
    driver.warden.kill_tree(stopped)
    driver.wait(stopped, LaunchFailed)
    os.kill(driver.identity(zygote).pid, signal.SIGCONT)
    identity = driver.identity(wanted)
    pids = {identity.pid, driver.identity(zygote).pid}
    eventually(lambda: set(children_of(driver.warden.pid)) == pids)
    assert [type(report) for report in driver.of(stopped)] == [LaunchFailed]
    assert identity.alive()


def test_announced_instances_are_never_taken_for_orphans(driver: Driver) -> None:
    """Children end all the time, so the warden looks for strangers all the time, while instances arrive."""
    zygotes = [task(driver, SLEEPING_TASK, name) for name in ("one", "two")]
    forks = []
    for _ in range(20):
        noise = driver.program(["sh", "-c", "(sleep 0.001; exit 0) & exit 0"])
        forks += [driver.fork(zygote) for zygote in zygotes]
        driver.wait(noise, Exited)
    for launch in forks:
        driver.wait(launch, Launched)
    driver.wait(driver.program(["true"]), Exited)
    assert all(driver.identity(launch).alive() for launch in forks)
    assert len({driver.identity(launch).pid for launch in forks}) == len(forks)


def test_a_target_that_cannot_be_imported_is_no_launch(driver: Driver) -> None:
    (driver.directory / "broken.py").write_text("def f():\n    raise RuntimeError('no model file')\nf()\n")
    launch = driver.zygote("broken:handle")
    reason = driver.wait(launch, LaunchFailed).reason
    assert reason.startswith("Traceback")
    assert 'broken.py", line 3, in <module>' in reason
    assert reason.endswith("RuntimeError: no model file\n")
    eventually(lambda: children_of(driver.warden.pid) == [])
    driver.wait(driver.program(["true"]), Exited)
    assert [type(report) for report in driver.of(launch)] == [LaunchFailed]


def test_a_zygote_that_ends_while_importing_is_no_launch(driver: Driver) -> None:
    (driver.directory / "abrupt.py").write_text("import os\nos._exit(4)\n")
    (driver.directory / "stuck.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    abrupt, stuck = driver.zygote("abrupt:handle"), driver.zygote("stuck:handle")
    assert "exited with code 4 before it was ready" in driver.wait(abrupt, LaunchFailed).reason
    driver.lines(1)
    waiting = driver.fork(stuck)
    driver.warden.kill_tree(stuck)
    assert "SIGKILL before it was ready" in driver.wait(stuck, LaunchFailed).reason
    driver.wait(waiting, LaunchFailed)
    driver.wait(driver.program(["true"]), Exited)
    assert [type(report) for report in driver.of(stuck)] == [LaunchFailed]


def test_an_instance_killed_in_its_first_moment_is_launched_and_ended(driver: Driver) -> None:
    zygote = task(driver, SLEEPING_TASK)
    for _ in range(10):
        launch = driver.fork(zygote)
        driver.warden.kill_tree(launch)
        driver.until(partial(is_over, driver, launch))
        assert [type(report) for report in driver.of(launch)] in ([LaunchFailed], [Launched, Exited])
    eventually(lambda: children_of(driver.warden.pid) == [driver.identity(zygote).pid])


# --- the supervisor ---------------------------------------------------------------------------------------------------


def test_a_supervisor_that_does_not_listen_blocks_nothing(driver: Driver) -> None:
    """More reports than the socket holds; requests are served all the while, and no report is lost."""
    for _ in range(300):
        driver.program(["no-such-program"])
    marker = driver.directory / "marker"
    last = driver.program(["touch", str(marker)])
    while driver.warden.wants_write:
        driver.warden.flush()
        time.sleep(0.001)
    eventually(marker.exists, timeout_s=30)
    driver.wait(last, Exited)
    assert Counter(report.launch for report in driver.reports) == Counter([*range(1, last + 1), last])


def test_too_many_launches_under_way_are_refused(driver: Driver) -> None:
    zygote = task(driver, SLEEPING_TASK)
    os.kill(driver.identity(zygote).pid, signal.SIGSTOP)
    launches = [driver.fork(zygote) for _ in range(501)]
    while driver.warden.wants_write:
        driver.warden.flush()
        driver.hear(0.001)
    assert driver.wait(launches[-1], LaunchFailed).reason == "500 other launches are under way"
    assert not driver.of(launches[-2])


def test_the_end_of_the_supervisor_is_the_end_of_all(driver: Driver) -> None:
    _, daemonised = daemons(driver, "time.sleep(600)")
    zygote = task(driver, "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPING_TASK)
    launches = [driver.fork(zygote) for _ in range(3)]
    launches.append(driver.python("import os, time; os.fork(); time.sleep(600)"))
    worker, control = driver.worker()
    with control:
        everyone = [driver.identity(launch) for launch in (zygote, worker, *launches)] + daemonised
        started = time.monotonic()
        driver.warden.close()
        assert time.monotonic() - started < 2 * TIME_SCALE
        assert [identity for identity in everyone if identity.alive()] == []
        assert control.recv(10) == b""
