"""The harness as a program: a short storm in every run of the tests, the long ones with `tools/test --full`."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from spearpool.processes import descendants
from tests.conftest import RuntimeEnv, deadline

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
Document = dict[str, Any]


def start(env: RuntimeEnv, *words: str) -> subprocess.Popen[str]:
    """The harness; its files are in the environment's own directory, its progress comes on standard error."""
    environ = env.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(env.runtime_dir)}
    command = [sys.executable, "-m", "tests.chaos", *words]
    return subprocess.Popen(command, env=environ, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def outcome(env: RuntimeEnv, *words: str, timeout_s: float) -> Document:
    """What a run that kept every promise says of itself."""
    with start(env, *words, "--json") as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.terminate()
            raise
    assert out, err
    result: Document = json.loads(out)
    broken = [promise for promise in result["promises"] if not promise["kept"]]
    refused = [f"{each['words']}: {each['said']}" for each in result["operations"] if each["code"]]
    assert not broken, "\n".join([*map(str, broken), *refused, *result["examples"]])
    assert process.returncode == 0
    assert list(env.runtime_dir.iterdir()) == []
    return result


def test_a_short_storm(runtime_env: RuntimeEnv) -> None:
    words = ("--kills", "15", "--halts", "4", "--freezes", "1", "--reloads", "3", "--scales", "4")
    result = outcome(runtime_env, "--seed", "20", "--seconds", "30", *words, timeout_s=150)
    assert (result["kills"], result["halts"], result["freezes"]) == (15, 4, 1)
    assert len(result["operations"]) + sum(int(text.split()[0]) for text in result["left_out"]) == 7
    assert result["saw"]["passed"] > 0.9 * 30 * 300
    assert result["saw"]["right"] > 1000
    assert result["saw"]["reset"] > 0
    assert result["looks"] > 100


def test_instances_and_zygotes_are_killed_and_no_client_is_cut_off(runtime_env: RuntimeEnv) -> None:
    words = ("--instances", "10", "--zygotes", "5")
    result = outcome(runtime_env, "--seed", "21", "--seconds", "14", *words, timeout_s=120)
    assert (result["instances"], result["zygotes"]) == (10, 5)
    assert result["kept_residents"] == result["residents"] == 64
    assert result["saw"]["right"] > 0.9 * result["saw"]["executions"]


def test_a_storm_without_kills_loses_nobody(runtime_env: RuntimeEnv) -> None:
    result = outcome(runtime_env, "--seconds", "6", "--halts", "4", "--freezes", "1", timeout_s=100)
    assert result["saw"]["right"] == result["saw"]["executions"]
    assert result["kept_residents"] == result["residents"] == 64


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(runtime_env: RuntimeEnv, number: signal.Signals) -> None:
    with start(runtime_env, "--seconds", "60", "--halts", "60", "--freezes", "30") as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert "calm" in read_line(process)
        children = descendants(process.pid)
        assert len(children) > 5
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert process.stdout.read() == ""
    assert [pid for pid in descendants(os.getpid()) if pid in children] == []
    assert list(runtime_env.runtime_dir.iterdir()) == []


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    end = deadline(60)
    while not select.select([process.stderr], [], [], 0.1)[0]:
        assert time.monotonic() < end
    return process.stderr.readline()


def test_usage(runtime_env: RuntimeEnv) -> None:
    with start(runtime_env, "--kills", "many") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "int of at least 0" in err


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_thousand_kills(runtime_env: RuntimeEnv) -> None:
    result = outcome(runtime_env, "--seed", "7", "--seconds", "1030", "--kills", "1000", timeout_s=1400)
    assert result["kills"] == 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_each_of_workers_instances_and_zygotes(runtime_env: RuntimeEnv) -> None:
    words = ("--kills", "100", "--instances", "100", "--zygotes", "100")
    result = outcome(runtime_env, "--seed", "9", "--seconds", "330", *words, timeout_s=800)
    assert (result["kills"], result["instances"], result["zygotes"]) == (100, 100, 100)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_reloads_and_fifty_scalings(runtime_env: RuntimeEnv) -> None:
    result = outcome(runtime_env, "--seed", "8", "--seconds", "330", "--reloads", "50", "--scales", "50", timeout_s=800)
    if result["left_out"]:
        pytest.skip("; ".join(result["left_out"]))
    assert len(result["operations"]) == 100
    assert result["kept_residents"] == 64
