"""Between fork and program, seen from outside: what the child became, or why not."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.confine import (
    ConfinementError,
    confine,
    execute,
    fork_child,
    report_failure,
    status_pipe,
)

pytestmark = [pytest.mark.process, pytest.mark.timeout(60, method="signal")]  # no timer thread: these tests fork

PATH = {"PATH": os.environ["PATH"]}


def run(become: Callable[[], NoReturn], keep: set[int] = frozenset()) -> tuple[str, int]:  # type: ignore[assignment]
    """Fork, wait; what came through the status pipe, and the exit code."""
    pid, status_fd = fork_child(become, keep)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(status_fd, encoding="utf-8") as status:
        return status.read(), code


def confined(
    log: Path,
    become: Callable[[], None],
    *,
    limits: ResourceLimits | None = None,
    working_dir: str = "/",
    subreaper: bool = True,
) -> tuple[str, int]:
    """Confine a child whose output goes to `log`, then run `become` and exit 0."""
    parent = os.getpid()

    def child() -> NoReturn:
        confine(
            parent=parent,
            working_dir=working_dir,
            limits=limits or ResourceLimits(),
            log_fd=log_fd,
            subreaper=subreaper,
        )
        become()
        os._exit(0)

    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return run(child, {log_fd})
    finally:
        os.close(log_fd)


def test_end_of_file_without_text_means_that_the_program_runs(tmp_path: Path) -> None:
    become = lambda: execute(["sh", "-c", "pwd; exit 6"], PATH)  # noqa: E731
    assert confined(tmp_path / "log", become, working_dir=str(tmp_path)) == ("", 6)
    assert (tmp_path / "log").read_text() == f"{tmp_path}\n"


def test_a_program_is_found_on_its_own_path(tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\nexit 4\n")
    program.chmod(0o755)
    assert run(lambda: execute(["only-here"], {"PATH": str(tmp_path)})) == ("", 4)
    text, code = run(lambda: execute(["only-here"], PATH))
    assert text == "cannot execute 'only-here': there is no such program"
    assert code == 127


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        (["a\0b"], PATH, "embedded null"),
        (["true", "a\0b"], PATH, "embedded null byte"),
        (["true"], PATH | {"A=B": "c"}, "illegal environment variable name"),
        ([""], PATH, "cannot be empty"),
    ],
)
def test_arguments_that_no_program_can_have(argv: list[str], environ: dict[str, str], words: str) -> None:
    text, _ = run(lambda: execute(argv, environ))
    assert words in text


def test_a_failure_carries_its_words_and_never_returns_to_the_parents_code() -> None:
    def fail() -> NoReturn:
        raise ConfinementError("because of this")

    def stumble() -> NoReturn:
        raise KeyboardInterrupt("no error at all")

    assert run(fail) == ("because of this", 127)
    assert run(stumble) == ("KeyboardInterrupt: no error at all", 127)


def test_of_a_long_reason_the_end_is_kept() -> None:
    reader, writer = status_pipe()
    report_failure(writer, "x" * 1_000_000 + "the last line")
    os.close(writer)
    with open(reader, encoding="utf-8") as status:
        text = status.read()
    assert text.endswith("xthe last line")
    assert len(text) == 32 * 1024


def test_a_reason_for_nobody_is_dropped() -> None:
    reader, writer = status_pipe()
    os.close(reader)
    report_failure(writer, "anyone?")
    os.close(writer)


def test_only_what_is_kept_stays_open(tmp_path: Path) -> None:
    """Also what somebody made inheritable, and what lies above a gap."""
    kept, careless = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(careless, True)
    os.set_inheritable(kept, True)
    high = os.dup2(careless, 200)
    body = "import os, sys; fds = [fd for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')]"
    argv = [sys.executable, "-c", f"{body}; open(sys.argv[1], 'w').write(' '.join(fds))", str(tmp_path / "fds")]
    try:
        assert run(lambda: execute(argv, PATH), {kept}) == ("", 0)
    finally:
        for fd in (kept, careless, high):
            os.close(fd)
    assert {int(fd) for fd in (tmp_path / "fds").read_text().split()} - {0, 1, 2} == {kept}


def test_close_inherited_leaves_the_standard_three() -> None:
    body = """
