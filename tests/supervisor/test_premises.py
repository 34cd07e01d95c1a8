"""What a pool holds: opened in order, closed whole, nothing left of a pool that was killed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from spearpool import __version__
from spearpool.config import SecurityConfig, Settings, load
from spearpool.errors import PoolAlreadyRunning, PoolStartError
from spearpool.metrics.segment import Segment
from spearpool.packing import replace
from spearpool.processes import ProcessIdentity
from spearpool.protocol.credentials import TokenKey, Verifier
from spearpool.protocol.identity import Identity
from spearpool.protocol.messages import AuthRequest
from spearpool.runtime_dir import Endpoints, RuntimeDir, StateDir
from spearpool.supervisor.premises import Premises, open_premises
from tests.conftest import RuntimeEnv


def _open(env: RuntimeEnv, settings: Settings) -> AbstractContextManager[Premises]:
    name = settings.pool.name
    return open_premises(settings, RuntimeDir.locate(name, env.environ), StateDir.locate(name, env.environ))


def _settings(env: RuntimeEnv, **pool: object) -> Settings:
    memory = env.runtime_dir.parent / "shm"
    memory.mkdir(exist_ok=True)
    return load(overrides={"pool": pool, "monitoring": {"shared_memory_dir": str(memory)}})


def test_everything_is_there_and_then_gone(runtime_env: RuntimeEnv) -> None:
    settings = _settings(runtime_env, workers=3)
    with _open(runtime_env, settings) as premises:
        path = premises.segment.path
        assert path is not None
        assert path.exists()
        assert len(premises.listeners.sockets) == 3
        assert premises.identity.pid == os.getpid()
        with socket.create_connection((premises.listeners.host, premises.listeners.port), timeout=5):
            pass
        with contextlib.closing(Segment.open(path)) as seen:
            assert seen.epoch == premises.epoch
        with socket.socket(socket.AF_UNIX) as agent:
            agent.connect(str(premises.runtime_dir.agents_path))
    assert not path.exists()
    assert not list(runtime_env.runtime_dir.iterdir())


def test_what_others_find_the_pool_by(runtime_env: RuntimeEnv) -> None:
    endpoints = Endpoints(live="ipc:///live", ask="ipc:///ask")
    with _open(runtime_env, _settings(runtime_env, name="shop", workers=3)) as premises:
        pool = premises.describe(endpoints)
        assert (pool.name, pool.workers, pool.endpoints, pool.version) == ("shop", 3, endpoints, __version__)
        assert pool.supervisor == ProcessIdentity.of(os.getpid())
        assert (pool.host, pool.port) == (premises.listeners.host, premises.listeners.port)
        assert (pool.segment, pool.epoch) == (str(premises.segment.path), premises.epoch)
        assert Path(pool.runtime_dir) == runtime_env.runtime_dir / "shop"


def test_the_clients_token_is_renewed_at_half_its_life(runtime_env: RuntimeEnv) -> None:
    settings = replace(_settings(runtime_env), security=SecurityConfig(token_ttl_s=1000.0))
    with _open(runtime_env, settings) as premises:
        assert 499 < premises.renew_client_token() < 502
        first = premises.runtime_dir.read_client_token()
        keys = [TokenKey(key.key_id, key.secret) for key in premises.keys.for_workers()]
        found = Verifier(keys, row_is_alive=lambda *_: False).verify(
            AuthRequest("cli", first, "1", "test", {}), time.time() + 990
        )
        assert isinstance(found, Identity), found
        assert found.rights == {"submit", "observe", "control"}
        premises.renew_client_token()
        assert premises.runtime_dir.read_client_token() != first


def test_second_pool_of_the_name_is_refused_and_the_first_is_untouched(runtime_env: RuntimeEnv) -> None:
    settings = _settings(runtime_env)
    with _open(runtime_env, settings) as premises:
        with pytest.raises(PoolAlreadyRunning, match=f"pid {os.getpid()}"), _open(runtime_env, settings):
            pass
        assert premises.segment.path is not None
        assert premises.segment.path.exists()


def test_taken_port_leaves_nothing(runtime_env: RuntimeEnv) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = _settings(runtime_env, port=taken.getsockname()[1])
        with pytest.raises(PoolStartError, match="is taken by"), _open(runtime_env, settings):
            pass
    assert not list(runtime_env.runtime_dir.iterdir())
    assert not list(Path(settings.monitoring.shared_memory_dir).iterdir())


def test_leftovers_of_a_killed_pool_are_swept(runtime_env: RuntimeEnv) -> None:
    settings = _settings(runtime_env)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tests.supervisor.test_premises import _open, _settings\n"
        "from tests.conftest import RuntimeEnv\n"
        "env = RuntimeEnv(Path(sys.argv[1]), Path(sys.argv[2]), dict(os.environ))\n"
        "with _open(env, _settings(env)) as premises:\n"
        "    (premises.runtime_dir.path / 'live.sock').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    words = [sys.executable, "-c", code, str(runtime_env.runtime_dir), str(runtime_env.state_dir)]
    subprocess.run(words, env=runtime_env.environ, cwd=Path(__file__).parents[2], check=False)
    memory = Path(settings.monitoring.shared_memory_dir)
    (old,) = memory.iterdir()
    with _open(runtime_env, settings) as premises:
        assert not old.exists()
        assert not (premises.runtime_dir.path / "live.sock").exists()


def test_two_pools_of_one_name_started_in_the_same_millisecond(
    runtime_env: RuntimeEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their runtime directories differ; the memory filesystem is everybody's. The clock stands still here."""
    settings = _settings(runtime_env)
    other = runtime_env.environ | {"SPEARPOOL_RUNTIME_DIR": str(tmp_path / "run"), "XDG_STATE_HOME": str(tmp_path)}
    (tmp_path / "run").mkdir(mode=0o700)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    name = settings.pool.name
    with (
        _open(runtime_env, settings) as one,
        open_premises(settings, RuntimeDir.locate(name, other), StateDir.locate(name, other)) as two,
    ):
        assert two.epoch == one.epoch + 1
        assert two.segment.path != one.segment.path
