"""`reload` and `scale`: what they print. What they do is in `integration/test_reload`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cli.running import invoke
from tests.conftest import RuntimeEnv
from tests.integration.live_pool import LivePool, live_pool, private_env

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePool]:
    with live_pool(private_env(tmp_path_factory.mktemp("pool")), "--workers", "1") as pool:
        yield pool


def _pids(pool: LivePool) -> list[int]:
    return [worker["pid"] for worker in pool.status()["workers"]]


def test_reload_tells_who_follows_whom(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", "1") as pool:
        (before,) = _pids(pool)
        said = invoke(pool.env, "reload")
        (after,) = _pids(pool)
    assert (said.code, said.err) == (0, "")
    lines = said.out.decode().splitlines()
    assert lines[-2] == f"worker 0 · {before} → {after} · done · 0 handed over, 0 closed, 0 awaited"
    assert lines[-1].startswith("pool default has 1 workers · 0 connections handed over, 0 closed, 0 executions")


def test_scale_up_and_down(pool: LivePool) -> None:
    said = invoke(pool.env, "scale", "workers=2")
    new = _pids(pool)[1]
    assert (said.code, f"worker 1 · {new} · done" in said.out.decode().splitlines()) == (0, True)
    said = invoke(pool.env, "scale", "workers=1", "--json")
    document = json.loads(said.out)
    assert sorted(document) == ["change", "done", "error", "kind", "name", "slots", "tasks", "took_s", "workers"]
    assert (document["kind"], document["workers"], document["done"], document["error"]) == ("scale", 1, True, "")
    assert [(row["slot"], row["pid"], row["heir_pid"]) for row in document["slots"]] == [(1, new, None)]
    assert len(_pids(pool)) == 1


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("workers=0", "expected 1 to 4 (pool.max_workers)"),
        ("workers=5", "expected 1 to 4 (pool.max_workers)"),
        ("workers=-1", "expected 1 to 4 (pool.max_workers)"),
        ("workers=many", "expected workers=N"),
        ("workers=", "expected workers=N"),
        ("workers", "expected workers=N"),
        ("nobody=1..3", "task = 'nobody': expected one of"),
        ("upper=1..", "expected workers=N, or TASK=MIN..MAX"),
        ("upper=..3", "expected workers=N, or TASK=MIN..MAX"),
        ("=1", "expected workers=N, or TASK=MIN..MAX"),
    ],
)
def test_scaling_to_what_cannot_be(pool: LivePool, word: str, why: str) -> None:
    said = invoke(pool.env, "scale", word)
    assert (said.code, why in said.err) == (2, True), said.err
    assert len(_pids(pool)) == 1


@pytest.mark.parametrize("words", [("reload",), ("scale", "workers=2")])
def test_without_a_pool(pool: LivePool, words: tuple[str, ...]) -> None:
    assert invoke(pool.env, *words, "--name", "nobody").code == 3
