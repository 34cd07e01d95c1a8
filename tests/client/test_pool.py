"""`Pool`: how it starts its child, what it hands over, and what it says when the child does not do what it should.

The child here is a stand-in for `spearpool start`; `tests/integration` runs the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spearpool.client import Pool
from spearpool.client import pool as pool_module
from spearpool.config import load
from spearpool.errors import ConfigError, PoolError, PoolStartError
from spearpool.packing import to_plain
from tests.conftest import RuntimeEnv, eventually

pytestmark = pytest.mark.process

StandIn = Callable[[str], dict[str, str]]

STAND_IN = """
import json, os, signal, sys
from pathlib import Path
words = dict(zip(sys.argv[3::2], sys.argv[4::2]))
settings = Path(words["--config"]).read_text()
def ready(**more):
    print(json.dumps({"settings": settings, "words": sys.argv[1:], "environ": dict(os.environ), **more}), flush=True)
def wait_for_the_lifeline():
    os.read(int(words["--lifeline-fd"]), 1)
"""

SERVING = "signal.signal(15, lambda *_: sys.exit(0))\nready(pid=os.getpid())\nwait_for_the_lifeline()"


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Makes `python -m spearpool` run a script in its place."""
    package = tmp_path / "stand-in" / "spearpool"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()

    def write(script: str) -> dict[str, str]:
        (package / "__main__.py").write_text(STAND_IN + script)
        return {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}

    return write


def test_it_hands_over_its_settings_and_is_gone_afterwards(stand_in: StandIn) -> None:
    environ = stand_in(SERVING)
    environ |= {"SPEARPOOL_POOL_WORKERS": "5", "SPEARPOOL_CONNECTIONS_AUTH_TIMEOUT": "3.5"}
    tasks: dict[str, str | dict[str, Any]] = {
        "thumb": "python:shop.images:thumbnail",
        "sum": {"target": "exec:sha256sum -", "concurrency": 3},
    }
    with Pool(workers=7, tasks=tasks, environ=environ, connections={"heartbeat_interval": 2.0}) as pool:
        settings = load(overrides=tomllib.loads(pool.ready["settings"]))
        assert (settings.pool.workers, settings.pool.name) == (7, pool.name)
        assert settings.connections.heartbeat_interval == 2.0
        assert settings.connections.auth_timeout == 3.5
        assert settings.tasks["thumb"].target == "python:shop.images:thumbnail"
        assert settings.tasks["sum"].concurrency == 3
        assert pool.ready["words"][:2] == ["start", "--json"]
        assert "SPEARPOOL_POOL_WORKERS" not in pool.ready["environ"]  # it has been taken into account
        state = Path(pool.ready["words"][pool.ready["words"].index("--state-dir") + 1])
        assert state.is_dir()
        pid = pool.ready["pid"]
    assert not state.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_named_pool_keeps_its_state(stand_in: StandIn, tmp_path: Path) -> None:
    environ = stand_in(SERVING)
    with Pool(name="shop", environ=environ) as pool:
        assert pool.name == "shop"
        assert "--state-dir" not in pool.ready["words"]
    (tmp_path / "state").mkdir()
    with Pool(state_dir=tmp_path / "state", environ=environ) as pool:
        assert pool.ready["words"][-2:] == ["--state-dir", str(tmp_path / "state")]
    assert (tmp_path / "state").is_dir()


def test_unnamed_pools_do_not_meet() -> None:
    assert Pool().name != Pool().name


def test_a_child_that_fails_is_quoted(stand_in: StandIn) -> None:
    environ = stand_in("print('spearpool: error: port 9100 is taken', file=sys.stderr)\nsys.exit(1)")
    pool = Pool(environ=environ)
    with pytest.raises(PoolStartError) as caught:
        pool.start()
    assert str(caught.value) == (
        f"pool {pool.name!r} could not be started (exit code 1):\nspearpool: error: port 9100 is taken"
    )
    with pytest.raises(PoolError, match="is not running: use it in a `with` block"):
        pool.execute("t")


