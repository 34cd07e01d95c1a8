from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from spearpool.errors import (
    ConfigError,
    Draining,
    ErrorCode,
    NoSuchPool,
    Overloaded,
    PoolError,
    RequestRefused,
    SpearpoolError,
    UnknownTask,
)
from spearpool.metrics.bus.ask import ask
from spearpool.metrics.bus.sockets import Line, PoolGone
from spearpool.packing import Packer
from tests.conftest import deadline
from tests.metrics.bus.living import LivingBus, living_bus

TIMEOUT_S = 20.0
PACK: Packer[Any] = Packer(Any)


async def slow(arguments: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(arguments["seconds"])
    return {"slept": arguments["seconds"]}


async def fail_later(arguments: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    raise Overloaded("too much", ErrorCode.OVERLOADED)


def failing(error: Exception) -> Any:
    def handler(arguments: dict[str, Any]) -> dict[str, Any]:
        raise error

    return handler


HANDLERS: dict[str, Any] = {
    "echo": lambda arguments: {"you said": arguments},
    "slow": slow,
    "fail_later": fail_later,
    "unknown": failing(RequestRefused("no such task", ErrorCode.UNKNOWN)),
    "draining": failing(RequestRefused("stopping", ErrorCode.DRAINING)),
    "refused": failing(RequestRefused("not yours", ErrorCode.REFUSED)),
    "config": failing(ConfigError("pool.workers", 0, "1 to 128")),
    "patience": failing(TimeoutError("too slow")),
    "spearpool": failing(SpearpoolError("no")),
    "bug": failing(KeyError("oops")),
    "unpackable": lambda _: {"value": object()},
}


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivingBus]:
    with living_bus(tmp_path_factory.mktemp("ask"), handlers=HANDLERS) as living:
        yield living


@pytest.fixture(autouse=True)
def _no_errors_left(living: LivingBus) -> None:
    living.errors.clear()


def test_a_handler_answers(living: LivingBus) -> None:
    arguments = {"text": "ünï", "number": 2**63, "list": [1.5, None, True], "bytes": b"\0\xff"}
    assert ask(living.ask, "echo", arguments, TIMEOUT_S) == {"you said": arguments}


def test_a_coroutine_answers_and_delays_nobody(living: LivingBus) -> None:
    answers: list[str] = []

    def ask_slowly() -> None:
        ask(living.ask, "slow", {"seconds": 0.5}, TIMEOUT_S)
        answers.append("slow")

    thread = threading.Thread(target=ask_slowly)
    thread.start()
    for _ in range(3):
        ask(living.ask, "echo", {}, TIMEOUT_S)
        answers.append("quick")
    thread.join()
    assert answers == ["quick", "quick", "quick", "slow"]


REFUSALS: list[tuple[str, type[RequestRefused], int, str]] = [
    ("nonsense", UnknownTask, 404, "no command 'nonsense'; there are bug, config"),
    ("unknown", UnknownTask, 404, "no such task"),
    ("draining", Draining, 503, "stopping"),
    ("fail_later", Overloaded, 429, "too much"),
    ("refused", RequestRefused, 403, "not yours"),
    ("config", RequestRefused, 400, "pool.workers = 0: expected 1 to 128"),
    ("patience", RequestRefused, 408, "too slow"),
    ("spearpool", RequestRefused, 500, "no"),
]


@pytest.mark.parametrize(("command", "kind", "code", "words"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_a_refusal_keeps_its_code(
    command: str, kind: type[RequestRefused], code: int, words: str, living: LivingBus
) -> None:
    with pytest.raises(RequestRefused, match=words) as caught:
        ask(living.ask, command, {}, TIMEOUT_S)
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert living.errors == []


@pytest.mark.parametrize(
    ("command", "words"), [("bug", r"internal error: KeyError\('oops'\)"), ("unpackable", "object")]
)
def test_a_bug_is_answered_and_reported(command: str, words: str, living: LivingBus) -> None:
    with pytest.raises(RequestRefused, match=words) as caught:
        ask(living.ask, command, {}, TIMEOUT_S)
    assert caught.value.code == ErrorCode.INTERNAL
    assert [context["message"] for context in living.errors] == ["a command of the bus failed"]


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", PACK.pack([]), PACK.pack({"command": 5}), PACK.pack({"command": "echo", "extra": 1})],
    ids=["empty", "no msgpack", "a list", "wrong type", "unknown key"],
)
def test_what_is_no_request_is_refused(body: bytes, living: LivingBus) -> None:
    line = Line(zmq.DEALER, living.ask)  # without the empty frame that a REQ puts in front
    try:
        line.send([body])
        frames = line.receive(deadline(TIMEOUT_S))
    finally:
        line.close()
    assert frames is not None
    reply = PACK.unpack(frames[0])
    assert (reply["ok"], reply["code"]) == (False, 400)


def test_a_request_that_is_too_large_is_cut_off(living: LivingBus) -> None:
    with pytest.raises(PoolGone):
        ask(living.ask, "echo", {"bytes": bytes(2 * 1024 * 1024)}, TIMEOUT_S)


def test_a_silent_pool_is_a_timeout(living: LivingBus) -> None:
    with pytest.raises(TimeoutError, match=r"did not answer 'slow' within 0\.1 s"):
        ask(living.ask, "slow", {"seconds": 3}, 0.1)


def test_no_socket_is_no_pool(tmp_path: Path) -> None:
    with pytest.raises(NoSuchPool, match="no such socket"):
        ask(f"ipc://{tmp_path}/ask.sock", "echo", {}, TIMEOUT_S)


def test_a_pool_that_goes_is_noticed_at_once(tmp_path: Path) -> None:
    with living_bus(tmp_path, handlers=HANDLERS) as living:
        threading.Timer(0.2, living.close).start()
        began = time.monotonic()
        with pytest.raises(PoolError, match="is gone"):
            ask(living.ask, "slow", {"seconds": 60}, 60)
    assert time.monotonic() - began < 30
