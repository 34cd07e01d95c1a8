"""`spearpool metrics`: what a pool does, live (`tail`) and at this moment (`show`)."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator

import click

from spearpool.metrics.bus import KINDS, Item, Subscriber, plain

from .metrics_lines import LinePrinter
from .metrics_show import show
from .output import json_option, name_option, pool_named

__all__ = ["metrics"]

_FOR_PEOPLE = ("event", "instance", "counters", "gap")

Print = Callable[[Item], bool]
"""Whether it took a line."""


@click.group()
def metrics() -> None:
    """Watch a pool: events and counters out of its shared memory."""


metrics.add_command(show)


@metrics.command()
@name_option
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    help="Only this kind. Repeatable; default: event, counters, gap and stages of instances, with --json all.",
)
@click.option("--worker", "workers", type=click.IntRange(0), multiple=True, help="Only this worker. Repeatable.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End after N lines.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="End after this time.")
@json_option
def tail(
    name: str,
    kinds: tuple[str, ...],
    workers: tuple[int, ...],
    limit: int | None,
    duration: float | None,
    as_json: bool,
) -> None:
    """Print what happens until Ctrl-C, SIGTERM or the end of the pool.

    The present counters, workers and instances come first. The last line is the account of the events: how many were
    received, how many were overwritten in a ring before they could be read, and how many were lost on the bus because
    this reader was too slow.

    \b
    Examples:
      spearpool metrics tail --kind event --worker 0
      spearpool metrics tail --json --duration 10 | jq 'select(.type == "authentication_failed")'
    """
    pool = pool_named(name)
    print_item: Print = _print_json if as_json else LinePrinter(states=bool(kinds)).print
    until = math.inf if duration is None else time.monotonic() + duration
    with Subscriber(pool.endpoints.live, kinds or (KINDS if as_json else _FOR_PEOPLE), workers) as subscriber:
        try:
            with _ended_by_signal(subscriber.stop):
                _follow(subscriber.items(until), print_item, limit)
        finally:
            if subscriber.joined:
                print_item(subscriber.account)
        if subscriber.gone:
            click.echo(f"pool {name} is gone", err=True)


def _follow(items: Iterator[Item], print_item: Print, limit: int | None) -> None:
    printed = 0
    for item in items:
        printed += print_item(item)
        if printed == limit:
            return


@contextlib.contextmanager
def _ended_by_signal(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls `stop`; the next one has its usual effect, should stopping take too long."""

    def note(signum: int, _: object) -> None:
        signal.signal(signum, before[signal.Signals(signum)])
        stop()

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _print_json(item: Item) -> bool:
    sys.stdout.write(json.dumps(plain(item), ensure_ascii=False) + "\n")
    sys.stdout.flush()
    return True
