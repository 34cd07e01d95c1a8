"""Signals that wait, come through, and are passed on: each in a process of its own, whose signals they are."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from spearpool.supervisor.signals import RELOAD_SIGNAL, STOP_SIGNALS
from tests.conftest import TIME_SCALE

pytestmark = pytest.mark.process

PRELUDE = """
import asyncio, os, signal, subprocess, sys
from spearpool.supervisor import signals

number = signal.Signals(int(sys.argv[1]))
heard = []
signals.hold()
os.kill(os.getpid(), number)
"""

HELD = "print('alive')"

HEEDED = """
async def main():
    loop = asyncio.get_running_loop()
    both = loop.create_future()

    def act(number):
        heard.append(number)
        if len(heard) == 2:
            both.set_result(None)
        else:
            os.kill(os.getpid(), number)

    signals.heed(loop, act, lambda: act(signals.RELOAD_SIGNAL))
    await both
    signals.hold()
    os.kill(os.getpid(), number)

asyncio.run(main())
os.kill(os.getpid(), number)
print(*(number.name for number in heard))
"""

PASSED_ON = """
# The child inherits what is held.
waiting = "import signal; print(signal.sigwait(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
child = subprocess.Popen([sys.executable, "-c", waiting])
signals.pass_on(child.send_signal)
sys.exit(child.wait())
"""


def _run(program: str, number: signal.Signals) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, str(int(number))],
        capture_output=True,
        text=True,
        timeout=30 * TIME_SCALE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize("number", [*STOP_SIGNALS, RELOAD_SIGNAL])
def test_a_held_signal_waits(number: signal.Signals) -> None:
    assert _run(HELD, number) == ["alive"]


@pytest.mark.parametrize("number", [*STOP_SIGNALS, RELOAD_SIGNAL])
def test_the_loop_gets_the_one_that_waited_and_the_next_one_and_none_after_that(number: signal.Signals) -> None:
    assert _run(HEEDED, number) == [number.name, number.name]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_one_that_waited_is_passed_on(number: signal.Signals) -> None:
    assert _run(PASSED_ON, number) == [str(int(number))]


def test_one_who_waits_for_a_start_and_loses_its_terminal_wants_no_pool() -> None:
    assert _run(PASSED_ON, RELOAD_SIGNAL) == [str(int(signal.SIGTERM))]


HUNG_UP = """
master, slave = os.openpty()
if os.fork():
    os.close(slave)
    assert os.read(master, 1) == b"r"
    os.close(master)  # the terminal is closed: SIGHUP
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
os.close(master)
os.setsid()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # what came before this play

async def main():
    loop = asyncio.get_running_loop()
    told = loop.create_future()
    signals.heed(loop, lambda number: told.set_result("stop"), lambda: told.set_result("reload"))
    os.write(slave, b"r")
    print(await told)

asyncio.run(main())
"""


def test_a_pool_whose_terminal_is_closed_stops() -> None:
    assert _run("import fcntl, termios\n" + HUNG_UP, RELOAD_SIGNAL) == ["stop"]
