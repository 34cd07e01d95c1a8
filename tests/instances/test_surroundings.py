from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from spearpool.config import TaskConfig, Transport, load
from spearpool.instances.surroundings import KEPT_WORKDIRS, Surroundings, copy_files, found_by_host_only, remove_tree
from spearpool.protocol.environment import InstanceEnvironment

OURS = {
    "PATH": "/bin",
    "HOME": "/home/u",
    "LC_TIME": "de_DE",
    "AWS_SECRET_ACCESS_KEY": "hidden",
    "SPEARPOOL_POOL_WORKERS": "4",
    "SPEAR_SECRET": "of somebody else",
    "LD_PRELOAD": "/tmp/evil.so",
}


def surroundings(directory: Path, host: str = "127.0.0.1") -> Surroundings:
    return Surroundings(host, 9100, directory / "agents.sock", directory / "work", directory / "logs", OURS)


def test_the_environment_is_an_allow_list_with_the_tasks_own_over_it(tmp_path: Path) -> None:
    config = TaskConfig(target="exec:true", environment={"HOME": "/elsewhere", "MODEL": "small"}, concurrency=3)
    environ = surroundings(tmp_path).environment("thumb-0-1", "token", "thumb", config)
    assert InstanceEnvironment.from_environ(environ) == InstanceEnvironment(
        port=9100, instance_id="thumb-0-1", secret="token", task="thumb", concurrency=3
    )
    others = {name: value for name, value in environ.items() if not name.startswith("SPEAR_")}
    assert others == {"PATH": "/bin", "HOME": "/elsewhere", "LC_TIME": "de_DE", "MODEL": "small"}


def test_a_task_cannot_set_what_spearpool_sets(tmp_path: Path) -> None:
    config = TaskConfig(target="exec:true", environment={"SPEAR_SECRET": "mine"})
    assert surroundings(tmp_path).environment("thumb-0-1", "token", "thumb", config)["SPEAR_SECRET"] == "token"


def test_a_task_that_dials_a_unix_socket_is_told_its_path(tmp_path: Path) -> None:
    config = TaskConfig(target="exec:true", transport=Transport.UNIX)
    environ = surroundings(tmp_path).environment("thumb-0-1", "token", "thumb", config)
    assert environ["SPEAR_COMMUNICATION_TYPE"] == "unix"
    assert environ["SPEAR_COMMUNICATION_ADDRESS"] == str(tmp_path / "agents.sock")
    assert environ["SPEAR_COMMUNICATION_PORT"] == "9100"


@pytest.mark.parametrize(
    ("host", "found"),
    [("127.0.0.1", []), ("0.0.0.0", []), ("localhost", []), ("127.0.0.2", ["own"]), ("::", ["own"]), ("::1", ["own"])],
)
def test_whose_programs_do_not_find_the_pool_by_its_port_alone(host: str, found: list[str]) -> None:
    tasks = {
        "own": {"target": "agent:true"},
        "local": {"target": "agent:true", "transport": "unix"},
        "run": {"target": "exec:true"},
        "python": {"target": "python:json:loads"},
    }
    assert found_by_host_only(load(overrides={"pool": {"host": host}, "tasks": tasks})) == found


def test_there_is_always_a_path(tmp_path: Path) -> None:
    bare = Surroundings("127.0.0.1", 9100, tmp_path, tmp_path, tmp_path, {})
    assert bare.common_environment({}) == {"PATH": os.defpath}


@pytest.mark.parametrize(
    ("host", "dialled"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("192.0.2.7", "192.0.2.7")],
)
def test_a_wildcard_is_dialled_on_loopback(host: str, dialled: str, tmp_path: Path) -> None:
    environ = surroundings(tmp_path, host).environment("t-0-1", "token", "t", TaskConfig(target="exec:true"))
    assert InstanceEnvironment.from_environ(environ).host == dialled


def test_a_private_directory_is_new_each_time(tmp_path: Path) -> None:
    here = surroundings(tmp_path)
    path = here.private_directory("t-0-1")
    assert path == tmp_path / "work" / "t-0-1"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (path / "left").write_text("by a namesake")
    assert list(here.private_directory("t-0-1").iterdir()) == []


def test_a_tree_is_removed_whatever_is_in_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    tree = tmp_path / "tree"
    (tree / "locked" / "deeper").mkdir(parents=True)
    (tree / "locked" / "deeper" / "file").write_text("")
    (tree / "link").symlink_to(outside)
    (tree / "locked").chmod(0)
    tree.chmod(0o500)
    remove_tree(tree)
    assert not tree.exists()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o750
    remove_tree(tree)


def test_files_are_copied_with_their_modes(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("run")
    (tmp_path / "tool").chmod(0o750)
    directory = surroundings(tmp_path).private_directory("t-0-1")
    copy_files({"bin/tool": str(tmp_path / "tool"), "copy": str(tmp_path / "tool")}, directory)
    assert (directory / "bin" / "tool").read_text() == (directory / "copy").read_text() == "run"
    assert stat.S_IMODE((directory / "bin" / "tool").stat().st_mode) == 0o750


def test_of_directories_that_are_kept_the_newest_stay(tmp_path: Path) -> None:
    here = surroundings(tmp_path)
    here.prune_kept("t", set())
    for number in range(KEPT_WORKDIRS + 3):
        path = here.private_directory(f"t-0-{number}", kept=True)
        os.utime(path, (number + 1, number + 1))
    other = here.private_directory("t-u-0-1", kept=True)
    os.utime(other, (0, 0))
    here.prune_kept("t", {"t-0-0"})
    gone = {f"t-0-{number}" for number in range(KEPT_WORKDIRS + 3)} - {path.name for path in here.kept_dir.iterdir()}
    assert gone == {"t-0-1", "t-0-2"}, "the living one stays, and another task's"
    assert other.exists()
