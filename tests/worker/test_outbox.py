from __future__ import annotations

import asyncio

import pytest

from spearpool.worker.outbox import Outbox

pytestmark = pytest.mark.asyncio


class Writer:
    def __init__(self, log: list[str], name: str) -> None:
        self.posted = False
        self.congested = False
        self.log = log
        self.name = name

    def flush(self) -> None:
        self.log.append(self.name)


async def test_one_flush_per_turn_and_writer() -> None:
    log: list[str] = []
    outbox, one, other = Outbox(asyncio.get_running_loop()), Writer(log, "one"), Writer(log, "other")
    for writer in (one, other, one, one):
        outbox.post(writer)
    assert log == []
    await asyncio.sleep(0)
    assert log == ["one", "other"]
    outbox.post(one)
    await asyncio.sleep(0)
    assert log == ["one", "other", "one"]


async def test_what_is_posted_while_flushing_goes_with_the_next_turn() -> None:
    log: list[str] = []
    outbox = Outbox(asyncio.get_running_loop())
    second = Writer(log, "second")

    class First(Writer):
        def flush(self) -> None:
            super().flush()
            outbox.post(second)

    outbox.post(First(log, "first"))
    await asyncio.sleep(0)
    assert log == ["first"]
    await asyncio.sleep(0)
    assert log == ["first", "second"]


async def test_direct_writes_at_once_unless_the_writer_is_congested_or_posted_already() -> None:
    log: list[str] = []
    outbox, free, posted, congested = Outbox(asyncio.get_running_loop()), *(Writer(log, name) for name in "fpc")
    outbox.post(posted)
    outbox.direct = True
    congested.congested = True
    for writer in (free, posted, congested, free):
        outbox.post(writer)
    assert log == ["f", "f"]
    await asyncio.sleep(0)
    assert log == ["f", "f", "p", "c"]
