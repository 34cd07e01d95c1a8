"""Settings: frozen values that validate themselves, read from TOML, `SPEARPOOL_*` variables and flags.

`load` merges defaults < file < environment < flags and returns `Settings`; every other part of the program is given its
own section. A wrong key or value is a `ConfigError` with the dotted key, the value and what was expected.
Durations are in seconds and sizes in bytes; fields that the seed names keep the seed's names, ours carry their unit.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config_checks import expect, positive
from .config_mistakes import did_you_mean, explain
from .config_tasks import OnBreach, ResourceLimits, Target, TargetKind, TaskConfig, Transport
from .errors import ConfigError
from .packing import Section, UnpackError, from_plain

__all__ = [
    "BudgetConfig",
    "ConnectionManagerConfig",
    "MonitoringConfig",
    "OnBreach",
    "PoolConfig",
    "ResourceLimits",
    "SecurityConfig",
    "Settings",
    "Target",
    "TargetKind",
    "TaskConfig",
    "Transport",
    "load",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
PORTS = range(9100, 10_000)
"""Where a pool looks for a free port when none is given."""

MAX_SLOTS = 128
MAX_TASKS = 56


class PoolConfig(Section, frozen=True, kw_only=True):
    """`port = 0` takes the first free one of 9100 … 9999; `max_workers = 0` means four times `workers`.

    A worker whose loop has not turned for `worker_hang_timeout_s` is killed and replaced. One that has served for
    `max_worker_age_s`, has accepted `max_worker_connections`, or holds `max_worker_memory_bytes` of its own is replaced
    as planned, a little earlier at random; 0 means without limit.
    """

    name: str = "default"
    host: str = "127.0.0.1"
    port: int = 0
    workers: int = 2
    max_workers: int = 0
    start_timeout_s: float = 30.0
    stop_timeout_s: float = 30.0
    worker_hang_timeout_s: float = 10.0
    max_worker_age_s: float = 0.0
    max_worker_connections: int = 0
    max_worker_memory_bytes: int = 0
    cgroup: str = "auto"

    def __post_init__(self) -> None:
        expect(
            "pool.name", self.name, NAME.fullmatch(self.name), "1 to 63 letters, digits, dots, dashes or underscores"
        )
        expect("pool.host", self.host, self.host != "", "an IP address")
        expect("pool.port", self.port, 0 <= self.port <= 65535, "0 to 65535")
        expect("pool.workers", self.workers, 1 <= self.workers <= MAX_SLOTS, f"1 to {MAX_SLOTS}")
        expect(
            "pool.max_workers",
            self.max_workers,
            self.max_workers == 0 or self.workers <= self.max_workers <= MAX_SLOTS,
            f"0, or from workers ({self.workers}) to {MAX_SLOTS}",
        )
        positive("pool", self, "start_timeout_s", "stop_timeout_s", "worker_hang_timeout_s")
        for name in ("max_worker_age_s", "max_worker_connections", "max_worker_memory_bytes"):
            value = getattr(self, name)
            expect(f"pool.{name}", value, 0 <= value < math.inf, "0 (no limit), or a finite number above 0")
        where = self.cgroup in {"auto", "off"} or self.cgroup.startswith("/")
        expect("pool.cgroup", self.cgroup, where, "auto, off, or the absolute path of a control group")

    @property
    def slots(self) -> int:
        """How many slots the segment has room for."""
        return self.max_workers or min(MAX_SLOTS, 4 * self.workers)


class ConnectionManagerConfig(Section, frozen=True, kw_only=True):
    """The seed's `ConnectionManagerConfig`, per worker. `backlog` is the accept queue of one slot's listener."""

    max_connections: int = 10_000
    connection_timeout: float = 600.0
    auth_timeout: float = 10.0
    heartbeat_interval: float = 10.0
    heartbeat_timeout: float = 30.0
    max_message_size: int = 64 * 1024 * 1024
    enable_monitoring: bool = True
    backlog: int = 1024
    max_queued_executions: int = 10_000
    max_queued_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        positive("connections", self, "connection_timeout", "auth_timeout", "heartbeat_interval", "heartbeat_timeout")
        positive("connections", self, "max_connections", "backlog", "max_queued_executions", "max_queued_bytes")
        expect(
            "connections.heartbeat_timeout",
            self.heartbeat_timeout,
            self.heartbeat_timeout > self.heartbeat_interval,
            f"more than heartbeat_interval ({self.heartbeat_interval})",
        )
        expect(
            "connections.max_message_size",
            self.max_message_size,
            64 * 1024 <= self.max_message_size < 2**32,
            "65536 to 4294967295 bytes",
        )


class MonitoringConfig(Section, frozen=True, kw_only=True):
    """The seed's `MonitoringConfig`. `metrics_buffer_size = 0` takes 16 384 records per ring, or what memory allows."""

    enabled: bool = True
    enable_connection_tracking: bool = True
    enable_message_tracking: bool = True
    enable_performance_tracking: bool = True
    metrics_buffer_size: int = 0
    shared_memory_dir: str = "/dev/shm"  # noqa: S108 - a memory filesystem is what is wanted here

    def __post_init__(self) -> None:
        size = self.metrics_buffer_size
        expect(
            "monitoring.metrics_buffer_size",
            size,
            size == 0 or (64 <= size <= 2**24 and size & (size - 1) == 0),
            "0, or a power of two from 64 to 16777216",
        )


