from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from spearpool.config import ResourceLimits, Settings, Target, TaskConfig, load
from spearpool.errors import ConfigError
from spearpool.instances.artifact import (
    MAX_FILES_BYTES,
    ArtifactError,
    check_artifact,
    check_target,
    check_tasks,
    find_module,
    resolve_target,
)
from spearpool.instances.launch import MAX_SPEC_BYTES, LaunchSpec
from spearpool.instances.surroundings import clean_environment
from spearpool.protocol.environment import InstanceEnvironment
from spearpool.supervisor.warden_messages import Launch, SupervisorEnd, supervisor_end

PATH = {"PATH": os.defpath}


def executable(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def resolve(target: str, environ: dict[str, str] | None = None, working_dir: str | None = None) -> list[str]:
    return resolve_target(Target.parse(target), PATH if environ is None else environ, working_dir)


def test_programs_become_absolute_and_keep_their_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = executable(tmp_path / "tool")
    assert resolve("exec:tool -x 'a b'", {"PATH": f"/nowhere:{tmp_path}"}) == [str(tool), "-x", "a b"]
    assert resolve(f"agent:{tool}") == [str(tool)]
    assert resolve("exec:./tool", working_dir=str(tmp_path)) == [str(tool)]
    monkeypatch.chdir(tmp_path)
    assert resolve("exec:./tool") == [str(tool)]
    assert Path(resolve("exec:sh", {})[0]).name == "sh", "without PATH the system's default is taken"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("exec:no-such-program-anywhere", r"program 'no-such-program-anywhere' is not in PATH \("),
        ("exec:/no/such/program", "program /no/such/program does not exist"),
        ("agent:{dir}/plain", "plain is not an executable file"),
        ("exec:{dir}/folder/", "is not an executable file"),
    ],
)
def test_programs_that_cannot_be_run(target: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match=words):
        resolve(target.replace("{dir}", str(tmp_path)))


def test_a_working_dir_that_is_none() -> None:
    with pytest.raises(ArtifactError, match="working directory /no/where is not a directory"):
        resolve("exec:sh", working_dir="/no/where")


