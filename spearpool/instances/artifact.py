"""Is what a task names there, and can it be run? Checked before a pool starts, and again before each launch.

A program is looked up as the kernel and a shell would, in the PATH that it will get. A Python module is looked for
*without importing it*: `importlib.util.find_spec("package.module")` would run the package's code, here in the
supervisor. Whether the function exists inside the module shows when the zygote imports it.

A digest is computed again when the file's inode or times have changed. Whoever may write the file can still change it
between the check and the start: the digest guards against the wrong version, not against an intruder.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pkgutil
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spearpool.config import Settings, Target, TargetKind, TaskConfig
from spearpool.errors import ConfigError
from spearpool.packing import Packer

from .launch import MAX_SPEC_BYTES, LaunchSpec
from .surroundings import clean_environment

__all__ = [
    "ArtifactError",
    "check_artifact",
    "check_target",
    "check_tasks",
    "find_module",
    "find_program",
    "resolve_target",
]

MAX_FILES_BYTES = 64 * 1024 * 1024
"""What a task's `files` may have in all: the supervisor copies them for each instance, and does nothing else then."""


_AT_MOST = f"at most {MAX_SPEC_BYTES} bytes"
_PACKER: Packer[Any] = Packer(Any)


class ArtifactError(Exception):
    """What the task names cannot be run; the text says why."""


def check_tasks(settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
    """Raise `ConfigError` when a task cannot be run: its program or module is not there, or it is too large.

    Imports and runs nothing.
    """
    for name, config in settings.tasks.items():
        argv = check_target(name, config, environ)
        own = clean_environment(environ, config.environment)
        size = len(_PACKER.pack(LaunchSpec(argv, own, config.working_dir or "", settings.limits_of(name))))
        if size > MAX_SPEC_BYTES:
            raise ConfigError(f"tasks.{name}", f"{size} bytes of arguments and environment", _AT_MOST)
    sizes = {name: len(_PACKER.pack(config)) for name, config in settings.tasks.items()}
    if sum(sizes.values()) > MAX_SPEC_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        found = f"{sum(sizes.values())} bytes in all, {sizes[largest]} of them in tasks.{largest}"
        raise ConfigError("tasks", found, f"{_AT_MOST}, since every worker gets all settings")


def check_target(name: str, config: TaskConfig, environ: Mapping[str, str] = os.environ) -> list[str]:
    """As `resolve_target`, but raises `ConfigError` when what the task needs is not there or is something else."""
    try:
        argv = resolve_target(config.parsed_target, {**environ, **config.environment}, config.working_dir)
        check_artifact(config, argv)
    except ArtifactError as error:
        raise ConfigError(f"tasks.{name}.target", config.target, f"something that can be run: {error}") from None
    return argv


def check_artifact(config: TaskConfig, argv: Sequence[str]) -> None:
    """Raise `ArtifactError` when the program `argv[0]` has not the digest that it should have, or a file is missing."""
    if config.sha256 is not None:
        found = _digest_of(argv[0])
        if found != config.sha256:
            raise ArtifactError(f"program {argv[0]} has the SHA-256 {found}, not {config.sha256}")
    total = 0
    for source in config.files.values():
        try:
            status = Path(source).stat()
        except OSError as error:
            raise ArtifactError(f"file {source}: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode) or not os.access(source, os.R_OK):
            raise ArtifactError(f"file {source} is not a regular file that can be read")
        total += status.st_size
    if total > MAX_FILES_BYTES:
        raise ArtifactError(
            f"its files have {total} bytes, more than the {MAX_FILES_BYTES} that are copied for each instance; let the "
            "program read them where they are"
        )


def _digest_of(program: str) -> str:
    try:
        status = Path(program).stat()
        return _digest(program, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except OSError as error:
        raise ArtifactError(f"program {program} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=64)
def _digest(program: str, _version: tuple[int, ...]) -> str:
    with Path(program).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_target(target: Target, environ: Mapping[str, str], working_dir: str | None) -> list[str]:
    """The words to run: a program as an absolute path, with its arguments; a module and attribute as they are.

    `environ` is what the instance will get, `working_dir` the task's own or None. Raises `ArtifactError`.
    """
    base = Path(working_dir) if working_dir is not None else Path.cwd()
    if working_dir is not None and not base.is_dir():
        raise ArtifactError(f"its working directory {working_dir} is not a directory")
    if target.kind is TargetKind.PYTHON:
        find_module(target.words[0], [str(base), *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))])
        return list(target.words)
    program, *arguments = target.words
    return [str(find_program(program, environ.get("PATH", os.defpath), base)), *arguments]


def find_program(program: str, path: str, base: Path) -> Path:
    """The executable file: looked up in `path`, or relative to `base` when `program` has a slash."""
    if "/" not in program:
        found = shutil.which(program, path=path)
        if found is None:
            raise ArtifactError(f"program {program!r} is not in PATH ({path})")
        return Path(found).absolute()
    file = base / program
    if not file.exists():
        raise ArtifactError(f"program {file} does not exist")
    if not file.is_file() or not os.access(file, os.X_OK):
        raise ArtifactError(f"{file} is not an executable file (chmod +x?)")
    return file


def find_module(module: str, path: Sequence[str] = ()) -> None:
    """Raise `ArtifactError` when there is no such module in `path` or where Python itself looks."""
    top, *rest = module.split(".")
    found = top
    locations = _find(top, [*path, *sys.path])
    if locations is None:
        locations = _find_elsewhere(top)
    for name in rest:
        if locations is None:
            break
        if not locations:
            raise ArtifactError(f"{found!r} is a module, not a package: there is no {module!r}")
        found = f"{found}.{name}"
        locations = _find(found, locations)
    if locations is None:
        raise ArtifactError(f"there is no Python module {found!r}; is its directory in PYTHONPATH?")


def _find(name: str, path: Sequence[str]) -> list[str] | None:
    """Where the submodules of `name` are, `[]` when it is no package, None when it is not in `path`.

    `PathFinder.find_spec` would do, but it cannot look into a namespace package that is not imported.
    """
    portions: list[str] = []
    for location in path:
        finder = pkgutil.get_importer(location)
        spec = finder.find_spec(name) if finder is not None else None
        if spec is not None:
            if spec.loader is not None:
                return list(spec.submodule_search_locations or ())
            portions += spec.submodule_search_locations or ()  # one of a namespace's directories
    return portions or None


def _find_elsewhere(top: str) -> list[str] | None:
    """Built-in and frozen modules, and what editable installs hook in."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # ValueError: `__main__`, or a module that a program put into sys.modules
        return None
    return None if spec is None else list(spec.submodule_search_locations or ())
