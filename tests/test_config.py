"""Settings: what is accepted, what wins, and the words in which a mistake is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from spearpool.config import (
    MAX_SLOTS,
    MAX_TASKS,
    ConnectionManagerConfig,
    MonitoringConfig,
    PoolConfig,
    ResourceLimits,
    Settings,
    TaskConfig,
    load,
)
from spearpool.errors import ConfigError

CAT = '[tasks.x]\ntarget = "exec:cat"\n'
TARGETS = "python:package.module:function, exec:PROGRAM ARG… or agent:PROGRAM ARG…"

# What the file says · the key that is named · the value that is named · what was expected.
BAD_FILES: list[tuple[str, str, Any, str]] = [
    # syntax
    ("x = ", "--config", ..., "valid TOML (Invalid value"),
    ("[pool]\nworkers = 1\nworkers = 2", "--config", ..., "valid TOML (Cannot overwrite a value"),
    ("[pool", "--config", ..., "valid TOML ("),
    # unknown keys
    ("colour = 1", "colour", 1, "a key that spearpool knows"),
    ("[connection]\nbacklog = 1", "connection", {"backlog": 1}, "a key that spearpool knows"),
    ("[pool]\nwokers = 3", "pool.wokers", 3, "a key that spearpool knows"),
    (CAT + "min_instance = 1", "tasks.x.min_instance", 1, "a key that spearpool knows"),
    (CAT + "[tasks.x.limits]\nnyce = 9", "tasks.x.limits.nyce", 9, "a key that spearpool knows"),
    # wrong types
    ("pool = 3", "pool", 3, "table, got int"),
    ('[[pool]]\nname = "a"', "pool", [{"name": "a"}], "table, got array"),
    ("tasks = 3", "tasks", 3, "table, got int"),
    ("[tasks]\nx = 3", "tasks.x", 3, "table, got int"),
    ('[pool]\nworkers = "8"', "pool.workers", "8", "int, got str"),
    ("[pool]\nworkers = true", "pool.workers", True, "int, got bool"),
    ("[pool]\nworkers = 2.0", "pool.workers", 2.0, "int, got float"),
    ("[pool]\nname = 1999", "pool.name", 1999, "str, got int"),
    ("[connections]\nenable_monitoring = 1", "connections.enable_monitoring", 1, "bool, got int"),
    ('[monitoring]\nenabled = "yes"', "monitoring.enabled", "yes", "bool, got str"),
    ('[limits]\nmemory_bytes = "1G"', "limits.memory_bytes", "1G", "int | null, got str"),
    ("[limits]\ncpu_affinity = 0", "limits.cpu_affinity", 0, "array | null, got int"),
    ('[limits]\ncpu_affinity = [0, "a"]', "limits.cpu_affinity.1", "a", "int, got str"),
    ("[tasks.x]\ntarget = 3", "tasks.x.target", 3, "str, got int"),
    (CAT + 'min_instances = "two"', "tasks.x.min_instances", "two", "int, got str"),
    (CAT + "[tasks.x.environment]\nA = 1", "tasks.x.environment", {"A": 1}, "str, got int"),
    # [pool]
    ('[pool]\nname = ""', "pool.name", "", "1 to 63 letters, digits, dots, dashes or underscores"),
    ('[pool]\nname = "a/b"', "pool.name", "a/b", "1 to 63 letters"),
    ('[pool]\nname = ".."', "pool.name", "..", "1 to 63 letters"),
    (f'[pool]\nname = "{"n" * 64}"', "pool.name", "n" * 64, "1 to 63 letters"),
    ('[pool]\nhost = ""', "pool.host", "", "an IP address"),
    ("[pool]\nport = -1", "pool.port", -1, "0 to 65535"),
    ("[pool]\nport = 65536", "pool.port", 65536, "0 to 65535"),
    ("[pool]\nworkers = 0", "pool.workers", 0, "1 to 128"),
    ("[pool]\nworkers = 129", "pool.workers", 129, "1 to 128"),
    ("[pool]\nworkers = 4\nmax_workers = 2", "pool.max_workers", 2, "0, or from workers (4) to 128"),
    ("[pool]\nstart_timeout_s = 0", "pool.start_timeout_s", 0, "a finite number above 0"),
    ("[pool]\nworker_hang_timeout_s = 0", "pool.worker_hang_timeout_s", 0, "a finite number above 0"),
    ("[pool]\nstop_timeout_s = inf", "pool.stop_timeout_s", float("inf"), "a finite number above 0"),
    ("[pool]\nstop_timeout_s = nan", "pool.stop_timeout_s", ..., "a finite number above 0"),
    # [connections]
    ("[connections]\nmax_connections = 0", "connections.max_connections", 0, "a finite number above 0"),
    ("[connections]\nauth_timeout = -1", "connections.auth_timeout", -1, "a finite number above 0"),
    ("[connections]\nbacklog = 0", "connections.backlog", 0, "a finite number above 0"),
    ("[connections]\nheartbeat_timeout = 5", "connections.heartbeat_timeout", 5, "more than heartbeat_interval (10.0)"),
    (
        "[connections]\nheartbeat_interval = 40",
        "connections.heartbeat_timeout",
        30,
        "more than heartbeat_interval (40.0)",
    ),
    ("[connections]\nmax_message_size = 65535", "connections.max_message_size", 65535, "65536 to 4294967295 bytes"),
    (
        "[connections]\nmax_message_size = 4294967296",
        "connections.max_message_size",
        2**32,
        "65536 to 4294967295 bytes",
    ),
    # [monitoring]
    (
        "[monitoring]\nmetrics_buffer_size = 100",
        "monitoring.metrics_buffer_size",
        100,
        "0, or a power of two from 64 to",
    ),
    ("[monitoring]\nmetrics_buffer_size = 32", "monitoring.metrics_buffer_size", 32, "0, or a power of two from 64 to"),
    (
        "[monitoring]\nmetrics_buffer_size = -64",
        "monitoring.metrics_buffer_size",
        -64,
        "0, or a power of two from 64 to",
    ),
    # [limits] and a task's own
    ("[limits]\nmemory_bytes = 0", "limits.memory_bytes", 0, "a number above 0"),
    ("[limits]\ncpu_seconds = -1", "limits.cpu_seconds", -1, "a number above 0"),
    ("[limits]\nopen_files = 15", "limits.open_files", 15, "16 or more"),
    ("[limits]\nnice = 20", "limits.nice", 20, "-20 to 19"),
    ("[limits]\ncpu_affinity = []", "limits.cpu_affinity", (), "a list of CPUs out of ["),
    ("[limits]\ncpu_affinity = [99999]", "limits.cpu_affinity", (99999,), "a list of CPUs out of ["),
    (CAT + "[tasks.x.limits]\nnice = 99", "tasks.x.limits.nice", 99, "-20 to 19"),
    # [security]
    ('[security]\nvalidator = "nope"', "security.validator", "nope", "module:function"),
    ("[security]\ntoken_ttl_s = 0", "security.token_ttl_s", 0, "a finite number above 0"),
    # [tasks.NAME]
    ("[tasks.x]", "tasks.x.target", None, "this key to be set"),
    ('[tasks.x]\ntarget = ""', "tasks.x.target", "", TARGETS),
    ('[tasks.x]\ntarget = "cat"', "tasks.x.target", "cat", TARGETS),
    ('[tasks.x]\ntarget = "perl:foo"', "tasks.x.target", "perl:foo", TARGETS),
    ('[tasks.x]\ntarget = "exec:"', "tasks.x.target", "exec:", TARGETS),
    ('[tasks.x]\ntarget = "exec:\'open"', "tasks.x.target", "exec:'open", TARGETS),
    ('[tasks.x]\ntarget = "exec:a\\u0000b"', "tasks.x.target", "exec:a\0b", TARGETS),
    ('[tasks.x]\ntarget = "agent: "', "tasks.x.target", "agent: ", TARGETS),
    ('[tasks.x]\ntarget = "python:a.b"', "tasks.x.target", "python:a.b", TARGETS),
    ('[tasks.x]\ntarget = "python:a:b:c"', "tasks.x.target", "python:a:b:c", TARGETS),
    ('[tasks.x]\ntarget = "python:a.1:b"', "tasks.x.target", "python:a.1:b", TARGETS),
    (CAT + "min_instances = -1", "tasks.x.min_instances", -1, "0 to 1000"),
    (CAT + "concurrency = 0", "tasks.x.concurrency", 0, "1 to 1000"),
    (CAT + "prefetch = -1", "tasks.x.prefetch", -1, "0 to 1000"),
    (CAT + "start_timeout_s = 0", "tasks.x.start_timeout_s", 0, "a finite number above 0"),
    (CAT + '[tasks.x.environment]\n"A=B" = "1"', "tasks.x.environment", "A=B", "NAME = value without NUL"),
    (CAT + '[tasks.x.environment]\nA = "\\u0000"', "tasks.x.environment", "A", "NAME = value without NUL"),
    ('[tasks."a b"]\ntarget = "exec:cat"', "tasks.a b", "a b", "a name of letters, digits, dots, dashes, underscores"),
    ('[tasks."@x"]\ntarget = "exec:cat"', "tasks.@x", "@x", "a name of letters"),
    (
        "".join(f'[tasks.t{i}]\ntarget = "exec:cat"\n' for i in range(MAX_TASKS + 1)),
        "tasks",
        MAX_TASKS + 1,
        f"at most {MAX_TASKS} tasks",
    ),
]


@pytest.mark.parametrize(("text", "key", "value", "expected"), BAD_FILES)
def test_a_bad_file_is_explained_by_key_value_and_expectation(
    text: str, key: str, value: object, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    error = caught.value
    assert error.key == key
    assert expected in error.expected
    if value is not ...:
        assert error.value == value
    assert str(error) == f"{key} = {error.value!r}: expected {error.expected}"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "expected a readable file (No such file or directory)"),
        (lambda path: path.mkdir(), "expected a readable file (Is a directory)"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "expected a UTF-8 text file"),
    ],
)
def test_an_unreadable_file_is_named(make: Any, words: str, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    make(file)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


BAD_VARIABLES = [
    ("SPEARPOOL_POOL_WORKERS", "eight", "pool.workers = 'eight': expected int, got str"),
    ("SPEARPOOL_POOL_WORKERS", "", "pool.workers = '': expected int, got str"),
    ("SPEARPOOL_POOL_WORKERS", "8\nport = 1", "pool.workers = '8\\nport = 1': expected int, got str"),
    ("SPEARPOOL_POOL_WORKERS", "0", "pool.workers = 0: expected 1 to 128"),
    ("SPEARPOOL_CONNECTIONS_AUTH_TIMEOUT", "soon", "connections.auth_timeout = 'soon': expected float, got str"),
    ("SPEARPOOL_MONITORING_ENABLED", "yes", "monitoring.enabled = 'yes': expected bool, got str"),
    ("SPEARPOOL_LIMITS_CPU_AFFINITY", "0", "limits.cpu_affinity = 0: expected array | null, got int"),
    ("SPEARPOOL_SECURITY_VALIDATOR", "x", "security.validator = 'x': expected module:function"),
]


@pytest.mark.parametrize(("name", "text", "words"), BAD_VARIABLES)
def test_a_bad_variable_is_explained(name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={name: text})
    assert str(caught.value) == words


GOOD_VARIABLES: list[tuple[str, str, str, str, object]] = [
    ("SPEARPOOL_POOL_WORKERS", "8", "pool", "workers", 8),
    ("SPEARPOOL_POOL_NAME", "web", "pool", "name", "web"),
    ("SPEARPOOL_POOL_NAME", "1999", "pool", "name", "1999"),  # text stays text
    ("SPEARPOOL_POOL_HOST", "::1", "pool", "host", "::1"),
    ("SPEARPOOL_POOL_START_TIMEOUT_S", "2", "pool", "start_timeout_s", 2.0),
    ("SPEARPOOL_CONNECTIONS_ENABLE_MONITORING", "false", "connections", "enable_monitoring", False),
    ("SPEARPOOL_MONITORING_SHARED_MEMORY_DIR", "/tmp", "monitoring", "shared_memory_dir", "/tmp"),
    ("SPEARPOOL_LIMITS_CPU_AFFINITY", "[0]", "limits", "cpu_affinity", (0,)),
    ("SPEARPOOL_SECURITY_VALIDATOR", "shop.auth:check", "security", "validator", "shop.auth:check"),
]


@pytest.mark.parametrize(("name", "text", "section", "key", "value"), GOOD_VARIABLES)
def test_a_variable_sets_its_key(
    name: str, text: str, section: str, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert getattr(getattr(load(environ={name: text}), section), key) == value


UNKNOWN_VARIABLES = {
    "SPEARPOOL_POOL_WROKERS": "; did you mean SPEARPOOL_POOL_WORKERS?",
    "SPEARPOOL_CONECTIONS_AUTH_TIMEOUT": "; did you mean SPEARPOOL_CONNECTIONS_AUTH_TIMEOUT?",
    "SPEARPOOL_WORKERS": "; did you mean SPEARPOOL_POOL_WORKERS?",
    "SPEARPOOL_PORT": "; did you mean SPEARPOOL_POOL_PORT?",
    "SPEARPOOL_RUNTIMEDIR": "; did you mean SPEARPOOL_RUNTIME_DIR?",
    "SPEARPOOL_pool_workers": "",
    "SPEARPOOL_TASKS_UP_TARGET": "",  # a task is more than a few words
    "SPEARPOOL_POOL_": "; did you mean SPEARPOOL_POOL_PORT?",
    "SPEARPOOL_": "",
}


@pytest.mark.parametrize("name", UNKNOWN_VARIABLES)
def test_an_unknown_variable_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={name: "8"})
    assert str(caught.value) == f"{name} = '8': expected a variable that spearpool knows{UNKNOWN_VARIABLES[name]}"


def test_variables_that_are_no_settings_are_left_alone() -> None:
    ours = {"SPEARPOOL_RUNTIME_DIR": "/x", "SPEARPOOL_NAME": "n", "SPEARPOOL_TEST_TIME_SCALE": "2"}
    others = {"POOL_WORKERS": "9", "SPEAR_SECRET": "s", "_SPEARPOOL_COMPLETE": "bash_source"}
    of_kubernetes = {
        "SPEARPOOL_SERVICE_HOST": "10.0.0.7",
        "SPEARPOOL_SERVICE_PORT": "9100",
        "SPEARPOOL_SERVICE_PORT_WIRE": "9100",
        "SPEARPOOL_PORT": "tcp://10.0.0.7:9100",
        "SPEARPOOL_PORT_9100_TCP_ADDR": "10.0.0.7",
    }
    assert load(environ=ours | others | of_kubernetes) == Settings()


@pytest.mark.parametrize("section", [name for name in Settings.__struct_fields__ if name != "tasks"])
def test_every_key_of_every_section_has_its_variable(section: str) -> None:
    for key in getattr(Settings(), section).__struct_fields__:
        if key != "shared_memory_dir":  # whatever it is, this could be a directory
            with pytest.raises(ConfigError) as caught:
                load(
                    environ={f"SPEARPOOL_{section}_{key}".upper(): "" if key in {"name", "host", "validator"} else "[]"}
                )
            assert caught.value.key == f"{section}.{key}"


def test_defaults_then_file_then_variables_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text('[pool]\nname = "file"\nworkers = 3\nport = 9200\n' + CAT + "concurrency = 2\n")
    settings = load(
        file,
        {"SPEARPOOL_POOL_WORKERS": "4", "SPEARPOOL_POOL_PORT": "9300"},
        {"pool": {"port": 9400}, "tasks": {"y": {"target": "exec:true"}, "x": {"min_instances": 2}}},
    )
    assert settings.pool == PoolConfig(name="file", workers=4, port=9400)
    assert settings.tasks == {
        "x": TaskConfig(target="exec:cat", concurrency=2, min_instances=2),
        "y": TaskConfig(target="exec:true"),
    }


def test_a_wrong_section_is_not_hidden_by_flags(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("pool = 3")
    with pytest.raises(ConfigError, match=r"^pool = 3: expected table, got int$"):
        load(file, {}, {"pool": {"workers": 4}, "tasks": {}})


def test_flags_are_checked_like_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^tasks\.x\.target = 'cat': expected python:"):
        load(overrides={"tasks": {"x": {"target": "cat"}}})


def test_every_default_is_valid_and_every_section_frozen() -> None:
    settings = load()
    assert settings == Settings()
    for name in settings.__struct_fields__:
        section = getattr(settings, name)
        if name != "tasks":
            with pytest.raises(AttributeError):
                setattr(section, section.__struct_fields__[0], None)


@pytest.mark.parametrize(
    ("workers", "max_workers", "slots"), [(1, 0, 4), (8, 0, 32), (100, 0, MAX_SLOTS), (2, 2, 2), (2, 100, 100)]
)
def test_how_many_slots_there_is_room_for(workers: int, max_workers: int, slots: int) -> None:
    assert PoolConfig(workers=workers, max_workers=max_workers).slots == slots


def test_a_tasks_limits_go_over_the_pools(tmp_path: Path) -> None:
    settings = Settings(
        limits=ResourceLimits(memory_bytes=2**30, nice=5),
        tasks={
            "x": TaskConfig(target="exec:cat", limits=ResourceLimits(nice=0, open_files=64)),
            "y": TaskConfig(target="exec:cat"),
        },
    )
    assert settings.limits_of("x") == ResourceLimits(memory_bytes=2**30, nice=0, open_files=64)
    assert settings.limits_of("y") == settings.limits


def test_the_seeds_two_configurations_keep_its_names() -> None:
    assert {
        "max_connections",
        "connection_timeout",
        "heartbeat_interval",
        "max_message_size",
        "enable_monitoring",
    } <= set(ConnectionManagerConfig.__struct_fields__)
    assert {
        "enabled",
        "enable_connection_tracking",
        "enable_message_tracking",
        "enable_performance_tracking",
        "metrics_buffer_size",
    } <= set(MonitoringConfig.__struct_fields__)


@pytest.mark.parametrize("name", ["max_worker_age_s", "max_worker_connections", "max_worker_memory_bytes"])
def test_a_limit_on_the_life_of_workers_is_none_or_a_number_above_none(name: str) -> None:
    assert getattr(load(overrides={"pool": {name: 5}}).pool, name) == 5
    with pytest.raises(ConfigError, match=f"pool.{name} = -1"):
        load(overrides={"pool": {name: -1}})
