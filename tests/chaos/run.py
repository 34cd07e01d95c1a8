"""One run: a pool of its own, load from outside, a calm part, a storm, and a last look when all is quiet."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from spearpool.config import MonitoringConfig
from spearpool.processes import become_subreaper, descendants, kill_descendants
from spearpool.runtime_dir import find_pool
from spearpool.supervisor.leftovers import sweep_leftovers
from tests.conftest import RuntimeEnv
from tests.integration.live_pool import LivePool, live_pool, private_env, spearpool

from .crowd import Account, Assignment, Times
from .findings import Findings
from .load import ROOT, started_load
from .schedule import OPERATIONS, SCALES, Blow, Kind, plan
from .storm import Storm, Struck
from .tasks import LEDGER
from .witness import SumsWatch, WorkersWatch, recoveries, unbidden

__all__ = ["Options", "run"]

CALM = 0.25
"""Which part of the time comes before the storm, ..."""

LONGEST_CALM_S = 30.0
"""... at most."""

DRAIN_S = 15.0
QUIET_WITHIN_S = 10.0
STOP_S = 60.0
GONE_WITHIN_S = 3.0
SLOW_CLIENTS = 4
EXAMPLES = 10

NAME = "chaos"
SHARED_MEMORY = MonitoringConfig().shared_memory_dir
SETTINGS = """
[pool]
name = "{name}"
workers = {workers}
max_workers = {max_workers}
{tasks}
"""
TASK = """
[tasks.{name}]
target = "python:tests.chaos.tasks:{name}"
min_instances = 2
concurrency = {concurrency}
environment = {{ {ledger} = "{directory}" }}
"""
CONCURRENCY = {"work": 1, "bulk": 1, "dawdle": 8}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    seed: int
    seconds: float
    workers: int
    rate: float
    residents: int
    counts: Mapping[Kind, int]


def run(options: Options, tell: Progress) -> Findings:
    """Raises `RuntimeError`, `AssertionError`, `SpearpoolError` or `TimeoutError` when the run could not be done."""
    become_subreaper()
    found = Findings(options.seed, options.seconds, options.workers, options.residents)
    root = Path(tempfile.mkdtemp(prefix="sp-chaos-"))
    try:
        env = private_env(root)
        blows = schedule(options, env, found)
        (root / "ledger").mkdir()
        (root / "pool.toml").write_text(settings(options, root / "ledger"))
        with live_pool(env, "--config", str(root / "pool.toml")) as pool:
            _in_the_pool(options, blows, pool, found, tell)
            found.run_twice = run_twice(root / "ledger")
            pool.process.send_signal(signal.SIGTERM)
            found.exit_code = pool.process.wait(STOP_S)
        found.left_behind = left_behind(pool)
    finally:
        kill_descendants(os.getpid())
        sweep_leftovers(
            Path(SHARED_MEMORY), NAME
        )  # the segment of a pool that an exception or a signal to us has ended
        shutil.rmtree(root)
    return found


def schedule(options: Options, env: RuntimeEnv, found: Findings) -> list[Blow]:
    """The blows, without those for which the pool has no command; `found` is told which."""
    words = spearpool(env, "--help").stdout.decode().split()
    counts = dict(options.counts)
    for kind in OPERATIONS:
        if counts.get(kind) and kind.value not in words:
            found.left_out.append(f"{counts.pop(kind)} × {kind.value}: this pool has no such command")
    return plan(options.seed, options.seconds - calm_s(options), counts)


def calm_s(options: Options) -> float:
    return min(LONGEST_CALM_S, CALM * options.seconds)


def settings(options: Options, ledger: Path) -> str:
    """The pool's configuration file."""
    tasks = (
        TASK.format(name=name, concurrency=concurrency, ledger=LEDGER, directory=ledger)
        for name, concurrency in CONCURRENCY.items()
    )
    return SETTINGS.format(
        name=NAME, workers=options.workers, max_workers=max(options.workers, *SCALES), tasks="".join(tasks)
    )


