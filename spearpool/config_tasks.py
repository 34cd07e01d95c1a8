"""Settings of one task: what it runs, how many instances of it there are, and their limits."""

from __future__ import annotations

import math
import os
import re
import shlex
from enum import Enum
from pathlib import PurePosixPath

from .config_checks import expect, positive
from .errors import ConfigError
from .packing import Section

__all__ = ["OnBreach", "ResourceLimits", "Target", "TargetKind", "TaskConfig", "Transport"]


_POSITIVE = (
    "memory_bytes",
    "cpu_cores",
    "cpu_seconds",
    "open_files",
    "file_size_bytes",
    "processes",
    "disk_bytes",
    "network_bytes_per_s",
    "execution_timeout_s",
)


class TargetKind(Enum):
    PYTHON = "python"
    EXEC = "exec"
    AGENT = "agent"


class Target(Section, frozen=True, kw_only=True):
    """What a task runs. `words` is `[module, attribute path]` for `python`, else the program and its arguments."""

    kind: TargetKind
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, key: str = "target") -> Target:
        expected = "python:package.module:function, exec:PROGRAM ARG… or agent:PROGRAM ARG…"
        head, _, rest = text.partition(":")
        try:
            kind = TargetKind(head)
            words = tuple(rest.split(":")) if kind is TargetKind.PYTHON else tuple(shlex.split(rest))
        except ValueError:
            raise ConfigError(key, text, expected) from None
        identifiers = ".".join(words).split(".")
        if kind is TargetKind.PYTHON and (len(words) != 2 or not all(name.isidentifier() for name in identifiers)):
            raise ConfigError(key, text, expected)
        if not words or not words[0] or any("\0" in word for word in words):
            raise ConfigError(key, text, expected)
        return cls(kind=kind, words=words)


class OnBreach(Enum):
    """What happens to an instance that exceeds a limit which is only watched."""

    KILL = "kill"
    RECYCLE = "recycle"  # as soon as what it runs has ended
    WARN = "warn"


class ResourceLimits(Section, frozen=True, kw_only=True):
    """Limits of one instance; None leaves the kernel's own. In force before its program starts.

    `network_bytes_per_s` is the traffic between the instance's agent and the pool, both ways together.
    `execution_timeout_s` ends an execution, and an instance that does not let go of it. `on_breach` (default: kill) is
    for what is watched, not enforced.
    """

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    cpu_seconds: int | None = None
    open_files: int | None = None
    file_size_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None
    network_bytes_per_s: int | None = None
    nice: int | None = None
    cpu_affinity: tuple[int, ...] | None = None
    execution_timeout_s: float | None = None
    on_breach: OnBreach | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            expect(f"limits.{name}", value, value is None or 0 < value < math.inf, "a number above 0")
        expect("limits.open_files", self.open_files, self.open_files is None or self.open_files >= 16, "16 or more")
        rate = self.network_bytes_per_s
        expect("limits.network_bytes_per_s", rate, rate is None or rate >= 16_384, "16384 or more")
        expect("limits.nice", self.nice, self.nice is None or -20 <= self.nice <= 19, "-20 to 19")
        usable = os.sched_getaffinity(0)
        expect(
            "limits.cpu_affinity",
            self.cpu_affinity,
            self.cpu_affinity is None or (self.cpu_affinity and usable.issuperset(self.cpu_affinity)),
            f"a list of CPUs out of {sorted(usable)}",
        )

    def over(self, below: ResourceLimits) -> ResourceLimits:
        """These limits where set, else those of `below`."""
        pairs = {name: getattr(self, name) for name in self.__struct_fields__}
        return ResourceLimits(**{k: getattr(below, k) if v is None else v for k, v in pairs.items()})


class Transport(Enum):
    """By what an instance reaches the pool: its port, or a Unix socket in the pool's runtime directory."""

    TCP = "tcp"
    UNIX = "unix"


class TaskConfig(Section, frozen=True, kw_only=True):
    """One task. `prefetch` is how many executions may wait inside an instance behind the `concurrency` that run.

    There are `min_instances` to `max_instances` (0: the same, and at least one), as many as there is work for and
    `warm_spare` more; what was not needed for `idle_timeout_s` ends. An instance is replaced after `max_executions`,
    after `max_age_s` or when it holds `max_memory_bytes`, a little earlier at random; 0 means never. Its log may take
    `log_bytes`, the part that was rotated included.

    By `transport = "unix"` no other user's process can come between an instance and the pool.

    A program is run only while its file has the digest `sha256`, if one is given. `files` (name there → path here) are
    copied into an instance's private working directory, which is removed at its end, or kept with `keep_workdir`.
    """

    target: str
    min_instances: int = 1
    max_instances: int = 0
    warm_spare: int = 0
    idle_timeout_s: float = 60.0
    max_executions: int = 0
    max_age_s: float = 0.0
    max_memory_bytes: int = 0
    concurrency: int = 1
    prefetch: int = 0
    start_timeout_s: float = 10.0
    stop_timeout_s: float = 5.0
    environment: dict[str, str] = {}
    working_dir: str | None = None
    transport: Transport = Transport.TCP
    sha256: str | None = None
    files: dict[str, str] = {}
    keep_workdir: bool = False
    log_bytes: int = 20 * 1024 * 1024
    limits: ResourceLimits = ResourceLimits()

    def __post_init__(self) -> None:
        Target.parse(self.target)
        self._check_artifact()
        expect("min_instances", self.min_instances, 0 <= self.min_instances <= 1000, "0 to 1000")
        least = max(self.min_instances, self.warm_spare)
        expect("warm_spare", self.warm_spare, 0 <= self.warm_spare <= 1000, "0 to 1000")
        expect(
            "max_instances",
            self.max_instances,
            self.max_instances == 0 or least <= self.max_instances <= 1000,
            f"0, or from min_instances and warm_spare ({least}) to 1000",
        )
        expect("concurrency", self.concurrency, 1 <= self.concurrency <= 1000, "1 to 1000")
        expect("prefetch", self.prefetch, 0 <= self.prefetch <= 1000, "0 to 1000")
        expect("log_bytes", self.log_bytes, 65_536 <= self.log_bytes < 2**63, "65536 or more")
        positive("", self, "start_timeout_s", "stop_timeout_s", "idle_timeout_s")
        for name in ("max_executions", "max_age_s", "max_memory_bytes"):
            value = getattr(self, name)
            expect(name, value, 0 <= value < math.inf, "0 (never), or a finite number above 0")
        for name, value in self.environment.items():
            expect(
                "environment", name, name and "=" not in name and "\0" not in name + value, "NAME = value without NUL"
            )

    def _check_artifact(self) -> None:
        digest = self.sha256
        expect("sha256", digest, digest is None or re.fullmatch("[0-9a-f]{64}", digest), "64 small hexadecimal digits")
        runs_file = self.parsed_target.kind is not TargetKind.PYTHON
        expect("sha256", digest, digest is None or runs_file, "none: a Python task is more than one file")
        private = self.working_dir is None
        where = "none beside working_dir: they go into a private working directory"
        expect("files", list(self.files), private or not self.files, where)
        expect("keep_workdir", self.keep_workdir, private or not self.keep_workdir, "false beside working_dir")
        for name in self.files:
            path = PurePosixPath(name)
            inside = path.parts and not path.is_absolute() and ".." not in path.parts and "\0" not in name
            expect("files", name, inside, "names relative to the working directory, without '..'")

    @property
    def most_instances(self) -> int:
        return self.max_instances or max(1, self.min_instances, self.warm_spare)

    @property
    def parsed_target(self) -> Target:
        return Target.parse(self.target)
