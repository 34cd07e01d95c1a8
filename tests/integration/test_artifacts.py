"""What a task is made of, in a real pool: the program that was meant, the files it needs, the directory it leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import live_pool

pytestmark = pytest.mark.process

PATIENCE_S = 20 * TIME_SCALE


def _program(path: Path, body: str) -> str:
    """Write a program and return its digest."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_its_files_are_there_and_its_directory_goes_or_stays(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1,2,3\n")
    digest = _program(tmp_path / "tool", "cat data/table.csv; pwd; echo result >left.txt")
    config = tmp_path / "pool.toml"
    task = f'''target = "exec:{tmp_path}/tool"
sha256 = "{digest}"
files = {{ "data/table.csv" = "{tmp_path}/table.csv" }}
'''
    config.write_text(f"[tasks.gone]\n{task}[tasks.kept]\n{task}keep_workdir = true\n")
    with live_pool(runtime_env, "--config", str(config)) as pool, pool.client() as client:
        places = {}
        for name in ("gone", "kept"):
            table, place = client.execute(name, timeout=PATIENCE_S).decode().split()
            assert table == "1,2,3"
            places[name] = Path(place)
            assert (places[name] / "left.txt").read_text() == "result\n"
        assert places["gone"] != places["kept"]
    assert not places["gone"].exists()
    assert (places["kept"] / "left.txt").read_text() == "result\n", "also after the pool"


def test_another_program_than_was_meant_is_not_run(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    tool, config = tmp_path / "tool", tmp_path / "pool.toml"
    digest = _program(tool, "echo good")
    config.write_text(f'[tasks.tool]\ntarget = "exec:{tool}"\nsha256 = "{digest}"\n')
    with live_pool(runtime_env, "--config", str(config)) as pool, pool.client() as client:
        assert client.execute("tool", timeout=PATIENCE_S) == b"good\n"
        other = _program(tool, "echo evil")
        name = pool.status()["instances"][0]["instance_id"]
        assert pool.cli("signal", name, "terminate").returncode == 0

        def told() -> bool:
            return f"has the SHA-256 {other}, not {digest}" in str(pool.status()["tasks"][0]["problem"])

        assert eventually(told, PATIENCE_S)
        _program(tool, "echo good")
        assert client.execute("tool", timeout=PATIENCE_S) == b"good\n", "it is back when the program is"