@pytest.mark.parametrize(
    "module", ["json", "json.decoder", "sys", "zipimport", "spearpool.agent", "importlib.metadata"]
)
def test_modules_that_are_there(module: str) -> None:
    find_module(module)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A package, a module and a namespace package, each of which would tell if it were imported."""
    alarm = "raise AssertionError('imported')\n"
    for name in ("shop/__init__.py", "shop/images/__init__.py", "shop/images/thumbs.py", "solo.py", "space/in/deep.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(alarm)
    return tmp_path


@pytest.mark.parametrize("module", ["shop", "shop.images", "shop.images.thumbs", "solo", "space.in", "space.in.deep"])
def test_modules_are_found_without_being_imported(module: str, shop: Path) -> None:
    find_module(module, [str(shop)])
    assert not {"shop", "solo", "space"} & set(sys.modules)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("shopp", "there is no Python module 'shopp'"),
        ("shop.image.thumbs", "there is no Python module 'shop.image'"),
        ("shop.images.thumb", "there is no Python module 'shop.images.thumb'"),
        ("solo.more", "'solo' is a module, not a package"),
        ("space.out", "there is no Python module 'space.out'"),
    ],
)
def test_modules_that_are_not_there(module: str, words: str, shop: Path) -> None:
    with pytest.raises(ArtifactError, match=words):
        find_module(module, [str(shop)])


def test_where_modules_are_looked_for(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = "python:shop.images:thumb"
    with pytest.raises(ArtifactError):
        resolve(target)
    assert resolve(target, {"PYTHONPATH": f"/nowhere:{shop}"}) == ["shop.images", "thumb"]
    assert resolve(target, working_dir=str(shop)) == ["shop.images", "thumb"]
    monkeypatch.chdir(shop)
    assert resolve(target) == ["shop.images", "thumb"]


def test_check_target_names_the_key_and_uses_the_tasks_environment(tmp_path: Path) -> None:
    executable(tmp_path / "tool")
    with pytest.raises(
        ConfigError, match=r"tasks\.sum\.target = 'exec:tool': expected something that can be run"
    ) as caught:
        check_target("sum", TaskConfig(target="exec:tool"), PATH)
    assert caught.value.key == "tasks.sum.target"
    check_target("sum", TaskConfig(target="exec:tool", environment={"PATH": str(tmp_path)}), PATH)


def settings(**tasks: Mapping[str, object]) -> Settings:
    return load(overrides={"tasks": {name: {"target": "exec:true", **task} for name, task in tasks.items()}})


def test_every_task_is_looked_for() -> None:
    check_tasks(settings(good={}), PATH)
    with pytest.raises(ConfigError, match=r"tasks\.bad\.target = 'exec:no-such-program'"):
        check_tasks(settings(good={}, bad={"target": "exec:no-such-program"}), PATH)


@pytest.mark.parametrize(
    "task",
    [{"environment": {"TABLE": "x" * MAX_SPEC_BYTES}}, {"target": f"exec:true {'x' * MAX_SPEC_BYTES}"}],
    ids=["environment", "arguments"],
)
def test_a_task_that_is_too_large_to_be_handed_to_a_process_is_named_with_its_size(task: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_tasks(settings(small={}, big=task), PATH)
    assert caught.value.key == "tasks.big"
    size, words = str(caught.value.value).split(" ", 1)
    assert MAX_SPEC_BYTES < int(size) < MAX_SPEC_BYTES + 1000
    assert words == "bytes of arguments and environment"
    assert caught.value.expected == f"at most {MAX_SPEC_BYTES} bytes"
    assert len(str(caught.value)) < 200, "the value itself is not repeated"


def test_what_is_inherited_counts_as_well() -> None:
    half = "x" * (MAX_SPEC_BYTES // 2)
    large = settings(big={"environment": {"TABLE": half}})
    check_tasks(large, PATH)
    check_tasks(large, PATH | {"HIDDEN": half})  # which no instance gets
    with pytest.raises(ConfigError, match=r"^tasks\.big = "):
        check_tasks(large, PATH | {"PYTHONPATH": half})


def test_tasks_that_are_too_large_together_are_told_with_the_largest() -> None:
    third = {"environment": {"TABLE": "x" * (MAX_SPEC_BYTES // 3)}}
    check_tasks(settings(one=third, two=third), PATH)
    with pytest.raises(
        ConfigError, match=r"^tasks = '\d+ bytes in all, \d+ of them in tasks\.three': expected at most"
    ):
        check_tasks(settings(one=third, two=third, three={"environment": {"TABLE": "x" * (MAX_SPEC_BYTES // 2)}}), PATH)


def test_what_passes_the_check_can_be_launched() -> None:
    """With the longest names and secret that an instance can have."""
    config = settings(big={"environment": {"TABLE": "x" * (MAX_SPEC_BYTES - 1000)}})
    check_tasks(config, PATH)
    environ = clean_environment(PATH, config.tasks["big"].environment)
    spear = InstanceEnvironment(
        port=65535, instance_id="i" * 100, secret="s" * 500, host="h" * 255, task="t" * 63, concurrency=1000
    ).to_environ()
    spec = LaunchSpec(["/bin/true"], environ | spear, "/" * 1000, ResourceLimits())
    ours, theirs = SupervisorEnd.pair()
    with ours, theirs:
        supervisor_end(ours).send(Launch(2**40, spec))


# --- digest and files -------------------------------------------------------------------------------------------------


def test_a_program_is_the_one_that_was_meant_or_is_not_run(tmp_path: Path) -> None:
    tool = executable(tmp_path / "tool")
    digest = hashlib.sha256(tool.read_bytes()).hexdigest()
    config = TaskConfig(target=f"exec:{tool}", sha256=digest)
    check_artifact(config, [str(tool)])
    times = tool.stat()
    tool.write_text("#!/bin/zz\n")  # of the same size
    os.utime(tool, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ArtifactError, match=f"program {tool} has the SHA-256 [0-9a-f]{{64}}, not {digest}"):
        check_artifact(config, [str(tool)])
    with pytest.raises(ConfigError, match="expected something that can be run: program"):
        check_target("sum", config, PATH)
    tool.unlink()
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        check_artifact(config, [str(tool)])


def test_files_that_cannot_be_copied(tmp_path: Path) -> None:
    def check(source: Path) -> None:
        check_artifact(TaskConfig(target="exec:true", files={"data": str(source)}), ["/bin/true"])

    (tmp_path / "good").write_text("x")
    check(tmp_path / "good")
    with pytest.raises(ArtifactError, match=r"file .*/missing: No such file"):
        check(tmp_path / "missing")
    with pytest.raises(ArtifactError, match="is not a regular file"):
        check(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_FILES_BYTES + 1)
    with pytest.raises(ArtifactError, match="let the program read them where they are"):
        check(tmp_path / "large")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"sha256": "abc"}, "64 small hexadecimal digits"),
        ({"sha256": "0" * 64, "target": "python:a:b"}, "a Python task is more than one file"),
        ({"files": {"/etc/x": "y"}}, "names relative to the working directory"),
        ({"files": {"a/../../x": "y"}}, "names relative to the working directory"),
        ({"files": {"": "y"}}, "names relative to the working directory"),
        ({"files": {"x": "y"}, "working_dir": "/tmp"}, "none beside working_dir"),
        ({"keep_workdir": True, "working_dir": "/tmp"}, "false beside working_dir"),
    ],
)
def test_settings_of_an_artifact_that_cannot_be(task: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(one=task)
