"""The supervisor's end of the warden: workers, and what happens when one of the two is gone."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spearpool.channel import ChannelClosed
from spearpool.instances.launch import Exited, Launched, Launcher, LaunchFailed
from spearpool.processes import ProcessIdentity, children_of, start_ticks, wait_gone
from spearpool.supervisor.warden import Warden
from tests.conftest import TIME_SCALE
from tests.supervisor.warden_driver import Driver, driving, serve_orders

pytestmark = [pytest.mark.process, pytest.mark.timeout(60, method="signal")]  # no timer thread: these tests fork


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    with driving(tmp_path) as driver:
        yield driver


def ask(control: socket.socket, order: str) -> Any:
    control.send(order.encode())
    return json.loads(control.recv(65536))


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_worker_holds_its_control_end_and_nothing_else(driver: Driver) -> None:
    other, other_control = driver.worker("0 [test]")
    program = driver.program(["sleep", "600"])  # its status pipe and pidfd are the warden's, not the worker's
    driver.wait(other, Launched)
    driver.wait(program, Launched)
    launch, control = driver.worker("1 [test]")
    with control, other_control:
        launched = driver.wait(launch, Launched)
        facts = ask(control, "facts")
        assert (facts["pid"], facts["ppid"]) == (launched.pid, driver.warden.pid)
        assert start_ticks(launched.pid) == launched.start_ticks
        assert len(facts["fds"]) == 4
        assert facts["fds"][:3] == [0, 1, 2]
        assert facts["stdio"][0] == "/dev/null"
        assert facts["death_signal"] == signal.SIGKILL
        assert facts["blocked"] == 0
        assert facts["ignored"] & 1 << signal.SIGINT - 1
        assert not facts["ignored"] & 1 << signal.SIGTERM - 1
        assert facts["threads"] == 1
        assert facts["title"] == "spearpool: worker 1 [test]"
        title = Path(f"/proc/{driver.warden.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
        assert title == "spearpool: warden [test]"


@pytest.mark.parametrize(
    ("order", "code", "signum"),
    [
        ("exit 0", 0, None),
        ("exit 3", 3, None),
        ("exit 78", 78, None),
        ("raise", 1, None),
        ("signal 9", None, signal.SIGKILL),
        ("signal 15", None, signal.SIGTERM),
        ("signal 11", None, signal.SIGSEGV),
    ],
)
def test_the_end_of_a_worker_is_reported(driver: Driver, order: str, code: int | None, signum: int | None) -> None:
    launch, control = driver.worker()
    with control:
        control.send(order.encode())
        end = driver.wait(launch, Exited)
    assert (end.code, end.signal) == (code, signum)
    assert end.pid == driver.wait(launch, Launched).pid
    assert select.select([driver.pidfds[launch]], [], [], 0)[0]


def test_multiprocess_steals_no_exit(driver: Driver) -> None:
    """It polls all its children whenever it starts one; these end at just that time, among programs that end, too."""
    expected = {}
    for code in range(40):
        launch, control = driver.worker()
        with control:
            control.send(f"exit {code}".encode())
        expected[launch] = code
        if code % 4 == 0:
            expected[driver.program(["sh", "-c", f"exit {100 + code}"])] = 100 + code
    for launch, code in expected.items():
        assert driver.wait(launch, Exited).code == code
    driver.wait(driver.program(["true"]), Exited)
    answers = Counter((report.launch, type(report)) for report in driver.reports)
    assert set(answers.values()) == {1}
    assert children_of(driver.warden.pid) == []


def test_the_end_of_a_control_channel_is_seen_at_once(driver: Driver) -> None:
    """Workers that were forked later hold no copy of our end or of the other's."""
    launch, control = driver.worker()
    driver.wait(launch, Launched)
    later = [driver.worker() for _ in range(3)]
    control.close()
    assert driver.wait(launch, Exited).code == 0
    assert len({driver.wait(number, Launched).pid for number, _ in later}) == 3
    for number, end in later:
        with end:
            driver.warden.kill_tree(number)
            assert driver.wait(number, Exited).signal == signal.SIGKILL
            assert end.recv(10) == b""


def test_the_terminal_is_answered_by_the_supervisor_alone(driver: Driver) -> None:
    launch, control = driver.worker()
    with control:
        worker = driver.identity(launch)
        for signum in (signal.SIGINT, signal.SIGHUP):
            os.kill(worker.pid, signum)
            os.kill(driver.warden.pid, signum)
        os.kill(driver.warden.pid, signal.SIGTERM)
        assert ask(control, "facts")["pid"] == worker.pid
    assert driver.wait(launch, Exited).code == 0


def test_preloaded_modules_are_there_before_the_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "warm_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with driving(tmp_path, preload=["warm_module"]) as driver:
        _, control = driver.worker()
        with control:
            assert "warm_module" in ask(control, "modules")
    assert "warm_module" not in sys.modules  # not our time, not our memory


