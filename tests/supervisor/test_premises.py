"""What a pool holds: opened in order, closed whole, nothing left of a pool that was killed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from spearpool.config import Settings, load
from spearpool.errors import PoolAlreadyRunning, PoolStartError
from spearpool.metrics.segment import Segment
from spearpool.runtime_dir import RuntimeDir, StateDir
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
    assert not path.exists()
    assert not list(runtime_env.runtime_dir.iterdir())


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
