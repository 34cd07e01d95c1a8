"""`config check` and `completion`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from spearpool.cli.configuration import completion, config


def test_good_file(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text('[pool]\nname = "shop"\nworkers = 3\n[tasks.sum]\ntarget = "exec:cat -n"\n')
    result = CliRunner().invoke(config, ["check", str(path)])
    assert result.exit_code == 0, result.output
    assert "good: pool shop, 3 workers, 1 task" in result.output
    as_json = CliRunner().invoke(config, ["check", "--json", str(path)])
    assert json.loads(as_json.output)["pool"]["workers"] == 3


def test_who_would_not_find_the_pool_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text('[pool]\nhost = "127.0.0.2"\n[tasks.own]\ntarget = "agent:cat"\n')
    result = CliRunner().invoke(config, ["check", "--json", str(path)])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["pool"]["host"] == "127.0.0.2"
    assert "warning: tasks.own: its program does not find the pool at 127.0.0.1" in result.stderr
    assert "SPEAR_COMMUNICATION_HOST (pool.host is 127.0.0.2)" in result.stderr


def test_environment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pool.toml"
    path.write_text("")
    monkeypatch.setenv("SPEARPOOL_POOL_WORKERS", "5")
    result = CliRunner().invoke(config, ["check", "--json", str(path)])
    assert json.loads(result.output)["pool"]["workers"] == 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    result = CliRunner().invoke(completion, [shell])
    assert result.exit_code == 0
    assert "_SPEARPOOL_COMPLETE" in result.output
