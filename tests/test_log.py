"""Lines, their shape, and that logging survives forks and dead streams."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from spearpool import log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    handlers = list(logging.getLogger().handlers)
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers = handlers


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_origin_and_values() -> None:
    stream = io.StringIO()
    log.configure("worker 3", json_lines=True, stream=stream)
    log.get_logger("worker.links").warning("link lost", slot=2, peer="ü")
    (line,) = json_lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "logger": "worker.links",
        "process": "worker 3",
        "process_id": os.getpid(),
        "level": "warning",
        "event": "link lost",
        "slot": 2,
        "peer": "ü",
    }


def test_json_stays_one_line_whatever_is_logged() -> None:
    stream = io.StringIO()
    log.configure("p", json_lines=True, stream=stream)
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        log.get_logger("x").exception("failed", thing=object(), text="a\nb")
    (line,) = json_lines(stream)
    assert "RuntimeError: two\nlines" in line["exception"]
    assert "object object" in line["thing"]


def test_text_has_colours_only_on_a_terminal() -> None:
    for stream, coloured in ((io.StringIO(), False), (Terminal(), True)):
        log.configure("supervisor", json_lines=False, stream=stream)
        log.get_logger("x").info("ready", port=9100)
        text = stream.getvalue()
        assert ("\x1b[" in text) is coloured
        assert "ready" in text
        assert "9100" in text
        assert text.count("\n") == 1


def test_unconfigured_events_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    log.get_logger("x").error("nobody asked")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_levels(level: str) -> None:
    stream = io.StringIO()
    log.configure("p", json_lines=True, stream=stream)
    getattr(log.get_logger("x"), level)("something")
    assert json_lines(stream)[0]["level"] == level


def test_logger_made_before_follows_the_latest_configuration() -> None:
    early = log.get_logger("early")
    first, second = io.StringIO(), io.StringIO()
    log.configure("supervisor", json_lines=True, stream=first)
    early.info("one")
    log.configure("worker 1", json_lines=True, stream=second)
    early.info("two")
    assert [line["event"] for line in json_lines(first)] == ["one"]
    assert [(line["event"], line["process"]) for line in json_lines(second)] == [("two", "worker 1")]


def test_warnings_of_the_standard_library_join_once() -> None:
    stream = io.StringIO()
    log.configure("a", json_lines=True, stream=stream)
    log.configure("b", json_lines=True, stream=stream)
    logging.getLogger("asyncio").error("never %s", "retrieved", exc_info=ValueError("why"))
    (line,) = json_lines(stream)
    assert (line["event"], line["logger"], line["process"]) == ("never retrieved", "asyncio", "b")
    assert line["exception"] == "ValueError: why"


def test_levels_between_are_rounded_down() -> None:
    stream = io.StringIO()
    log.configure("a", json_lines=True, stream=stream)
    logging.getLogger("odd").log(35, "in between")
    logging.getLogger("odd").log(99, "beyond")
    assert [line["level"] for line in json_lines(stream)] == ["warning", "critical"]


class FullDisk(io.StringIO):
    def write(self, _text: str, /) -> int:
        raise OSError(28, "No space left on device")


def test_broken_streams_lose_lines_and_nothing_else() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (FullDisk(), closed):
        log.configure("p", json_lines=True, stream=stream)
        log.get_logger("x").error("lost")


def test_a_fork_repeats_no_line_and_names_itself() -> None:
    body = """
import os, sys
from spearpool import log
log.configure("parent", json_lines=True, stream=sys.stdout)
log.get_logger("x").info("before")
if os.fork() == 0:
    log.configure("child", json_lines=True, stream=sys.stdout)
    log.get_logger("x").info("inside")
    os._exit(0)
os.wait()
log.get_logger("x").info("after")
"""
    output = subprocess.run([sys.executable, "-c", body], check=True, stdout=subprocess.PIPE).stdout
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["event"], line["process"]) for line in lines] == [
        ("before", "parent"),
        ("inside", "child"),
        ("after", "parent"),
    ]
    assert lines[0]["process_id"] == lines[2]["process_id"] != lines[1]["process_id"]


def test_importing_loads_and_configures_nothing() -> None:
    body = "import logging, sys, spearpool.log; print('structlog' in sys.modules, logging.getLogger().handlers)"
    assert subprocess.run([sys.executable, "-c", body], check=True, capture_output=True).stdout == b"False []\n"
