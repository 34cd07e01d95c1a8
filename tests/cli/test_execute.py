"""`execute`: what goes in, what comes out where, and with which exit code."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import Said, invoke
from tests.integration.live_pool import HANDLERS, LivePool, live_pool, private_env

pytestmark = pytest.mark.process

TASKS = {
    "echo": f"{HANDLERS}:echo",
    "fail": f"{HANDLERS}:fail",
    "sleep": f"{HANDLERS}:sleep",
    "sum": "exec:sha256sum",
    "say": "exec:printf %s|",
    "env": "exec:sh -c 'printf %s \"$COLOUR\"'",
    "half": "exec:sh -c 'printf partly; exit 3'",
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePool]:
    with live_pool(private_env(tmp_path_factory.mktemp("pool")), "--workers", "1", tasks=TASKS) as pool:
        yield pool


def _execute(pool: LivePool, *words: str, data: bytes = b"") -> Said:
    return invoke(pool.env, "execute", *words, data=data)


EVERY_BYTE = bytes(range(256)) * 3


def test_bytes_in_and_out_are_the_tasks_own(pool: LivePool) -> None:
    command = [sys.executable, "-m", "spearpool", "execute", "echo", "--input", "-"]
    done = subprocess.run(command, input=EVERY_BYTE, capture_output=True, env=pool.env.environ, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, EVERY_BYTE, b"")


def test_input_from_a_file_and_none_at_all(pool: LivePool, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(EVERY_BYTE)
    digest = hashlib.sha256(EVERY_BYTE).hexdigest()
    assert _execute(pool, "sum", "--input", str(path)).out.split() == [digest.encode(), b"-"]
    assert _execute(pool, "echo", data=b"nobody asked for it") == Said(0, b"", "")


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["a", "b c"], b"a|b c|"),
        (["-n", "--frobnicate=1"], b"-n|--frobnicate=1|"),
        (["--", "--json", "--name"], b"--json|--name|"),
        ([], b"|"),
    ],
)
def test_arguments_are_the_tasks_own(pool: LivePool, words: list[str], output: bytes) -> None:
    assert _execute(pool, "say", *words) == Said(0, output, "")


def test_variables(pool: LivePool) -> None:
    assert _execute(pool, "env", "--env", "SIZE=1", "--env", "COLOUR=a=b").out == b"a=b"
    assert _execute(pool, "env").out == b""


def test_json(pool: LivePool) -> None:
    said = _execute(pool, "echo", "--input", "-", "--json", data="ä\n".encode() + b"\xff")
    document = json.loads(said.out)
    assert sorted(document) == ["duration_ms", "execution_id", "exit_code", "output", "task"]
    assert (document["task"], document["output"]) == ("echo", "ä\n\\xff")
    assert document["execution_id"]
    assert json.loads(_execute(pool, "sum", "--json").out)["exit_code"] == 0


def test_a_program_that_fails_has_its_output_on_stdout_and_its_end_on_stderr(pool: LivePool) -> None:
    said = _execute(pool, "half")
    assert (said.code, said.out) == (1, b"partly")
    assert said.err.startswith("spearpool: error: task 'half': ")
    assert "3" in said.err
    assert "Traceback" not in said.err


def test_failure_as_json(pool: LivePool) -> None:
    said = _execute(pool, "half", "--json")
    document = json.loads(said.out)
    assert said.code == 1
    assert sorted(document) == ["error", "execution_id", "exit_code", "task"]
    assert (document["task"], document["exit_code"]) == ("half", 3)
    assert document["error"] in said.err


def test_a_handler_that_raises(pool: LivePool) -> None:
    said = _execute(pool, "fail")
    assert (said.code, said.out) == (1, b"")
    assert "this handler always fails" in said.err


def test_timeout(pool: LivePool) -> None:
    said = _execute(pool, "sleep", "1.5", "--timeout", "0.3")
    assert (said.code, said.out) == (4, b"")
    assert said.err


def test_by_address_and_token_file(pool: LivePool) -> None:
    token = Path(pool.ready["runtime_dir"]) / "client.token"
    words = ("--address", pool.address, "--token-file", str(token), "--name", "nobody")
    assert _execute(pool, "echo", "--input", "-", *words, data=b"hello") == Said(0, b"hello", "")


WRONG = [
    (["nothing"], 1, "nothing"),
    ([], 2, "Missing argument 'TASK'"),
    (["echo", "--env", "COLOUR"], 2, "'COLOUR': expected NAME=VALUE"),
    (["echo", "--env", "=blue"], 2, "'=blue': expected NAME=VALUE"),
    (["echo", "--timeout", "0"], 2, "0.0 is not in the range x>0"),
    (["echo", "--timeout", "inf"], 2, "inf is not a finite number of seconds"),
    (["echo", "--timeout", "nan"], 2, "nan is not a finite number of seconds"),
    (["echo", "--input", "/no/such/file"], 2, "/no/such/file"),
    (["echo", "--address", "nowhere"], 2, "address = 'nowhere': expected HOST:PORT"),
    (["echo", "--token-file", "/no/such/token"], 1, "/no/such/token"),
    (["echo", "--name", "nobody"], 3, "no pool 'nobody' is running"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_wrong_use(pool: LivePool, words: list[str], code: int, message: str) -> None:
    said = _execute(pool, *words)
    assert (said.code, said.out) == (code, b""), said
    assert message in said.err
