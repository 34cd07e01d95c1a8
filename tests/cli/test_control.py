"""`stop` and `token issue`: what they do to a real pool, and what they say when they cannot."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spearpool.processes import ProcessIdentity
from spearpool.protocol.credentials import TokenKey, Verifier
from spearpool.protocol.identity import Identity, Role
from spearpool.protocol.messages import AuthRequest
from spearpool.runtime_dir import PoolDescription, RuntimeDir, StateDir
from tests.cli.running import invoke
from tests.conftest import RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool, private_env
from tests.metrics.bus.living import living_bus

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePool]:
    with live_pool(private_env(tmp_path_factory.mktemp("pool")), tasks={"embed": f"{HANDLERS}:upper"}) as pool:
        yield pool


# token issue


def _identity(pool: LivePool, name: str, token: str, at: float) -> Identity:
    """Whose token it is, by the key that the pool keeps."""
    key = TokenKey(*StateDir.locate(pool.name, pool.env.environ).issuing_key())
    found = Verifier([key], row_is_alive=lambda *_: False).verify(AuthRequest(name, token, "1", "test", {}), at)
    assert isinstance(found, Identity), found
    return found


def test_token_for_an_agent(pool: LivePool) -> None:
    said = invoke(pool.env, "token", "issue", "--instance-id", "gpu-1", "--task", "embed", "--ttl", "60")
    assert (said.code, said.err) == (0, "")
    (token,) = said.out.decode().splitlines()
    found = _identity(pool, "gpu-1", token, time.time() + 50)
    assert (found.role, found.label, found.task) == (Role.AGENT, "gpu-1", "embed")
    assert found.expires_at is not None
    assert 55 < found.expires_at - time.time() <= 61


def test_token_for_a_client(pool: LivePool) -> None:
    words = ("token", "issue", "--instance-id", "ci", "--client")
    said = invoke(pool.env, *words)
    assert _identity(pool, "ci", said.out.decode().strip(), time.time()).rights == {"submit"}
    said = invoke(pool.env, *words, "--right", "observe", "--right", "control", "--json")
    reply = json.loads(said.out)
    assert sorted(reply) == ["expires_s", "instance_id", "token"]
    assert reply["instance_id"] == "ci"
    assert reply["expires_s"] > time.time() + 86_400
    assert _identity(pool, "anybody", reply["token"], time.time()).rights == {"observe", "control"}


WRONG = [
    ([], 2, "--instance-id"),
    (["--instance-id", "a"], 2, "give either --task TASK (for an agent) or --client"),
    (["--instance-id", "a", "--task", "embed", "--client"], 2, "give either --task TASK"),
    (["--instance-id", "a", "--task", "embed", "--right", "submit"], 2, "--right goes with --client"),
    (["--instance-id", "a", "--client", "--right", "fly"], 2, "'fly' is not one of"),
    (["--instance-id", "a", "--client", "--ttl", "0"], 2, "0.0 is not in the range x>0"),
    (["--instance-id", "a", "--client", "--ttl", "nan"], 2, "nan is not a finite number of seconds"),
    (["--instance-id", "a", "--client", "--ttl", "inf"], 2, "inf is not a finite number of seconds"),
    (["--instance-id", "a", "--task", "nothing"], 1, "no task is named 'nothing'; there are: embed"),
    (["--instance-id", "x" * 129, "--client"], 1, "expected 1 to 128 bytes of text"),
    (["--instance-id", "a", "--client", "--name", "nobody"], 3, "no pool 'nobody' is running"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_token_refused(pool: LivePool, words: list[str], code: int, message: str) -> None:
    said = invoke(pool.env, "token", "issue", *words)
    assert (said.code, said.out) == (code, b""), said
    assert message in said.err


# stop


@pytest.mark.parametrize("as_json", [False, True])
def test_stop_returns_when_nothing_is_left(runtime_env: RuntimeEnv, as_json: bool) -> None:
    with live_pool(runtime_env, tasks={"echo": f"{HANDLERS}:echo"}) as pool:
        everybody = [ProcessIdentity.of(pid) for pid in pool.processes()]
        assert len(everybody) > 4
        said = invoke(runtime_env, "stop", "--timeout", "5", *(["--json"] if as_json else []))
        assert (said.code, said.err) == (0, "")
        assert not [process for process in everybody if process.alive()]
        assert not Path(pool.ready["runtime_dir"]).exists()
        assert not Path(pool.ready["segment"]).exists()
        assert pool.process.wait(10) == 0
    if as_json:
        assert json.loads(said.out) == {"name": "default", "pid": pool.process.pid, "stopped": True}
    else:
        assert said.out.decode() == f"pool default (pid {pool.process.pid}) stopped\n"


def test_stop_lets_what_is_in_flight_finish(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, tasks={"sleep": f"{HANDLERS}:sleep"}) as pool, pool.client() as client:
        waiting = client.submit("sleep", "1")
        eventually(lambda: [row for row in pool.status()["instances"] if row["state"] == "busy"], 10)
        said = invoke(runtime_env, "stop", "--timeout", "20")
        assert said.code == 0
        assert waiting.result(10).output == b"slept"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--timeout", "-1"], 2, "-1.0 is not in the range x>=0"),
        (["--timeout", "inf"], 2, "inf is not a finite number of seconds"),
        (["--timeout", "nan"], 2, "nan is not a finite number of seconds"),
        (["--name", "nobody"], 3, "no pool 'nobody' is running"),
    ],
)
def test_stop_refused(pool: LivePool, words: list[str], code: int, message: str) -> None:
    said = invoke(pool.env, "stop", *words)
    assert (said.code, said.out) == (code, b"")
    assert message in said.err
    assert pool.status()["state"] == "ready"


def test_stop_of_a_pool_that_does_not_end(runtime_env: RuntimeEnv) -> None:
    """This process plays the supervisor: it answers, and goes on."""
    directory = RuntimeDir.locate("default", runtime_env.environ)
    directory.create()
    me = ProcessIdentity.of(os.getpid())
    asked: list[object] = []

    def stop(arguments: dict[str, object]) -> dict[str, object]:
        asked.append(arguments["timeout_s"])
        return {"deadline_s": -9.9}  # with the margin of 10 s, `stop` waits for 0.1 s

    with living_bus(directory.path, handlers={"stop": stop}) as living:
        described = PoolDescription(
            name="default",
            pid=me.pid,
            start_ticks=me.start_ticks,
            host="127.0.0.1",
            port=9100,
            endpoints=living.bus.endpoints,
            segment=str(living.segment.path),
            epoch=living.segment.epoch,
            runtime_dir=str(directory.path),
            log_dir="/nowhere/logs",
            version="0",
            workers=2,
        )
        directory.write_pool(described)
        said = invoke(runtime_env, "stop", "--timeout", "2.5")
    assert asked == [2.5]
    assert said.code == 1
    assert f"pool 'default' (pid {me.pid}) did not end in time" in said.err
    assert f"kill -9 {me.pid}" in said.err
