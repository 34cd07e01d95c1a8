"""What a process of the load harness is told to do, and what it tells: plain values that pass through a pipe.

A *unit* is one connection, one heartbeat or one execution, according to the mode.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

try:
    from hdrh.histogram import HdrHistogram
except ImportError:
    raise SystemExit("the load harness needs hdrhistogram: pip install -e '.[dev]'") from None

__all__ = ["EXPECTATIONS", "Expectation", "Mode", "Outcome", "Plan", "Tally", "Unit", "histogram", "merge"]

Mode = Literal["connect", "heartbeat", "execute"]

MAX_EXAMPLES = 5
"""How many wrong answers are shown."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must come back: `derive` computes it from the input, `read` finds it in the answer."""

    derive: Callable[[bytes], bytes]
    read: Callable[[bytes], bytes] = bytes


EXPECTATIONS = {
    "echo": Expectation(bytes),
    "upper": Expectation(bytes.upper),
    "sha256": Expectation(lambda sent: hashlib.sha256(sent).hexdigest().encode(), lambda answer: answer[:64]),
    "none": Expectation(lambda _: b"", lambda _: b""),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The share of one process. `rate` 0 means a closed loop of `concurrency` units, else it is units per second."""

    mode: Mode
    index: int
    host: str
    port: int
    token: str
    connections: int
    concurrency: int
    rate: float
    duration_s: float
    drain_s: float
    task: str
    payload_bytes: int
    expect: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened so far. `latency` is an encoded histogram of microseconds."""

    counts: Counter[str]
    errors: Counter[str]
    latency: bytes
    elapsed_s: float
    wrong_examples: list[str]


def histogram() -> Any:
    """1 µs to 10 minutes, three digits."""
    return HdrHistogram(1, 600_000_000, 3)


def merge(outcomes: Iterable[Outcome]) -> tuple[Outcome, Any]:
    """All processes together, and their latencies in one histogram."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    examples: list[str] = []
    latency = histogram()
    elapsed_s = 0.0
    for outcome in outcomes:
        counts.update(outcome.counts)
        errors.update(outcome.errors)
        examples += outcome.wrong_examples
        latency.decode_and_add(outcome.latency)
        elapsed_s = max(elapsed_s, outcome.elapsed_s)
    return Outcome(counts, errors, b"", elapsed_s, examples[:MAX_EXAMPLES]), latency


@dataclass(slots=True)
class Unit:
    """One thing under way: when it should have begun (monotonic ns), and the answer that makes it right."""

    intended_ns: int
    expected: bytes = b""


@dataclass(slots=True)
class Tally:
    """Counts what happens to units."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latency: Any = field(default_factory=histogram)
    wrong_examples: list[str] = field(default_factory=list)
    last_ns: int = 0

    def complete(self, unit: Unit) -> None:
        """It is right, now."""
        self.last_ns = time.monotonic_ns()
        self.counts["completed"] += 1
        self.latency.record_value(max(1, (self.last_ns - unit.intended_ns) // 1000))

    def compare(self, unit: Unit, answer: bytes) -> None:
        """It has ended with this answer."""
        if answer == unit.expected:
            self.complete(unit)
            return
        self.counts["wrong"] += 1
        if len(self.wrong_examples) < MAX_EXAMPLES:
            self.wrong_examples.append(f"expected {unit.expected[:80]!r}, got {answer[:80]!r}")

    def outcome(self, elapsed_s: float) -> Outcome:
        return Outcome(
            Counter(self.counts), Counter(self.errors), self.latency.encode(), elapsed_s, list(self.wrong_examples)
        )
