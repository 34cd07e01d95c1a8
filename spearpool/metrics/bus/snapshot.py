"""The state of a pool at one moment: what a joining subscriber is told, and what `ask` answers to `snapshot`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spearpool.errors import PoolError
from spearpool.metrics.layout import LAYOUT_VERSION
from spearpool.packing import Packer, Section, UnpackError, from_plain

from .ask import ask
from .frames import slot_of
from .items import Counters, InstanceState, WorkerState

__all__ = ["Fields", "Snapshot", "ask_snapshot"]


class Fields(Section, frozen=True):
    """What the int64 words of a counters frame are, in order: counters, gauges, then the stages of each task."""

    counters: tuple[str, ...] = ()
    gauges: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    tasks: dict[int, str] = {}

    def decode(self, words: Sequence[int], worker: int | None, time_ns: int) -> Counters:
        """The words without those that are zero."""
        own = (*self.counters, *self.gauges)
        values = {name: word for name, word in zip(own, words, strict=False) if word}
        tasks: dict[str, dict[str, int]] = {}
        for column, task in self.tasks.items():
            first = len(own) + column * len(self.stages)
            block = zip(self.stages, words[first : first + len(self.stages)], strict=True)
            if stages := {name: word for name, word in block if word}:
                tasks[task] = stages
        return Counters(time_ns / 1e9, worker, values, tasks)


class Snapshot(Section, frozen=True, kw_only=True):
    """`topics` says where each wanted topic goes on from: next sequence, records lost in the ring.

    `names` and `counters` are by topic. `totals` and `latencies`, of the whole pool, are only there when asked for.
    """

    layout_version: int
    epoch: int
    time_ns: int
    topics: dict[str, tuple[int, int]]
    fields: Fields
    names: dict[str, list[str]]
    counters: dict[str, list[int]]
    workers: list[dict[str, Any]]
    instances: list[dict[str, Any]]
    totals: dict[str, int] = {}
    latencies: dict[str, dict[str, int | float | None]] = {}

    @classmethod
    def unpack(cls, body: bytes) -> Snapshot:
        """Raises `PoolError` when the pool runs a version that we cannot read."""
        try:
            return _check(_PACKER.unpack(body))
        except UnpackError as error:
            raise _foreign(error) from None

    def counters_by_topic(self) -> Iterator[tuple[bytes, Counters]]:
        for text, words in self.counters.items():
            name = text.encode()
            yield name, self.fields.decode(words, slot_of(name), self.time_ns)

    def worker_states(self) -> list[WorkerState]:
        return [WorkerState(self.time_ns / 1e9, row["slot"], row) for row in self.workers]

    def instance_states(self) -> list[InstanceState]:
        return [InstanceState(self.time_ns / 1e9, row) for row in self.instances]


_PACKER: Packer[Snapshot] = Packer(Snapshot)


def ask_snapshot(endpoint: str, timeout_s: float) -> Snapshot:
    """A pool's state with totals and latencies. Raises what `ask` raises, and `PoolError` as `Snapshot.unpack`."""
    try:
        return _check(from_plain(ask(endpoint, "snapshot", {}, timeout_s), Snapshot))
    except UnpackError as error:
        raise _foreign(error) from None


def _check(snapshot: Snapshot) -> Snapshot:
    if snapshot.layout_version != LAYOUT_VERSION:
        raise _foreign(f"layout {snapshot.layout_version}, expected {LAYOUT_VERSION}")
    return snapshot


def _foreign(found: object) -> PoolError:
    return PoolError(f"the pool runs another version of spearpool; use the same here ({found})")
