"""What a reload may change: which settings take effect in new workers, and which only in a new pool.

Most of the configuration is the workers' own, and each worker is given it when it is spawned. What the supervisor has
built the pool from stays: its address, the segment, the budget. A reload that would have to change that is refused as a
whole, so that the file never says one thing while the pool does another.

Tasks may come, go and change: see `task_reload`.
"""

from __future__ import annotations

from spearpool.config import PoolConfig, Settings, TargetKind, TaskConfig
from spearpool.errors import ConfigError
from spearpool.packing import to_plain

from .slot import WorkerPolicy

__all__ = ["check_reload", "to_replace", "worker_policy"]

_BY_SCALE = "change it with `spearpool scale workers=N`"
_BY_RESTART = "it takes effect in a new pool only: stop this one and start it again"

_STAYS: dict[str, str] = {
    "pool.name": _BY_RESTART,
    "pool.host": _BY_RESTART,
    "pool.port": _BY_RESTART,
    "pool.workers": _BY_SCALE,
    "pool.max_workers": _BY_RESTART,
    "pool.cgroup": _BY_RESTART,
    "connections.enable_monitoring": _BY_RESTART,
    "connections.max_message_size": _BY_RESTART,  # workers of two sizes would break the links between them
    "monitoring": _BY_RESTART,
    "budget": _BY_RESTART,
    "security.token_ttl_s": _BY_RESTART,
}
"""What a reload cannot change, and what to do instead. Whole sections, too. Everything else it can."""

_MADE_OF = (
    "target",
    "concurrency",
    "prefetch",
    "environment",
    "working_dir",
    "transport",
    "sha256",
    "files",
    "keep_workdir",
)


def check_reload(running: Settings, wanted: Settings) -> None:
    """Raises `ConfigError` for the first setting that differs and has to stay."""
    before, after = to_plain(running), to_plain(wanted)
    for key, instead in _STAYS.items():
        section, _, name = key.partition(".")
        old, new = (plain[section][name] if name else plain[section] for plain in (before, after))
        if old != new:
            differing = _first_difference(key, old, new)
            raise ConfigError(*differing, f"no other value than the pool runs with; {instead}")


def worker_policy(pool: PoolConfig) -> WorkerPolicy:
    """The times and limits of workers, out of the pool's settings."""
    return WorkerPolicy(
        ready_timeout_s=pool.start_timeout_s,
        empty_s=pool.stop_timeout_s,
        max_age_s=pool.max_worker_age_s,
        max_connections=pool.max_worker_connections,
        max_memory_bytes=pool.max_worker_memory_bytes,
    )


def _first_difference(key: str, old: object, new: object) -> tuple[str, object]:
    """The dotted key of the innermost value that differs, and what is wanted there."""
    if isinstance(old, dict) and isinstance(new, dict):
        name = next(name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
        return _first_difference(f"{key}.{name}", old.get(name), new.get(name))
    return key, new


def to_replace(before: Settings, after: Settings) -> set[str]:
    """The tasks whose instances are not what they should be after a reload."""
    return {name for name in before.tasks.keys() & after.tasks.keys() if _is_other(name, before, after)}


def _is_other(name: str, before: Settings, after: Settings) -> bool:
    old, new = before.tasks[name], after.tasks[name]
    if new.parsed_target.kind is not TargetKind.EXEC:
        return True
    return before.limits_of(name) != after.limits_of(name) or _made_of(old) != _made_of(new)


def _made_of(task: TaskConfig) -> tuple[object, ...]:
    return tuple(getattr(task, name) for name in _MADE_OF)
