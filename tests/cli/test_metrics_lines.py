from __future__ import annotations

import re
from typing import Any

import pytest

from spearpool.cli.metrics_lines import LinePrinter, short_time
from spearpool.metrics.bus import (
    Account,
    Counters,
    Event,
    Gap,
    Heartbeat,
    InstanceEvent,
    InstanceState,
    Item,
    WorkerState,
)

NOTHING: dict[str, Any] = dict.fromkeys(
    ("connection_id", "instance_id", "message_type", "direction", "size_bytes", "duration_s", "task", "reason", "code")
)
MESSAGE = {
    "connection_id": "c-0-1-7",
    "instance_id": "sum-0-1",
    "message_type": "Heartbeat",
    "direction": "incoming",
    "size_bytes": 1536,
    "duration_s": 2.5e-6,
    "task": "sum",
}


def event(kind: str, **values: Any) -> Event:
    return Event(seq=0, time=1.0, worker=0, type=kind, **{**NOTHING, **values})


def stage(name: str, **values: Any) -> InstanceEvent:
    nothing = dict.fromkeys(("connection_id", "duration_s", "restarts", "reason", "code"))
    fields: dict[str, Any] = {"worker": None, **nothing, **values}
    return InstanceEvent(seq=0, time=1.0, stage=name, instance_id="sum-0-1", task="sum", **fields)


ROWS: list[tuple[Item, str]] = [
    (stage("requested"), "-    instance_requested    sum-0-1"),
    (stage("restarted", duration_s=0.005, restarts=2), "-    instance_restarted    sum-0-1  5 ms  restarts 2"),
    (
        stage("authenticated", worker=0, connection_id="c-0-1-7", duration_s=0.001),
        "w0   instance_authenticated sum-0-1  c-0-1-7  1 ms",
    ),
    (
        stage("failed", reason="was killed by signal SIGKILL", code=-9),
        "-    instance_failed       sum-0-1  was killed by signal SIGKILL",
    ),
    (
        event("message_received", **MESSAGE),
        "w0   message_received      sum-0-1  c-0-1-7  incoming  Heartbeat  1.5 KiB  2.5 µs",
    ),
    (event("disconnected", connection_id="c-0-1-7", reason="idle"), "w0   disconnected          c-0-1-7  idle"),
    (event("execution_failed", task="sum", duration_s=1.5), "w0   execution_failed      1.5 s  sum"),
    (event("error", code=413), "w0   error                 code 413"),
    (Heartbeat(1.0), "-    heartbeat             "),
    (WorkerState(1.0, 3, {"slot": 3, "state": "ready", "more": []}), "w3   worker                slot 3  state ready"),
    (InstanceState(1.0, {"instance_id": "sum-0-1"}), "-    instance              instance_id sum-0-1"),
    (
        Gap(7, 1.0, 1, "sp1.e.1.0.", 2, 3),
        "w1   gap                   sp1.e.1.0. from 7: 2 lost in the ring, 3 on the bus",
    ),
]


@pytest.mark.parametrize(("item", "words"), ROWS, ids=[type(item).__name__ for item, _ in ROWS])
def test_a_line(item: Item, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    LinePrinter().print(item)
    out = capsys.readouterr().out
    assert re.fullmatch(r"\d\d:\d\d:01\.000  " + re.escape(words) + "\n", out)


def test_without_states_only_what_happens_to_instances(capsys: pytest.CaptureFixture[str]) -> None:
    printer = LinePrinter(states=False)
    state = InstanceState(1.0, {"instance_id": "sum-0-1"})
    assert [printer.print(item) for item in (state, stage("ready"), state)] == [False, True, False]
    assert "instance_ready" in capsys.readouterr().out


def test_a_long_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    LinePrinter().print(InstanceState(1.0, {"instance_id": "[bold]" + "x" * 500}))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "[bold]xxx" in out


def test_counters_tell_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    printer = LinePrinter()
    printer.print(Counters(1.0, 0, {"bytes_in": 5}, {"sum": {"received": 1}}))
    printer.print(Counters(2.0, 0, {"bytes_in": 5}, {"sum": {"received": 1}}))
    printer.print(Counters(3.0, 1, {"bytes_in": 5}, {}))
    printer.print(Counters(4.0, 0, {"bytes_in": 8}, {}))
    lines = [line.partition("counters")[2].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["bytes_in 5 (+5)  sum.received 1 (+1)", "bytes_in 5 (+5)", "bytes_in 8 (+3)  sum.received 0 (-1)"]


@pytest.mark.parametrize(
    ("account", "words", "style"),
    [
        (Account(3, 0, 0), "account: 3 events received, 0 lost in rings, 0 lost on the bus", "green"),
        (Account(3, 1, 2), "account: 3 events received, 1 lost in rings, 2 lost on the bus", "yellow"),
    ],
)
def test_the_account(account: Account, words: str, style: str, capsys: pytest.CaptureFixture[str]) -> None:
    printer = LinePrinter()
    printer.print(account)
    assert capsys.readouterr().out == words + "\n"
    line = printer._line(account)
    assert line is not None
    assert style in str(line.style)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 ns"), (5e-8, "50 ns"), (1.25e-5, "12.5 µs"), (0.0123, "12.3 ms"), (75.4, "75.4 s")]
)
def test_short_times(seconds: float, text: str) -> None:
    assert short_time(seconds) == text
