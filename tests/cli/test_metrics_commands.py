from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from spearpool.cli import main
from spearpool.metrics.monitoring import StageReport
from spearpool.metrics.vocabulary import InstanceStage
from spearpool.protocol.identifiers import InstanceId
from tests.cli.metrics_pool import metrics_pool
from tests.cli.running import invoke
from tests.conftest import RuntimeEnv
from tests.metrics.bus.living import LivingBus, monitoring, write_messages

Line = dict[str, Any]


@pytest.fixture
def living(runtime_env: RuntimeEnv) -> Iterator[LivingBus]:
    with metrics_pool(runtime_env) as living:
        yield living


@contextmanager
def tail(env: RuntimeEnv, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`metrics tail` in a process of its own."""
    command = [sys.executable, "-m", "spearpool", "metrics", "tail", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env.environ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> Line:
    assert process.stdout is not None
    line: Line = json.loads(process.stdout.readline())
    return line


def join(process: subprocess.Popen[str]) -> Line:
    """Wait for the first line: the subscription is in force from there on."""
    line = read_line(process)
    assert line["kind"] in {"counters", "worker"}
    return line


def read_until(process: subprocess.Popen[str], kind: str) -> list[Line]:
    lines = [read_line(process)]
    while lines[-1]["kind"] != kind:
        lines.append(read_line(process))
    return lines


def finish(process: subprocess.Popen[str]) -> tuple[list[Line], str, int]:
    """The rest of what it prints, its words on stderr, and its exit code."""
    assert process.stdout is not None
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stdout]  # `communicate` would lose what is buffered already
    return lines, process.stderr.read(), process.wait(60)


@pytest.mark.process
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_account(signum: int, living: LivingBus, runtime_env: RuntimeEnv) -> None:
    writer = monitoring(living.segment, 0)
    with tail(runtime_env, "--json") as process:
        join(process)
        write_messages(writer, 20)
        lines = read_until(process, "event")
        write_messages(writer, 5)  # and whatever was recorded before the signal is still printed
        process.send_signal(signum)
        rest, err, code = finish(process)
    lines += rest
    events = [line for line in lines if line["kind"] == "event"]
    assert [event["seq"] for event in events] == list(range(25))
    assert lines[-1] == {"kind": "account", "received": 25, "lost_ring": 0, "lost_bus": 0}
    assert (err, code) == ("", 0)


@pytest.mark.process
def test_the_end_of_the_pool_ends_it_with_the_account(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    writer = monitoring(living.segment, 2)
    with tail(runtime_env, "--json", "--kind", "event", "--kind", "counters") as process:
        join(process)
        write_messages(writer, 3, slot=1)
        living.close()
        lines, err, code = finish(process)
    assert [line["worker"] for line in lines if line["kind"] == "event"] == [1, 1, 1]
    assert lines[-1] == {"kind": "account", "received": 3, "lost_ring": 0, "lost_bus": 0}
    assert (err, code) == ("pool default is gone\n", 0)


@pytest.mark.process
def test_every_kind_is_there_with_json(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    writer = monitoring(living.segment, 0)
    living.instances = [{"instance_id": "sum-0-1", "worker": 0}]
    with tail(runtime_env, "--json", "--duration", "2") as process:
        join(process)
        write_messages(writer, 1)
        lines, _, _ = finish(process)
    assert {line["kind"] for line in lines} == {"event", "counters", "worker", "instance", "heartbeat", "account"}


@pytest.mark.process
def test_a_reader_that_goes_away_is_no_error(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    with tail(runtime_env, "--json") as process:
        join(process)
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def run_tail(env: RuntimeEnv, *words: str) -> tuple[int, str, str]:
    said = invoke(env, "metrics", "tail", *words)
    return said.code, said.out.decode(), said.err


def test_a_limit_is_a_number_of_lines(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    code, out, _ = run_tail(runtime_env, "--json", "--kind", "worker", "--limit", "1")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["kind"] for line in lines] == ["worker", "account"]


def test_only_the_worker_that_was_asked_for(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    _, out, _ = run_tail(runtime_env, "--json", "--worker", "1", "--kind", "worker", "--duration", "0.2")
    *lines, account = [json.loads(line) for line in out.splitlines()]
    assert {line["worker"] for line in lines} == {1}
    assert account["kind"] == "account"


def test_for_people_without_colour_in_a_pipe(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    write_messages(monitoring(living.segment, 0), 1)
    code, out, _ = run_tail(runtime_env, "--duration", "0.3")
    first, *_, last = out.splitlines()
    assert code == 0
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  w0   counters .*messages_in_heartbeat 1 \(\+1\).*", first)
    assert last == "account: 0 events received, 0 lost in rings, 0 lost on the bus"


@pytest.mark.process
@pytest.mark.parametrize(("words", "states"), [((), 0), (("--kind", "instance"), 1)])
def test_for_people_stages_of_instances_without_their_states(
    words: tuple[str, ...], states: int, living: LivingBus, runtime_env: RuntimeEnv
) -> None:
    writer = monitoring(living.segment, living.segment.layout.supervisor_seat)
    living.instances = [{"instance_id": "sum-0-1", "worker": 0}]
    write_messages(monitoring(living.segment, 0), 1)
    with tail(runtime_env, *words, "--limit", "2") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        for number in range(1, 4):
            writer.record_instance(InstanceStage.READY, InstanceId(number, 1), 1, StageReport())
        second, last = process.stdout.readline(), process.stdout.readline()
        assert process.wait(60) == 0
    assert "counters" in first or "instance_id sum-0-1" in first
    assert ("instance_id sum-0-1" in first) == states
    assert re.search(r"  -    instance_ready +sum-1-1\n", second), "lines are counted as they are printed"
    assert last == "account: 1 events received, 0 lost in rings, 0 lost on the bus\n"


USAGE: list[tuple[list[str], int, str]] = [
    (["--name", "nobody"], 3, "no pool 'nobody' is running"),
    (["--kind", "nonsense"], 2, "'nonsense' is not one of 'event', 'counters', 'worker'"),
    (["--worker", "-1"], 2, "-1 is not in the range x>=0"),
    (["--limit", "0"], 2, "0 is not in the range x>=1"),
    (["--duration", "0"], 2, "0.0 is not in the range x>0"),
]


@pytest.mark.parametrize(("words", "code", "message"), USAGE, ids=[" ".join(row[0]) for row in USAGE])
def test_wrong_use(words: list[str], code: int, message: str, runtime_env: RuntimeEnv) -> None:
    found, out, err = run_tail(runtime_env, *words)
    assert (found, out) == (code, "")
    assert message in err


def test_a_pool_whose_sockets_are_gone_is_not_running(living: LivingBus, runtime_env: RuntimeEnv) -> None:
    living.close()
    code, _, err = run_tail(runtime_env)
    assert code == 3
    assert "no such socket" in err


@pytest.mark.parametrize("words", [["tail"], ["show"]])
def test_help_shows_an_example(words: list[str]) -> None:
    result = CliRunner().invoke(main, ["metrics", *words, "--help"])
    assert result.exit_code == 0
    assert f"spearpool metrics {words[0]}" in result.stdout.partition("Example")[2]