import os
from spearpool.instances.confine import close_inherited
os.pipe(); keep = os.dup(1)
close_inherited({keep})
os.write(keep, ' '.join(sorted(os.listdir('/proc/self/fd'))).encode())
"""
    output = subprocess.run([sys.executable, "-c", body], check=True, capture_output=True, text=True).stdout.split()
    assert output[:3] == ["0", "1", "2"]
    assert len(output) == 5  # the kept one, and the listing itself


def test_signals_are_as_at_the_beginning() -> None:
    body = """
import os, signal
from spearpool.instances.confine import reset_signals
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
reset_signals()
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(int(status['SigIgn'], 16), int(status['SigCgt'], 16), int(status['SigBlk'], 16), signal.set_wakeup_fd(-1))
reset_signals(ignore={signal.SIGHUP, signal.SIGINT})
print([signum.name for signum in signal.Signals if signal.getsignal(signum) is signal.SIG_IGN])
"""
    output = subprocess.run([sys.executable, "-c", body], check=True, capture_output=True, text=True).stdout
    assert output == "0 0 0 -1\n['SIGHUP', 'SIGINT']\n"


def facts() -> dict[str, Any]:
    return {"sid": os.getsid(0), "pgid": os.getpgid(0), "pid": os.getpid(), "cwd": str(Path.cwd())}


def test_a_session_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def tell() -> None:
        os.write(1, json.dumps(facts()).encode())

    assert confined(log, tell) == ("", 0)
    found = json.loads(log.read_text())
    assert found["sid"] == found["pgid"] == found["pid"] != os.getpid()
    assert found["cwd"] == "/"


@pytest.mark.parametrize("subreaper", [True, False])
def test_a_subreaper_only_when_asked(tmp_path: Path, subreaper: bool) -> None:
    """A zygote must not be one: its instances are to become the warden's."""
    log = tmp_path / "log"

    def tell() -> None:
        value = ctypes.c_int()
        assert ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0) == 0  # PR_GET_CHILD_SUBREAPER
        os.write(1, str(value.value).encode())

    assert confined(log, tell, subreaper=subreaper) == ("", 0)
    assert log.read_text() == str(int(subreaper))


def test_the_wrong_parent_means_it_is_dead_already(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:

        def child() -> NoReturn:
            confine(parent=1, working_dir="/", limits=ResourceLimits(), log_fd=log.fileno(), subreaper=False)
            os._exit(0)

        assert run(child, {log.fileno()}) == ("", -signal.SIGKILL)


def test_the_memory_limit_is_private_memory_only(tmp_path: Path) -> None:
    """A large mapping that is merely reserved, or of a file, costs nothing; touched or not, a private one does."""
    body = """
import mmap, sys
mmap.mmap(-1, 10**10, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
mmap.mmap(-1, 10**9)  # shared
try:
    mmap.mmap(-1, 10**9, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except OSError as error:
    print(error.strerror)
"""
    log = tmp_path / "log"
    limits = ResourceLimits(memory_bytes=200_000_000)
    assert confined(log, lambda: execute([sys.executable, "-c", body], PATH), limits=limits) == ("", 0)
    assert log.read_text() == "Cannot allocate memory\n"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (ResourceLimits(open_files=2**40), "limits.open_files = 1099511627776: this user may have at most "),
        (ResourceLimits(cpu_seconds=2**70), "limits.cpu_seconds = "),
        (ResourceLimits(memory_bytes=2**70), "limits.memory_bytes = "),
    ],
)
def test_a_limit_that_cannot_be_is_named(tmp_path: Path, limits: ResourceLimits, words: str) -> None:
    text, code = confined(tmp_path / "log", lambda: None, limits=limits)
    assert words in text
    assert code == 127


def test_a_working_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    text, _ = confined(tmp_path / "log", lambda: None, working_dir=str(tmp_path / "gone"))
    assert text == f"working directory {str(tmp_path / 'gone')!r}: No such file or directory"


def test_fork_child_leaves_no_descriptor_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("os.fork", full)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="unavailable"):
        fork_child(lambda: os._exit(0), ())
    assert sorted(os.listdir("/proc/self/fd")) == before