def test_the_warden_is_light() -> None:
    body = "import spearpool.supervisor.warden, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", body], check=True, capture_output=True, text=True).stdout.split()
    assert not {"numpy", "zmq", "psutil", "click", "rich", "structlog", "asyncio"} & set(loaded)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_close_ends_the_warden_once() -> None:
    warden = Warden.start("test", serve_orders)
    launcher: Launcher = warden  # what `ProcessRuntime` needs of it
    assert isinstance(launcher, Warden)
    identity = ProcessIdentity.of(warden.pid)
    warden.close()
    assert not identity.alive()
    assert start_ticks(identity.pid) != identity.start_ticks  # reaped
    warden.close()


def test_a_warden_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spearpool.supervisor.warden._END_S", 0.05)
    warden = Warden.start("test", serve_orders)
    identity = ProcessIdentity.of(warden.pid)
    os.kill(warden.pid, signal.SIGSTOP)
    warden.close()
    assert not identity.alive()


def test_a_killed_warden_is_seen_and_its_children_end(driver: Driver) -> None:
    launch, control = driver.worker()
    with control:
        programs = [driver.program(["sleep", "600"]) for _ in range(3)]
        everyone = [driver.identity(number) for number in (launch, *programs)]
        assert not select.select([driver.warden.pidfd], [], [], 0)[0]
        os.kill(driver.warden.pid, signal.SIGKILL)
        assert select.select([driver.warden.pidfd], [], [], 20)[0]
        assert all(wait_gone(identity, 20 * TIME_SCALE) for identity in everyone)
    with pytest.raises(ChannelClosed):
        driver.until(lambda: False)
    driver.program(["true"])  # requests to nobody are dropped
    driver.warden.kill_tree(launch)
    driver.warden.signal_group(launch, signal.SIGTERM)


SUPERVISOR = """
import os, select, sys, time
from spearpool.config import ResourceLimits
from spearpool.instances.launch import LaunchSpec
from spearpool.processes import become_subreaper
from spearpool.supervisor.warden import Warden
become_subreaper()
warden = Warden.start("test", lambda control: time.sleep(600))
spec = LaunchSpec([sys.executable, "-c", sys.argv[1]], dict(os.environ), "/", ResourceLimits())
warden.launch(1, spec, 1)
"""

INSTANCE = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def supervisor(ending: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR + ending, INSTANCE], stdout=subprocess.PIPE)


def family(process: subprocess.Popen[bytes]) -> list[ProcessIdentity]:
    """The warden, an instance and its daemon."""
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(2)]
    return [ProcessIdentity.of(pid) for pid in (*children_of(process.pid), *pids)]


def test_nobody_outlives_a_killed_supervisor() -> None:
    with supervisor("time.sleep(600)") as process:
        everyone = family(process)
        assert len(everyone) == 3
        process.kill()
        killed = time.monotonic()
        assert all(wait_gone(identity, 20 * TIME_SCALE) for identity in everyone)
        assert time.monotonic() - killed < 2 * TIME_SCALE


@pytest.mark.parametrize(("ending", "code"), [("time.sleep(0.5)", 0), ("time.sleep(0.5); raise SystemExit(7)", 7)])
def test_a_supervisor_that_forgets_to_close_still_ends(ending: str, code: int) -> None:
    """Otherwise multiprocess would wait for the warden at exit, and the warden for the supervisor."""
    with supervisor(ending) as process:
        everyone = family(process)
        assert process.wait(20 * TIME_SCALE) == code
        assert not any(identity.alive() for identity in everyone)


def test_after_a_killed_warden_a_subreaper_finds_the_daemons() -> None:
    ending = """
select.select([warden.pidfd], [], [])
from spearpool.processes import kill_descendants
raise SystemExit(len(kill_descendants(os.getpid())))
"""
    with supervisor(ending) as process:
        everyone = family(process)
        os.kill(everyone[0].pid, signal.SIGKILL)
        assert process.wait(20 * TIME_SCALE) == 0
        assert not any(identity.alive() for identity in everyone)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_requests_beyond_the_socket_wait_here(driver: Driver) -> None:
    os.kill(driver.warden.pid, signal.SIGSTOP)
    launches = [driver.program(["true"]) for _ in range(300)]
    queued = driver.warden.wants_write
    os.kill(driver.warden.pid, signal.SIGCONT)
    while driver.warden.wants_write:
        driver.warden.flush()
        driver.hear(0.001)
    assert queued
    driver.until(lambda: len(driver.reports) == 2 * len(launches))
    assert Counter(report.launch for report in driver.reports) == Counter(launches * 2)


def test_a_spec_too_large_for_a_record_is_refused_here(driver: Driver) -> None:
    with pytest.raises(ValueError, match="control record"):
        driver.program(["true", "x" * 200_000])


def test_no_room_for_another_process_is_no_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import errno, os\ndef fork():\n    raise OSError(errno.EAGAIN, 'too many processes')\nos.fork = fork\n"
    (tmp_path / "full_house.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with driving(tmp_path, preload=["full_house"]) as driver:
        program, zygote = driver.program(["true"]), driver.zygote("")
        worker, control = driver.worker()
        with control:
            for launch in (program, zygote, worker):
                assert driver.wait(launch, LaunchFailed).reason == "cannot start a process: too many processes"
            assert control.recv(1) == b""
