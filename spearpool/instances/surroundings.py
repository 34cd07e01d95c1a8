"""What an instance finds around itself: a clean environment, a private working directory, a log.

The environment is built from an allow-list, never copied: what the supervisor's own environment holds (credentials,
above all) is no business of a task's. On top of it come the task's own variables, then the `SPEAR_*` ones.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spearpool.config import Settings, TargetKind, TaskConfig, Transport
from spearpool.protocol.environment import InstanceEnvironment

from .launch import ZygoteSpec
from .logs import MAX_LOG_BYTES, InstanceLog, left_by_dead

__all__ = [
    "KEPT_WORKDIRS",
    "Surroundings",
    "clean_environment",
    "copy_files",
    "found_by_host_only",
    "remove_tree",
]

KEPT_WORKDIRS = 8
"""How many working directories of ended instances stay, of each task that has `keep_workdir`."""

_INHERITED = frozenset(
    {
        "HOME",
        "LANG",
        "LANGUAGE",
        "LOGNAME",
        "PATH",
        "PYTHONPATH",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    }
)
_INHERITED_PREFIX = "LC_"

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The same for all instances of a pool: where they dial, and where their directories and logs are made.

    `socket_path` is where they dial whose task has the transport `unix`.
    """

    host: str
    port: int
    socket_path: Path
    work_dir: Path
    log_dir: Path
    environ: Mapping[str, str]

    def common_environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """What is inherited, and a task's own variables over it."""
        return clean_environment(self.environ, own)

    def imports(self, words: Sequence[str], config: TaskConfig) -> ZygoteSpec:
        """What the zygote of a Python task is started with; `words` are its module and attribute."""
        directory = config.working_dir or str(Path.cwd())  # where the task's module may be
        return ZygoteSpec(":".join(words), self.common_environment(config.environment), directory)

    def environment(self, name: str, secret: str, task: str, config: TaskConfig) -> dict[str, str]:
        """The whole environment of the instance `name`."""
        local = config.transport is Transport.UNIX
        spear = InstanceEnvironment(
            port=self.port,
            instance_id=name,
            secret=secret,
            communication_type=config.transport.value,
            host=_WILDCARDS.get(self.host, self.host),
            address=str(self.socket_path) if local else "",
            task=task,
            concurrency=config.concurrency,
        )
        return {**self.common_environment(config.environment), **spear.to_environ()}

    @property
    def kept_dir(self) -> Path:
        """Where working directories are made that outlive their instances, and the pool."""
        return self.log_dir.parent / "workdirs"

    def private_directory(self, name: str, *, kept: bool = False) -> Path:
        """A new, empty directory for the instance `name` alone, mode 0700. Raises OSError."""
        parent = self.kept_dir if kept else self.work_dir
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = parent / name
        remove_tree(path)
        path.mkdir(mode=0o700)
        return path

    def prune_kept(self, task: str, living: Collection[str]) -> None:
        """Of the task's working directories that were kept, remove all but the newest `KEPT_WORKDIRS`."""
        for path in left_by_dead(self.kept_dir, task, living)[:-KEPT_WORKDIRS]:
            remove_tree(path)

    def log(self, name: str, quota_bytes: int = 2 * MAX_LOG_BYTES) -> InstanceLog:
        """The log of the instance or zygote `name`; half of the quota is for what was rotated."""
        return InstanceLog(self.log_dir, name, quota_bytes // 2)


def found_by_host_only(settings: Settings) -> list[str]:
    """The tasks whose programs do not find the pool when they dial 127.0.0.1, as programs do that know the port only.

    They have to heed `SPEAR_COMMUNICATION_HOST`, as ours does.
    """
    if _WILDCARDS.get(settings.pool.host, settings.pool.host) in {"127.0.0.1", "localhost"}:
        return []
    return [
        name
        for name, task in settings.tasks.items()
        if task.parsed_target.kind is TargetKind.AGENT and task.transport is Transport.TCP
    ]


def clean_environment(environ: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Those of `environ` that are inherited, and a task's own variables over them."""
    inherited = {
        name: value for name, value in environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIX)
    }
    return {"PATH": os.defpath, **inherited, **own}


def copy_files(files: Mapping[str, str], directory: Path) -> None:
    """Copy `files` (name there → path here), with their modes, into a directory that is empty. Raises OSError."""
    for name, source in files.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, also where its owner locked himself out; what stays, stays."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        with suppress(OSError):
            path.chmod(0o700)
            for folder, names, _ in os.walk(path):
                for name in names:
                    if not Path(folder, name).is_symlink():
                        Path(folder, name).chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)
