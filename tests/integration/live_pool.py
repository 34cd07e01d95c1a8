"""A real pool for a test: `spearpool start` as a child process, in directories of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spearpool.client import Client
from spearpool.processes import descendants
from tests.conftest import RuntimeEnv, deadline

__all__ = ["HANDLERS", "LivePool", "agent_program", "live_pool", "private_env", "spearpool", "writable_cgroup_root"]

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = "python:tests.programs.handlers"
Document = dict[str, Any]


def agent_program(name: str) -> str:
    """The target of a program in `tests/programs` that speaks the protocol itself."""
    return f"agent:{sys.executable} {ROOT / 'tests' / 'programs' / name}"


def writable_cgroup_root() -> Path | None:
    """Where control groups of version 2 can be made on this machine, if anywhere."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2" and os.access(fields[4], os.W_OK):
            return Path(fields[4])
    return None


def private_env(root: Path) -> RuntimeEnv:
    """As the fixture `runtime_env`, for pools that serve a whole module; `root` is empty, and its path short."""
    run, state = root / "run", root / "state"
    for path in (run, state):
        path.mkdir(mode=0o700)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SPEARPOOL_", "SPEAR_"))}
    chosen = {"SPEARPOOL_RUNTIME_DIR": str(run), "XDG_STATE_HOME": str(state)}
    return RuntimeEnv(run, state / "spearpool", inherited | chosen)


def spearpool(
    env: RuntimeEnv, *words: str, data: bytes = b"", timeout_s: float = 60.0
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line once."""
    return subprocess.run(
        [sys.executable, "-m", "spearpool", *words],
        input=data,
        capture_output=True,
        env=_environ(env),
        timeout=timeout_s,
        check=False,
    )


def _environ(env: RuntimeEnv) -> dict[str, str]:
    return env.environ | {"PYTHONPATH": str(ROOT)}


class LivePool:
    """A started pool. `ready` is its ready line."""

    def __init__(self, env: RuntimeEnv, process: subprocess.Popen[bytes], ready: Document, log: Path) -> None:
        self.env = env
        self.log = log
        self.process = process
        self.ready = ready

    @property
    def name(self) -> str:
        return str(self.ready["name"])

    @property
    def address(self) -> str:
        return f"{self.ready['host']}:{self.ready['port']}"

    def cli(self, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """A command for this pool: `cli("status", "--json")`."""
        return spearpool(self.env, words[0], "--name", self.name, *words[1:], data=data)

    def status(self) -> Document:
        done = self.cli("status", "--json")
        assert done.returncode == 0, done.stderr.decode()
        document: Document = json.loads(done.stdout)
        return document

    def client(self, **options: Any) -> Client:
        return Client(address=self.address, token_file=Path(self.ready["runtime_dir"]) / "client.token", **options)

    def processes(self) -> list[int]:
        """The supervisor and all its descendants."""
        return [self.process.pid, *descendants(self.process.pid)]

    def stop(self) -> None:
        """As a service manager would."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log.read_text()


@contextlib.contextmanager
def live_pool(env: RuntimeEnv, *words: str, tasks: dict[str, str] | None = None) -> Iterator[LivePool]:
    """Start a pool, hand it out when it is ready, and stop it."""
    arguments = [word for name, target in (tasks or {}).items() for word in ("--task", f"{name}={target}")]
    log = env.state_dir.parent / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "spearpool", "start", "--json", *words, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environ(env),
            cwd=ROOT,
        )
    try:
        pool = LivePool(env, process, _ready(process, log), log)
        yield pool
        if process.poll() is None:  # else the test itself has ended it
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
    finally:
        if process.poll() is None:
            for pid in [process.pid, *descendants(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _ready(process: subprocess.Popen[bytes], log: Path) -> Document:
    assert process.stdout is not None
    end = deadline(60)
    while not select.select([process.stdout], [], [], 0.1)[0]:
        assert time.monotonic() < end, "the pool was not ready in time:\n" + log.read_text()
    line = process.stdout.readline()
    assert line, "the pool ended before it was ready:\n" + log.read_text()
    document: Document = json.loads(line)
    return document
