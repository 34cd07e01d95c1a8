"""What the benchmarks share: a pool in directories of its own, and what the kernel says of a process."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PoolProcess", "cpu_seconds", "median", "pss_bytes", "started_pool"]

HERE = Path(__file__).resolve().parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PoolProcess:
    """A running pool. `ready` is its ready line, which came `ready_s` seconds after its start."""

    ready: Document
    ready_s: float
    environ: dict[str, str]

    @property
    def address(self) -> tuple[str, int]:
        return self.ready["host"], self.ready["port"]

    @property
    def token_file(self) -> Path:
        return Path(self.ready["runtime_dir"]) / "client.token"

    def ask(self, *words: str) -> Any:
        """What a command prints with `--json`."""
        command = [sys.executable, "-m", "spearpool", *words, "--name", self.ready["name"], "--json"]
        return json.loads(subprocess.run(command, env=self.environ, check=True, capture_output=True).stdout)


@contextmanager
def started_pool(settings: str) -> Iterator[PoolProcess]:
    """Run `spearpool start` with this TOML; tasks may name modules of this folder. Stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="sp-bench-") as text:
        directory = Path(text)
        (directory / "pool.toml").write_text(settings)
        chosen = {"SPEARPOOL_RUNTIME_DIR": str(directory / "run"), "XDG_STATE_HOME": str(directory / "state")}
        environ = os.environ | chosen | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
        for path in chosen.values():
            Path(path).mkdir(mode=0o700)
        command = [sys.executable, "-m", "spearpool", "start", "--json", "--config", str(directory / "pool.toml")]
        begin = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            ready_s = time.perf_counter() - begin
            try:
                if not line:
                    raise SystemExit("the pool did not start; its reason stands above")
                yield PoolProcess(json.loads(line), ready_s, environ)
            finally:
                process.send_signal(signal.SIGTERM)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; 10 ms fine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def pss_bytes(pid: int) -> int:
    """Memory of a process, what it shares with others divided among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/smaps_rollup has no Pss line")


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
