"""What a run found, the promises that it is held against, and how both are shown. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import ceil
from typing import Any

__all__ = ["Findings", "Promise", "document", "judge", "quantiles", "table"]


@dataclass
class Findings:
    """Of one run. `saw` counts what clients saw, by kind; `examples` says more of what should not have been."""

    seed: int
    seconds: float
    workers: int
    residents: int
    left_out: list[str] = field(default_factory=list)
    saw: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    kept_residents: int = 0
    calm_ms: list[float] = field(default_factory=list)
    storm_ms: list[float] = field(default_factory=list)
    rate: float = 0.0
    kills: int = 0
    instances: int = 0
    zygotes: int = 0
    halts: int = 0
    freezes: int = 0
    missed_blows: int = 0
    operations: list[dict[str, Any]] = field(default_factory=list)
    recoveries_s: list[float | None] = field(default_factory=list)
    booked_crash: int = 0
    unbidden_deaths: int = 0
    restarted_instances: int = 0
    sums_wrong: int = 0
    looks: int = 0
    longest_gap_s: float = 0.0
    open_at_end: int = 0
    agents_at_end: int = 0
    unsettled_executions: int = 0
    run_twice: int = 0
    slots_not_ready: int = 0
    events: str = ""
    exit_code: int = 0
    left_behind: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Promise:
    """`found` may be `allowed` at most. `word` says of the limit what the number does not."""

    name: str
    found: int
    allowed: int = 0
    word: str = ""

    @property
    def kept(self) -> bool:
        return self.found <= self.allowed


def judge(found: Findings) -> list[Promise]:
    """Everything that has to hold; more is allowed where workers or instances were killed."""
    saw = found.saw
    killed = found.kills > 0
    victims = " and ".join(["workers"] * killed + ["instances"] * (found.instances > 0))
    lost_residents = found.residents - found.kept_residents
    return [
        Promise("connections refused", saw["refused"]),
        Promise("connections reset", saw["reset"], found.booked_crash, "closed{crash} booked"),
        Promise("connections dismissed", saw["dismissed"]),
        Promise("connections not admitted", saw["not admitted"] + saw["not admitted in time"]),
        Promise("answers wrong", saw["wrong"]),
        Promise("answers duplicate or stray", saw["duplicate"] + saw["stray"]),
        Promise("executions without a final status", saw["without a final status"]),
        Promise("executions refused", saw["refused executions"]),
        Promise("executions failed, cancelled, timed out", saw["failed"]),
        Promise(
            "executions of unknown outcome, or lost with their connection",
            saw["outcome unknown"] + saw["lost with their connection"],
            saw["executions"] if victims else 0,
            f"{victims} were killed" if victims else "",
        ),
        Promise("executions run twice", found.run_twice),
        Promise("executions not settled in the pool's books", found.unsettled_executions),
        Promise("sums that went back, or were below none", found.sums_wrong),
        Promise("open at the end, beside the agents", abs(found.open_at_end - found.agents_at_end)),
        Promise(
            "residents that are not on their first connection",
            lost_residents,
            found.residents if killed else 0,
            "workers were killed" if killed else "",
        ),
        Promise("workers that died unbidden", found.unbidden_deaths),
        Promise(
            "restarts of instances", found.restarted_instances, found.instances, "were killed" * (found.instances > 0)
        ),
        Promise("kills without an heir", found.recoveries_s.count(None)),
        Promise("slots not ready at the end", found.slots_not_ready),
        Promise("blows that met nobody within 10 s", found.missed_blows),
        Promise("commands that failed", sum(operation["code"] != 0 for operation in found.operations)),
        Promise("exit code of the pool", abs(found.exit_code)),
        Promise("processes and files left behind", len(found.left_behind)),
    ]


def quantiles(values: Iterable[float]) -> dict[str, float] | None:
    """p50, p99 and max by nearest rank; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None

    def rank(part: float) -> float:
        return ordered[max(0, ceil(part * len(ordered)) - 1)]

    return {"p50": rank(0.5), "p99": rank(0.99), "max": ordered[-1]}


def document(found: Findings, promises: Sequence[Promise]) -> dict[str, Any]:
    """The result as `--json` prints it. Times are milliseconds."""
    bulky = {"recoveries_s", "calm_ms", "storm_ms"}
    plain = {each.name: getattr(found, each.name) for each in fields(found) if each.name not in bulky}
    return plain | {
        "kept": all(promise.kept for promise in promises),
        "promises": [asdict(promise) | {"kept": promise.kept} for promise in promises],
        "heir_ready_ms": quantiles(round(1e3 * each, 2) for each in found.recoveries_s if each is not None),
        "admitted_ms": {"calm": quantiles(found.calm_ms), "storm": quantiles(found.storm_ms)},
    }


def table(result: dict[str, Any]) -> str:
    """A document for people."""
    rows = [
        ("done", _done(result)),
        ("load", _load(result)),
        ("SIGKILL to the heir's ready", _times(result["heir_ready_ms"])),
        ("connect to authenticated, calm", _times(result["admitted_ms"]["calm"])),
        ("connect to authenticated, storm", _times(result["admitted_ms"]["storm"])),
        ("events on the bus", result["events"]),
        ("looks at the sums", f"{result['looks']:,}, at most {1e3 * result['longest_gap_s']:,.0f} ms apart"),
    ]
    rows += [("left out", text) for text in result["left_out"]]
    lines = [f"seed {result['seed']}, {result['seconds']:g} s, {result['workers']} workers"]
    lines += [f"  {name:62} {text}" for name, text in rows]
    for promise in result["promises"]:
        limit = f"≤ {promise['allowed']:,} {promise['word']}".rstrip() if promise["allowed"] or promise["word"] else ""
        verdict = "ok    " if promise["kept"] else "BROKEN"
        lines.append(f"  {verdict} {promise['name']:55} {promise['found']:,} {limit}".rstrip())
    lines += [f"  e.g.   {example}" for example in result["examples"]]
    lines += [f"  left   {what}" for what in result["left_behind"]]
    failed = [operation for operation in result["operations"] if operation["code"]]
    lines += [f"  failed {each['words']} ({each['code']}): {each['said']}" for each in failed[:5]]
    return "\n".join(lines)


def _done(result: dict[str, Any]) -> str:
    kinds = Counter(operation["words"].split()[0] for operation in result["operations"])
    counts = {"kills": "kills", "instances": "instances killed", "zygotes": "zygotes killed"}
    counts |= {"halts": "halts", "freezes": "freezes"}
    parts = [f"{result[name]} {words}" for name, words in counts.items() if result[name]]
    return ", ".join([*parts, *(f"{count} × {name}" for name, count in sorted(kinds.items()))])


def _load(result: dict[str, Any]) -> str:
    saw = result["saw"]
    return (
        f"{saw.get('passed', 0):,} passers at {result['rate']:,.0f}/s, {result['residents']} residents, "
        f"{saw.get('executions', 0):,} executions, {saw.get('right', 0):,} answered right"
    )


def _times(found: dict[str, float] | None) -> str:
    return " · ".join(f"{name} {value:,.1f} ms" for name, value in found.items()) if found else "none"