def test_a_child_that_never_gets_ready_is_ended(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_START_MARGIN_S", 0.0)
    monkeypatch.setattr(pool_module, "_STOP_MARGIN_S", 0.2)
    environ = stand_in(
        "signal.signal(15, signal.SIG_IGN)\nprint('thinking', file=sys.stderr, flush=True)\nsignal.pause()"
    )
    with pytest.raises(PoolStartError, match="was not ready in time:\nthinking"):
        Pool(environ=environ, pool={"start_timeout_s": 0.5}).start()


def test_a_child_that_does_not_stop_is_killed(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_STOP_MARGIN_S", 0.0)
    environ = stand_in("signal.signal(15, signal.SIG_IGN)\nready()\nwhile True: signal.pause()")
    pool = Pool(environ=environ, pool={"stop_timeout_s": 0.2})
    pool.start()
    with pytest.raises(PoolError, match="did not stop in time and was killed"):
        pool.stop()
    pool.stop()


def test_a_child_that_ends_badly_is_reported_but_not_over_an_error_of_the_block(stand_in: StandIn) -> None:
    environ = stand_in(
        "def lost(*_):\n print('all is lost', file=sys.stderr, flush=True)\n sys.exit(1)\n"
        "signal.signal(15, lost)\nready()\nwait_for_the_lifeline()"
    )

    def run(error: Exception | None) -> None:
        with Pool(environ=environ):
            if error is not None:
                raise error

    with pytest.raises(PoolError, match=r"ended with exit code 1:\nall is lost"):
        run(None)
    with pytest.raises(KeyError, match="mine"):
        run(KeyError("mine"))


def test_the_lifeline_ends_with_this_program(stand_in: StandIn, tmp_path: Path) -> None:
    environ = stand_in("ready()\nwait_for_the_lifeline()\nPath(os.environ['NOTE']).write_text('the other end is gone')")
    note = tmp_path / "note"
    environ["NOTE"] = str(note)
    environ["HERE"] = str(Path(__file__).parents[2])
    program = (
        "import os, sys; sys.path.insert(0, os.environ['HERE'])\n"
        "from spearpool.client import Pool\nPool().start()\nprint('up', flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("up\n", -signal.SIGKILL), done.stderr
    eventually(note.exists)


def test_a_pool_starts_once(stand_in: StandIn) -> None:
    environ = stand_in(SERVING)
    with Pool(environ=environ) as pool, pytest.raises(PoolError, match="has been started already"):
        pool.start()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"workers": 0}, "pool.workers = 0"),
        ({"tasks": {"t": "shell:ls"}}, "tasks.t.target = 'shell:ls'"),
        ({"tasks": {"t": {"target": "exec:true", "speed": 1}}}, "tasks.t.speed = 1"),
        ({"connection": {}}, "connection = "),
        ({"name": "a b"}, "pool.name = 'a b'"),
    ],
)
def test_wrong_settings_are_named_before_anything_starts(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pool(environ={}, **arguments)
    assert str(caught.value).startswith(words)


def test_settings_survive_their_way_through_toml() -> None:
    limits: dict[str, Any] = {"memory_bytes": 2**40, "nice": -3, "cpu_affinity": [0]}
    table: dict[str, Any] = {
        "target": 'exec:sh -c "echo \\"$HOME\\"; printf \'\t\x7f\x01 € 😀\'"',
        "environment": {"A.B": "x\ny", "": "="},
        "start_timeout_s": 1e-7,
        "on": True,
    }
    plain = {"pool": {"name": "a.b-c"}, "tasks": {"t": {**table, "limits": {**limits, "cpu_seconds": None}}}}
    assert tomllib.loads(pool_module._to_toml(plain)) == {
        "pool": {"name": "a.b-c"},
        "tasks": {"t": {**table, "limits": limits}},
    }
    assert load(overrides=tomllib.loads(pool_module._to_toml(to_plain(load())))) == load()


def test_the_real_command_refuses_a_program_that_does_not_exist(runtime_env: RuntimeEnv) -> None:
    pool = Pool(tasks={"t": "exec:/no/such/program"}, environ=runtime_env.environ)
    with pytest.raises(PoolStartError) as caught:
        pool.start()
    assert "/no/such/program" in str(caught.value)
    assert pool.ready == {}
