"""Nobody outlives what ends: relatives that try to, and every way for an instance or a pool to end."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import pytest

from spearpool.errors import OutcomeUnknown
from spearpool.processes import ProcessIdentity, children_of
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import LivePool, live_pool, writable_cgroup_root
from tests.programs.kin import RELATIVES

pytestmark = pytest.mark.process

PATIENCE_S = 20 * TIME_SCALE
MARK = "KIN_OF_TEST"
SCANS = 5
"""One look at /proc can miss who is just being born."""


def _marked(mark: str) -> list[int]:
    """Who has the mark in its environment: an instance, and all that descend from it, wherever they have gone."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                if f"{MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
            except OSError:  # gone meanwhile, or a zombie
                continue
    return found


def _relatives(mark: str, zygote: int, pool: LivePool) -> list[int]:
    """Those who are neither instance nor zygote of the pool."""
    own = {zygote} | {instance["pid"] for instance in pool.status()["instances"]}
    return [pid for pid in _marked(mark) if pid not in own]


def _nobody_has(mark: str) -> bool:
    return not any(_marked(mark) for _ in range(SCANS))


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex[:8]


def _config(directory: Path, mark: str, cgroup: str = "auto") -> str:
    path = directory / "pool.toml"
    path.write_text(f'''
[pool]
name = "kin-{mark}"
cgroup = "{cgroup}"
[tasks.kin]
target = "python:tests.programs.kin:leave"
environment = {{ {MARK} = "{mark}" }}
stop_timeout_s = 1.0
''')
    return str(path)


@pytest.mark.parametrize("end", ["terminate", "restart", "crash", "exit"])
def test_nobody_outlives_an_instance(runtime_env: RuntimeEnv, tmp_path: Path, mark: str, end: str) -> None:
    with live_pool(runtime_env, "--config", _config(tmp_path, mark)) as pool, pool.client() as client:
        (instance,) = pool.status()["instances"]
        (zygote,) = set(_marked(mark)) - {instance["pid"]}
        if end == "exit":
            with pytest.raises(OutcomeUnknown):
                client.execute("kin", *RELATIVES, "die", timeout=PATIENCE_S)
        else:
            client.execute("kin", *RELATIVES, timeout=PATIENCE_S)
            assert len(_relatives(mark, zygote, pool)) >= len(RELATIVES) - 1, "the hopper may be missed"
            if end == "crash":
                os.kill(instance["pid"], signal.SIGKILL)
            else:
                assert pool.cli("signal", instance["instance_id"], end).returncode == 0
        assert eventually(lambda: instance["pid"] not in _marked(mark), PATIENCE_S)
        assert eventually(lambda: not any(_relatives(mark, zygote, pool) for _ in range(SCANS)), PATIENCE_S)
        assert client.execute("kin", timeout=PATIENCE_S) == b"", "the pool goes on, with another instance"


@pytest.mark.parametrize("end", ["stop", "supervisor", "warden"])
def test_nobody_outlives_a_pool(runtime_env: RuntimeEnv, tmp_path: Path, mark: str, end: str) -> None:
    with live_pool(runtime_env, "--config", _config(tmp_path, mark)) as pool, pool.client() as client:
        client.execute("kin", *RELATIVES, timeout=PATIENCE_S)
        (warden,) = children_of(pool.process.pid)
        if end == "stop":
            assert pool.cli("stop").returncode == 0
        else:
            os.kill(pool.process.pid if end == "supervisor" else warden, signal.SIGKILL)
        began = time.monotonic()
        pool.process.wait(PATIENCE_S)
        assert eventually(lambda: _nobody_has(mark), PATIENCE_S), _marked(mark)
        assert end == "stop" or time.monotonic() - began < 2.0 * TIME_SCALE + SCANS * 0.1
    with live_pool(runtime_env, "--config", _config(tmp_path, mark)):
        assert not Path(pool.ready["segment"]).exists(), "the next pool of the name has swept"


@pytest.mark.parametrize("grouped", [False, True])
def test_when_supervisor_and_warden_are_killed_at_once(
    runtime_env: RuntimeEnv, tmp_path: Path, mark: str, grouped: bool
) -> None:
    """The limit of all this: nobody is left who would know of a relative, unless control groups tell the next pool.

    All processes of the pool's own end.
    """
    root = writable_cgroup_root()
    if grouped and root is None:
        pytest.skip("no control group of version 2 is writable here")
    config = _config(tmp_path, mark, f"{root}/spearpool-{mark}" if grouped else "off")
    with live_pool(runtime_env, "--config", config) as pool, pool.client() as client:
        client.execute("kin", "daemon", timeout=PATIENCE_S)
        (warden,) = children_of(pool.process.pid)
        os.kill(pool.process.pid, signal.SIGSTOP)  # so that neither sees the other die
        os.kill(warden, signal.SIGSTOP)
        own = [ProcessIdentity.of(pid) for pid in (pool.process.pid, warden, *children_of(warden))]
        for pid in (warden, pool.process.pid):
            os.kill(pid, signal.SIGKILL)
        pool.process.wait(PATIENCE_S)
        try:
            assert eventually(lambda: not any(process.alive() for process in own), PATIENCE_S)
            left = _marked(mark)
            assert left, "the daemon goes on"
        finally:
            if not grouped:
                for pid in _marked(mark):
                    os.kill(pid, signal.SIGKILL)
    with live_pool(runtime_env, "--config", config):
        assert not Path(pool.ready["segment"]).exists(), "the next pool of the name has swept"
        assert not set(left) & set(_marked(mark)), "and everybody in its groups is gone"
    assert eventually(lambda: _nobody_has(mark), PATIENCE_S)
    if grouped:
        Path(f"{root}/spearpool-{mark}").rmdir()  # made by a pool that could not remove it; nothing is in it
