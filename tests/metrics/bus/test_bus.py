from __future__ import annotations

import asyncio
import math
import stat
import time
from pathlib import Path

import pytest

from spearpool.errors import PoolError
from spearpool.metrics.bus import Bus, Event, Subscriber, ask
from spearpool.metrics.layout import Layout
from spearpool.metrics.rollup import Rollup
from tests.architecture import loaded_packages
from tests.conftest import TIME_SCALE, eventually
from tests.metrics.bus.living import living_bus, monitoring, write_messages
from tests.metrics.segments import new_segment


def test_the_sockets_are_ours_alone_and_go(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        assert (living.live, living.ask) == (f"ipc://{tmp_path}/live.sock", f"ipc://{tmp_path}/ask.sock")
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("live.sock", "ask.sock")]
    assert modes == [0o600, 0o600]
    assert not list(tmp_path.iterdir())


def test_nothing_ticks_without_subscribers(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        assert (living.bus.listened_to, living.bus._timer) == (False, None)
        with Subscriber(living.live, ["event"]) as subscriber:
            assert list(subscriber.items(until=0.0)) == []
            assert living.call(lambda: living.bus.listened_to)
        eventually(lambda: not living.call(lambda: living.bus.listened_to))
        eventually(lambda: living.call(lambda: living.bus._timer) is None)
        assert living.errors == []


def test_what_is_written_before_the_close_still_arrives(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, ["event", "gap", "heartbeat"]) as subscriber:
            items = subscriber.items()
            assert next(items).__class__.__name__ == "Heartbeat"
            write_messages(writer, 3000)
            living.close()
            kinds = [type(item).__name__ for item in items]
            assert subscriber.gone
        assert (subscriber.account.received + subscriber.account.lost_ring, kinds[-1]) == (3000, "Heartbeat")
        assert subscriber.account.lost_bus == 0


def test_commands_of_its_own(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        answer = ask(living.ask, "schema", {}, 10.0)
        layout = living.segment.layout
        assert answer == {"schema": layout.schema(), "schema_hash": layout.schema_hash}
        assert ask(living.ask, "snapshot", {}, 10.0)["epoch"] == living.segment.epoch


def test_no_room_for_a_socket_is_an_error(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    loop = asyncio.new_event_loop()
    with new_segment(tmp_path, Layout.plan(1, [], 64, rows=8)) as segment:
        bus = Bus(deep, Rollup(segment), list, list, {})
        try:
            with pytest.raises(PoolError, match="longer than 107"):
                bus.bind(loop)
        finally:
            bus.close()
            loop.close()


def test_a_description_that_fails_is_reported_and_the_bus_goes_on(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, ["event", "worker"]) as subscriber:
            items = subscriber.items()
            next(items)
            living.workers = [{"no slot": 0}]
            eventually(lambda: living.errors)
            living.workers = []
            write_messages(writer, 1)
            assert any(isinstance(item, Event) for item in items)
        assert {type(context["exception"]) for context in living.errors} == {KeyError}
        living.errors.clear()


def test_a_second_subscriber_joins_without_disturbing_the_first(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, ["event", "gap", "heartbeat"]) as first:
            items = first.items()
            next(items)
            write_messages(writer, 10)
            with Subscriber(living.live, ["event", "gap"]) as second:
                assert list(second.items(until=-math.inf)) == []
                write_messages(writer, 5)
                assert sum(isinstance(item, Event) for item in second.items(time.monotonic() + 0.2)) == 5
            first.stop()
            assert sum(isinstance(item, Event) for item in items) == 15


def test_a_subscriber_that_does_not_read_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with living_bus(tmp_path) as living:
        writer = monitoring(living.segment, 0)
        with Subscriber(living.live, high_water_mark=1) as subscriber:
            list(subscriber.items(until=0.0))
            for _ in range(50):
                write_messages(writer, 1000)
                living.publish()
            began = time.monotonic()
            living.close()
            assert time.monotonic() - began < 5 * TIME_SCALE


def test_who_only_asks_need_not_load_numpy() -> None:
    assert loaded_packages("spearpool.metrics.bus", Path(__file__).parents[3]) & {"numpy", "click", "rich"} == set()
