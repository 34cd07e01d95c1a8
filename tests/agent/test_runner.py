"""Programs run once per execution: what goes in, what comes out, and that nothing of them stays."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spearpool.agent import runner
from spearpool.agent.request import Request, answer
from spearpool.agent.runner import Program
from spearpool.processes import children_of, start_ticks
from spearpool.protocol.messages import ExecuteRequest, ExecuteResponse, ExecutionStatus, Signal, SignalName
from tests.conftest import eventually
from tests.stub_worker import SECRET, StubWorker

pytestmark = pytest.mark.process

ENVIRON = {"PATH": os.environ["PATH"], "SPEAR_SECRET": "do not tell", "SPEAR_INSTANCE_ID": "me-1", "LANG": "C.UTF-8"}


def run(*argv: str, request: Request | None = None) -> ExecuteResponse:
    return answer(Program(argv, ENVIRON), request or Request("t"))


def sh(script: str, **fields: object) -> ExecuteResponse:
    return run("sh", "-c", script, request=Request("t", **fields))  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def test_input_is_stdin_and_output_is_stdout() -> None:
    response = run("sha256sum", "-", request=Request("t", input=b"abc"))
    assert (response.status, response.exit_code, response.error) == (ExecutionStatus.COMPLETED, 0, None)
    assert response.output == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  -\n"


def test_without_input_stdin_is_empty() -> None:
    assert run("cat").output == ""


def test_arguments_are_appended_as_they_are() -> None:
    response = run("printf", "%s|", request=Request("t", args=["a b", "$HOME", "", "*"]))
    assert response.output == "a b|$HOME||*|"


def test_the_environment_is_ours_without_the_secret_and_with_the_requests() -> None:
    response = run("env", request=Request("t", env={"MINE": "1", "LANG": "C"}))
    assert response.output is not None
    lines = response.output.splitlines()
    assert {"MINE=1", "LANG=C"} <= set(lines)
    assert not [line for line in lines if line.startswith("SPEAR_")]


def test_output_that_is_not_text() -> None:
    response = sh(r"printf '\377\000'")
    assert (response.output, response.output_data) == (None, b"\xff\x00")


def test_exit_code_output_and_stderr_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    response = sh("echo half; echo what went wrong >&2; exit 3")
    assert (response.status, response.exit_code, response.output) == (ExecutionStatus.FAILED, 3, "half\n")
    assert response.error == "exit code 3: what went wrong"
    assert capfd.readouterr().err == "what went wrong\n"


def test_only_the_tail_of_stderr_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    response = sh("i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1")
    assert response.error is not None
    assert response.error.endswith("line 2999")
    assert len(response.error) <= 4096 + 20
    assert "line 0\n" in capfd.readouterr().err


def test_a_program_that_a_signal_ends() -> None:
    response = sh("kill -SEGV $$")
    assert (response.status, response.exit_code, response.error) == (ExecutionStatus.FAILED, 139, "ended by SIGSEGV")


def test_a_success_with_words_on_stderr_is_a_success(capfd: pytest.CaptureFixture[str]) -> None:
    assert sh("echo by the way >&2").error is None
    capfd.readouterr()


def test_much_data_both_ways_at_once() -> None:
    data = os.urandom(3_000_000)
    assert run("cat", request=Request("t", input=data)).output_data == data


@pytest.mark.parametrize(
    "script", ["exec 0<&-; sleep 0.1; echo enough", "head -c 3 >/dev/null; echo enough", "echo enough"]
)
def test_a_program_need_not_read_its_input(script: str) -> None:
    response = sh(script, input=b"x" * 2_000_000)
    assert (response.status, response.output) == (ExecutionStatus.COMPLETED, "enough\n")


def unstartable(tmp_path: Path) -> list[tuple[list[str], Request, str]]:
    plain = tmp_path / "plain.txt"
    plain.write_text("no program")
    return [
        (["no-such-program"], Request("t"), "cannot start 'no-such-program': No such file or directory; is it"),
        ([str(plain)], Request("t"), f"cannot start '{plain}': Permission denied; is it installed, executable"),
        (
            ["true"],
            Request("t", working_dir="/no/such"),
            "cannot start 'true' in '/no/such': No such file or directory",
        ),
        (["true"], Request("t", args=["a\0b"]), "cannot start 'true': embedded null byte"),
        (["true"], Request("t", env={"A=B": "c"}), "cannot start 'true': illegal environment variable name"),
    ]


@pytest.mark.parametrize("row", range(5))
def test_what_cannot_be_started_fails_clearly(row: int, tmp_path: Path) -> None:
    argv, request, words = unstartable(tmp_path)[row]
    response = run(*argv, request=request)
    assert response.status is ExecutionStatus.FAILED
    assert response.error is not None
    assert response.error.startswith(words)


def test_the_working_directory_may_be_given(tmp_path: Path) -> None:
    assert run("pwd", request=Request("t", working_dir=str(tmp_path))).output == f"{tmp_path}\n"


def test_at_the_deadline_the_whole_group_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 60 & echo $! $$ > {pids}; echo part; wait"
    began = time.monotonic()
    response = sh(script, deadline=began + 0.3)
    assert (response.status, response.output, response.exit_code) == (ExecutionStatus.TIMEOUT, "part\n", 137)
    assert response.error == "killed at its deadline"
    eventually(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))


def test_a_cancel_kills_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    request = Request("t", args=[])

    def cancel() -> None:
        eventually(lambda: pids.exists() and pids.read_text().strip())
        request.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    response = run("sh", "-c", f"sleep 60 & echo $! > {pids}; wait", request=request)
    canceller.join()
    assert (response.status, response.exit_code) == (ExecutionStatus.CANCELLED, 137)
    assert eventually(lambda: gone(int(pids.read_text())))


def test_a_cancel_after_the_end_kills_nobody() -> None:
    request = Request("t")
    assert run("true", request=request).status is ExecutionStatus.COMPLETED
    request.cancel()


def test_a_background_child_cannot_hold_the_execution() -> None:
    began = time.monotonic()
    response = sh("sleep 60 & echo $!")
    assert time.monotonic() - began < 30
    assert response.status is ExecutionStatus.COMPLETED
    assert response.output is not None
    assert eventually(lambda: gone(int(response.output or "0")))


def test_a_daemon_cannot_hold_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_DRAIN_S", 0.1)
    response = sh("setsid sleep 60 & sleep 0.2; echo $!")
    assert response.output is not None
    os.kill(int(response.output), 9)
    assert response.status is ExecutionStatus.COMPLETED


def test_orphans_that_ended_are_reaped(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    sh(f"(setsid sh -c 'echo $$ > {note}' &); while [ ! -s {note} ]; do sleep 0.01; done")
    pid = int(note.read_text())
    assert pid in children_of(os.getpid()) or gone(pid)  # this process is a child subreaper, like an instance
    eventually(lambda: run("true").exit_code == 0 and start_ticks(pid) is None)


def test_runs_side_by_side_do_not_reap_each_other() -> None:
    program = Program(["sh", "-c", "exit $0"], ENVIRON)
    codes: dict[int, set[int | None]] = {}

    def many(code: int) -> None:
        codes[code] = {answer(program, Request("t", args=[str(code)])).exit_code for _ in range(25)}

    threads = [threading.Thread(target=many, args=(code,)) for code in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {1: {1}, 2: {2}, 3: {3}}
    assert not [pid for pid in children_of(os.getpid()) if gone(pid)]


def test_output_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MAX_MESSAGE_BYTES", 100_000)
    response = run("yes")
    assert (response.status, response.exit_code, response.output) == (ExecutionStatus.FAILED, 137, "")
    assert response.error == "the program wrote more than 100000 bytes; killed"


def test_as_a_process_of_a_pool(tmp_path: Path) -> None:
    script = tmp_path / "count"
    script.write_text("#!/bin/sh\nwc -c\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with StubWorker() as worker:
        environ = os.environ | {
            "SPEAR_COMMUNICATION_PORT": str(worker.port),
            "SPEAR_INSTANCE_ID": "me-1",
            "SPEAR_SECRET": SECRET,
        }
        words = [sys.executable, "-m", "tests.agent.programs", "exec", str(script)]
        with subprocess.Popen(words, cwd=Path(__file__).parents[2], env=environ) as process:
            peer = worker.accept(20)
            for size in (0, 5, 100_000):
                peer.send(ExecuteRequest("t", "", [], {}, input_data=b"x" * size))
                assert (peer.expect(ExecuteResponse)[1].output or "").strip() == str(size)
            peer.send(Signal(SignalName.TERMINATE))
            assert process.wait(10) == 0