class BudgetConfig(Section, frozen=True, kw_only=True):
    """What all instances together may reserve by their limits; 0 means what the host has."""

    instances: int = 0
    memory_bytes: int = 0
    cpu_cores: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            expect(f"budget.{name}", value, 0 <= value < math.inf, "0 (the host's), or a finite number above 0")


class SecurityConfig(Section, frozen=True, kw_only=True):
    """`validator = "module:function"` is asked about tokens that are not spearpool's own."""

    validator: str | None = None
    token_ttl_s: float = 30 * 86_400.0

    def __post_init__(self) -> None:
        expect(
            "security.validator",
            self.validator,
            self.validator is None or re.fullmatch(r"[\w.]+:[\w.]+", self.validator),
            "module:function",
        )
        positive("security", self, "token_ttl_s")


class Settings(Section, frozen=True, kw_only=True):
    """The whole configuration of one pool."""

    pool: PoolConfig = PoolConfig()
    connections: ConnectionManagerConfig = ConnectionManagerConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    limits: ResourceLimits = ResourceLimits()
    budget: BudgetConfig = BudgetConfig()
    security: SecurityConfig = SecurityConfig()
    tasks: dict[str, TaskConfig] = {}

    def __post_init__(self) -> None:
        expect("tasks", len(self.tasks), len(self.tasks) <= MAX_TASKS, f"at most {MAX_TASKS} tasks")
        for name in self.tasks:
            expect(f"tasks.{name}", name, NAME.fullmatch(name), "a name of letters, digits, dots, dashes, underscores")

    def limits_of(self, task: str) -> ResourceLimits:
        """The task's own limits over the pool's."""
        return self.tasks[task].limits.over(self.limits)


def load(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read and check a configuration. `overrides` is a nested mapping like the file's, from flags.

    A variable `SPEARPOOL_SECTION_KEY` sets `[section] key` (`SPEARPOOL_POOL_WORKERS=8`); its value is read as TOML
    where that gives a value, and as plain text otherwise and for keys that are text. Tasks cannot be set by variables.
    Raises `ConfigError`.
    """
    plain: dict[str, Any] = _read(path) if path is not None else {}
    _merge(plain, _from_environ(environ or {}))
    _merge(plain, overrides or {})
    return _convert(plain)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("--config", str(path), f"a readable file ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError("--config", str(path), "a UTF-8 text file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("--config", str(path), f"valid TOML ({error})") from None


_SECTIONS: dict[str, type[Section]] = {
    "pool": PoolConfig,
    "connections": ConnectionManagerConfig,
    "monitoring": MonitoringConfig,
    "limits": ResourceLimits,
    "budget": BudgetConfig,
    "security": SecurityConfig,
}


_PREFIX = "SPEARPOOL_"
_VARIABLES = {
    f"{_PREFIX}{section}_{key}".upper(): (section, key, str(kind.__annotations__[key]).startswith("str"))
    for section, kind in _SECTIONS.items()
    for key in kind.__struct_fields__
}
"""Variable → section, key, and whether its value is text whatever it looks like."""

_NO_SETTINGS = ("SPEARPOOL_NAME", "SPEARPOOL_RUNTIME_DIR")
"""Which pool is meant, and where its files are: not read here."""

_OF_OTHERS = re.compile(
    _PREFIX + r"(TEST_"  # what our own tests are told
    r"|SERVICE_(HOST|PORT)|PORT_\d|PORT=\w+://)"  # what Kubernetes tells everybody of a service named spearpool
)


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name in _NO_SETTINGS or _OF_OTHERS.match(f"{name}={text}"):
            continue
        if name not in _VARIABLES:
            suggestion = did_you_mean(name, [*_VARIABLES, *_NO_SETTINGS], _PREFIX)
            raise ConfigError(name, text, f"a variable that spearpool knows{suggestion}")
        section, key, is_text = _VARIABLES[name]
        plain.setdefault(section, {})[key] = text if is_text else _toml_value(text)
    return plain


def _toml_value(text: str) -> Any:
    """The TOML value that `text` is, or `text` itself."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if len(found) == 1 else text


def _merge(into: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping):
            inner = into.setdefault(key, {})
            if isinstance(inner, dict):  # else it is wrong, and stays to be reported
                _merge(inner, value)
        else:
            into[key] = value


def _convert(plain: dict[str, Any]) -> Settings:
    for name, task in _tables(plain, "tasks"):
        try:
            from_plain(task, TaskConfig)
        except UnpackError as error:
            raise explain(error, task, TaskConfig, f"tasks.{name}") from None
        except ConfigError as error:
            raise ConfigError(f"tasks.{name}.{error.key}", error.value, error.expected) from None
    try:
        return from_plain(plain, Settings)
    except UnpackError as error:
        raise explain(error, plain, Settings) from None


def _tables(plain: dict[str, Any], key: str) -> list[tuple[str, Any]]:
    tables = plain.get(key, {})
    return list(tables.items()) if isinstance(tables, dict) else []
