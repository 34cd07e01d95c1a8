"""Hit a real pool under load from outside, and hold it to its promises.

    python -m tests.chaos --seed 1 --seconds 30 --kills 20 --halts 5 --freezes 1
    python -m tests.chaos --seed 7 --seconds 600 --kills 1000 --json
    python -m tests.chaos --seed 7 --seconds 300 --reloads 50 --scales 50
    python -m tests.chaos --seed 9 --seconds 330 --kills 100 --instances 100 --zygotes 100

The same seed gives the same schedule. The first part of the time is calm, for comparison. Commands that the pool does
not have (`reload`, `scale`) are left out, and the table says so. Needs the development extra: pip install -e '.[dev]'.
Exit codes: 0 all promises kept · 1 one was broken · 2 usage · 130, 143 interrupted; nothing is left behind either way.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from math import inf
from types import FrameType
from typing import Any

from .findings import document, judge, table
from .run import Options, run
from .schedule import Kind

__all__ = ["main"]

_HELP = {
    Kind.KILL: "SIGKILL so many workers",
    Kind.INSTANCE: "SIGKILL so many instances",
    Kind.ZYGOTE: "SIGKILL so many zygotes",
    Kind.HALT: "stop a worker for a while, so often",
    Kind.FREEZE: "stop the whole pool for a while, so often",
    Kind.RELOAD: "so many reloads",
    Kind.SCALE: "so many changes of the number of workers",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options, as_json = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    found = run(options, lambda text: print(f"chaos: {text}", file=sys.stderr, flush=True))
    promises = judge(found)
    result = document(found, promises)
    print(json.dumps(result) if as_json else table(result))
    return 0 if result["kept"] else 1


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Unwind, once: what clears up must not be interrupted."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def parse(arguments: Sequence[str] | None) -> tuple[Options, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=_number(float, 4), default=30.0, help="of load; default: 30")
    parser.add_argument("--workers", type=_number(int, 1), default=4)
    parser.add_argument("--rate", type=_number(float, 0), default=300.0, help="new connections/s; default: 300")
    parser.add_argument("--residents", type=_number(int, 0), default=64, help="connections that stay; default: 64")
    for kind in Kind:
        parser.add_argument(
            f"--{kind.value}s", dest=kind.name, type=_number(int, 0), default=0, metavar="N", help=_HELP[kind]
        )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    found = parser.parse_args(arguments)
    counts = {kind: getattr(found, kind.name) for kind in Kind}
    return Options(found.seed, found.seconds, found.workers, found.rate, found.residents, counts), found.json


def _number(kind: type[int | float], low: float) -> Any:
    def read(text: str) -> float:
        value = kind(text)
        if not low <= value < inf:
            raise ValueError(text)
        return value

    read.__name__ = f"{kind.__name__} of at least {low:g}"  # argparse says: invalid … value
    return read


if __name__ == "__main__":
    sys.exit(main())