def _in_the_pool(options: Options, blows: list[Blow], pool: LivePool, found: Findings, tell: Progress) -> None:
    description = find_pool(pool.name, pool.env.environ)
    token = (Path(description.runtime_dir) / "client.token").read_text().strip()
    crowd = Assignment("passers", description.host, description.port, token, options.seed, rate=options.rate)
    stay = Assignment(
        "residents",
        description.host,
        description.port,
        token,
        options.seed,
        residents=options.residents,
        slow_clients=min(SLOW_CLIENTS, options.residents),
    )
    with ExitStack() as stack:
        storm = stack.enter_context(Storm(pool, description.endpoints.ask))
        workers = stack.enter_context(WorkersWatch(description.endpoints.live))
        sums = stack.enter_context(SumsWatch(Path(description.segment)))
        load = stack.enter_context(started_load([crowd, stay], pool.env.environ | {"PYTHONPATH": str(ROOT)}))
        workers.wait()
        begin_s = time.monotonic() + 0.2
        times = Times(begin_s, begin_s + calm_s(options), begin_s + options.seconds, DRAIN_S)
        load.begin(times)
        tell(f"calm for {calm_s(options):g} s, then {len(blows)} blows in {options.seconds - calm_s(options):g} s")
        time.sleep(max(0.0, times.storm_s - time.monotonic()))
        storm.run(blows, times.storm_s)
        accounts = load.accounts(times.end_s + DRAIN_S + STOP_S)
        storm.wait_for_operations()
        tell("the last look")
        _last_look(storm, sums, found)
    _enter_accounts(accounts, options, found)
    _enter_struck(storm.struck, workers, found)
    found.sums_wrong = sums.wrong.total()
    found.examples += sums.examples
    found.looks, found.longest_gap_s = sums.looks, sums.longest_gap_s


def _last_look(storm: Storm, sums: SumsWatch, found: Findings) -> None:
    """When all is quiet; how things are in the end when it does not get quiet."""
    end = time.monotonic() + QUIET_WITHIN_S
    while True:
        status = storm.status()
        found.slots_not_ready = sum(row["state"] != "ready" for row in status["workers"])
        found.agents_at_end = sum(row["worker"] is not None for row in status["instances"])
        found.open_at_end = status["totals"]["connections_open"]
        found.unsettled_executions = sums.unsettled_executions()
        quiet = not (found.slots_not_ready or found.unsettled_executions) and found.open_at_end == found.agents_at_end
        if quiet or time.monotonic() > end:
            break
        time.sleep(0.05)
    found.booked_crash = sums.closed_by_crash()
    found.restarted_instances = sum(row["restarts"] for row in status["instances"])


def _enter_accounts(accounts: list[Account], options: Options, found: Findings) -> None:
    for account in accounts:
        found.saw.update(account.counts)
        found.examples += account.examples[:EXAMPLES]
        found.calm_ms += account.calm_ms
        found.storm_ms += account.storm_ms
        found.kept_residents += account.kept
    found.rate = found.saw["passed"] / options.seconds


def _enter_struck(struck: Struck, workers: WorkersWatch, found: Findings) -> None:
    found.kills, found.halts, found.freezes = len(struck.kills), struck.halts, struck.freezes
    found.instances, found.zygotes = struck.instances, struck.zygotes
    found.missed_blows = struck.missed
    found.operations = [asdict(operation) for operation in struck.operations]
    removals = [
        (operation.began, operation.began + operation.seconds, int(operation.words.partition("=")[2]))
        for operation in struck.operations
        if operation.words.startswith(Kind.SCALE.value)
    ]
    found.recoveries_s = recoveries(struck.kills, workers.events, removals)
    deaths = unbidden(struck.kills, workers.events, excuse_starting=bool(removals))
    found.unbidden_deaths = len(deaths)
    found.examples += workers.ended_instances[:EXAMPLES]
    found.examples += [f"died unbidden: {death}" for death in deaths[:EXAMPLES]]
    found.events = workers.account


def run_twice(ledger: Path) -> int:
    """How many executions were begun more than once, after what the instances noted."""
    lines = chain.from_iterable(path.read_text().splitlines() for path in ledger.iterdir())
    return sum(count > 1 for count in Counter(lines).values())


def left_behind(pool: LivePool) -> list[str]:
    """Processes and files of a pool that has ended."""
    end = time.monotonic() + GONE_WITHIN_S
    while (alive := descendants(os.getpid())) and time.monotonic() < end:
        time.sleep(0.02)
    paths = [Path(pool.ready["segment"]), Path(pool.ready["runtime_dir"])]
    return [*(f"process {pid}" for pid in alive), *(str(path) for path in paths if path.exists())]
