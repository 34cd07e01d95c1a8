"""Tasks of a real pool that change while it works: their code, their settings, and which there are. No execution of a
task that stays fails, whenever it comes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from spearpool.errors import RequestRefused
from spearpool.processes import descendants
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool

pytestmark = pytest.mark.process

PATIENCE_S = 20 * TIME_SCALE
CONFIG = """
[pool]
workers = 2
[tasks.shop]
target = "python:shop_of_tests:answer"
working_dir = "{directory}"
min_instances = 2
[tasks.steady]
target = "exec:cat"
"""


class Shop:
    """A pool with its files: a configuration and a module."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "pool.toml"
        self._module = directory / "shop_of_tests.py"
        self._written_s = 1_700_000_000
        self.text = CONFIG.format(directory=directory)
        self.config.write_text(self.text)
        self.code("return b'one'")

    def code(self, body: str, top: str = "") -> None:
        """Python takes a cached .pyc for current while the source has its size and its time in whole seconds."""
        self._module.write_text(f"{top}\ndef answer(request):\n    {body}\n")
        self._written_s += 1
        os.utime(self._module, (self._written_s, self._written_s))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def pool(runtime_env: RuntimeEnv, shop: Shop) -> Iterator[LivePool]:
    with live_pool(runtime_env, "--config", str(shop.config)) as pool:
        yield pool


def _instances(pool: LivePool, task: str) -> set[str]:
    return {one["instance_id"] for one in pool.status()["instances"] if one["task"] == task}


def test_new_code_takes_over_under_load_and_no_execution_fails(pool: LivePool, shop: Shop) -> None:
    answers: list[bytes] = []
    over = threading.Event()

    def ask() -> None:
        with pool.client() as client:
            while not over.is_set():
                answers.append(client.execute("shop", timeout=PATIENCE_S))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        steady = _instances(pool, "steady")
        for word in ("two", "three"):
            before = _instances(pool, "shop")
            shop.code(f"return b'{word}'")
            said = pool.cli("reload")
            assert said.returncode == 0, said.stderr
            assert not before & _instances(pool, "shop")
            seen = len(answers)
            assert eventually(partial(_more_than, answers, seen + 20), PATIENCE_S)
            assert set(answers[seen + 4 :]) == {word.encode()}, "but for those that were under way"
        assert _instances(pool, "steady") == steady, "a program is executed afresh each time anyway"
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {b"one", b"two", b"three"}
    assert all(task["instances"]["failed"] == 0 for task in pool.status()["tasks"])


def test_code_that_cannot_be_imported_changes_nothing(pool: LivePool, shop: Shop) -> None:
    before = pool.status()
    shop.code("return b'two'", top="raise RuntimeError('no licence found')")
    said = pool.cli("reload")
    assert said.returncode == 1
    assert b"nothing was changed: task 'shop': " in said.stderr
    assert b"no licence found" in said.stderr
    after = pool.status()
    assert [row["pid"] for row in after["workers"]] == [row["pid"] for row in before["workers"]]
    with pool.client() as client:
        assert client.execute("shop", timeout=PATIENCE_S) == b"one"
    shop.code("return b'two'")
    assert pool.cli("reload").returncode == 0, "the next one may be better"
    with pool.client() as client:
        assert client.execute("shop", timeout=PATIENCE_S) == b"two"


def test_tasks_come_change_and_go(pool: LivePool, shop: Shop) -> None:
    shop.config.write_text(
        shop.text.replace('target = "exec:cat"', 'target = "exec:cat -n"')
        + f'[tasks.upper]\ntarget = "{HANDLERS}:upper"\n'
    )
    said = pool.cli("reload")
    assert said.returncode == 0, said.stderr
    with pool.client() as client:
        assert client.execute("upper", input=b"new", timeout=PATIENCE_S) == b"NEW"
        assert client.execute("steady", input=b"x", timeout=PATIENCE_S).split() == [b"1", b"x"]
    shop.config.write_text(shop.text)
    assert pool.cli("reload").returncode == 0
    assert [task["name"] for task in pool.status()["tasks"]] == ["shop", "steady"]
    assert _instances(pool, "upper") == set()
    with pool.client() as client, pytest.raises(RequestRefused, match="no task is named 'upper'"):
        client.execute("upper", timeout=PATIENCE_S)


def test_what_was_scaled_by_hand_is_as_the_file_says_again(pool: LivePool) -> None:
    assert pool.cli("scale", "steady=3").returncode == 0
    assert len(_instances(pool, "steady")) == 3
    assert pool.cli("reload").returncode == 0
    assert eventually(lambda: len(_instances(pool, "steady")) == 1, PATIENCE_S)


def test_a_dead_zygote_is_replaced_and_its_instances_go_on(pool: LivePool) -> None:
    """The next instance is forked from its successor."""

    def zygotes() -> list[int]:
        return [pid for pid in descendants(pool.process.pid) if b"shop_of_tests:answer" in _command(pid)]

    before = _instances(pool, "shop")
    instances = {one["pid"] for one in pool.status()["instances"]}
    (zygote,) = [pid for pid in zygotes() if pid not in instances]
    os.kill(zygote, signal.SIGKILL)
    assert eventually(lambda: [pid for pid in zygotes() if pid not in {*instances, zygote}], PATIENCE_S)
    assert _instances(pool, "shop") == before
    assert pool.cli("scale", "shop=3").returncode == 0
    assert len(_instances(pool, "shop")) == 3


def _more_than(answers: list[bytes], count: int) -> bool:
    return len(answers) > count


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
