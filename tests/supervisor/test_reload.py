"""What a reload may change. What it does to a real pool is in `integration/test_reload`."""

from __future__ import annotations

from typing import Any

import pytest

from spearpool.config import PoolConfig, load
from spearpool.errors import ConfigError
from spearpool.supervisor.reload import check_reload, to_replace, worker_policy

TASKS = {"a": {"target": "exec:cat"}}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"pool": {"stop_timeout_s": 5.0, "max_worker_age_s": 60.0}},
        {"connections": {"auth_timeout": 3.0, "max_connections": 7}},
        {"security": {"validator": "shop.tokens:check"}},
        {"limits": {"nice": 5}},
        {"tasks": {"a": {"target": "exec:wc"}, "b": {"target": "exec:wc"}}},
        {"tasks": {}},
    ],
)
def test_what_workers_are_given_can_change(sections: dict[str, Any]) -> None:
    check_reload(load(overrides={"tasks": TASKS}), load(overrides={"tasks": TASKS, **sections}))


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"pool": {"name": "other"}}, "pool.name"),
        ({"pool": {"host": "127.0.0.2"}}, "pool.host"),
        ({"pool": {"port": 9876}}, "pool.port"),
        ({"pool": {"max_workers": 20}}, "pool.max_workers"),
        ({"connections": {"enable_monitoring": False}}, "connections.enable_monitoring"),
        ({"connections": {"max_message_size": 2**20}}, "connections.max_message_size"),
        ({"monitoring": {"enable_message_tracking": False}}, "monitoring.enable_message_tracking"),
        ({"budget": {"instances": 5}}, "budget.instances"),
        ({"security": {"token_ttl_s": 60.0}}, "security.token_ttl_s"),
    ],
)
def test_what_the_pool_is_built_from_stays(sections: dict[str, Any], key: str) -> None:
    running, wanted = load(overrides={"tasks": TASKS}), load(overrides={"tasks": TASKS} | sections)
    with pytest.raises(ConfigError, match="start it again") as caught:
        check_reload(running, wanted)
    assert caught.value.key == key


def test_how_many_workers_there_are_is_another_commands_business() -> None:
    with pytest.raises(ConfigError, match="spearpool scale workers=N"):
        check_reload(load(), load(overrides={"pool": {"workers": 3}}))


def test_the_policy_says_what_the_settings_say() -> None:
    policy = worker_policy(
        PoolConfig(
            start_timeout_s=1.0,
            stop_timeout_s=2.0,
            max_worker_age_s=3.0,
            max_worker_connections=4,
            max_worker_memory_bytes=5,
        )
    )
    times = (policy.ready_timeout_s, policy.empty_s, policy.max_age_s)
    assert (*times, policy.max_connections, policy.max_memory_bytes) == (1.0, 2.0, 3.0, 4, 5)


KINDS = {
    "e": {"target": "exec:cat"},
    "p": {"target": "python:json:loads"},
    "a": {"target": "agent:cat"},
}


@pytest.mark.parametrize(
    ("changes", "replaced"),
    [
        ({}, "pa"),
        ({"e": {"target": "exec:wc"}}, "epa"),
        ({"e": {"target": "exec:cat", "environment": {"A": "b"}}}, "epa"),
        ({"e": {"target": "exec:cat", "limits": {"nice": 3}}}, "epa"),
        ({"e": {"target": "exec:cat", "max_instances": 7, "idle_timeout_s": 9.0}}, "pa"),
        ({"e": {"target": "exec:cat", "transport": "unix"}}, "epa"),
        ({"e": {"target": "exec:cat", "sha256": "0" * 64}}, "epa"),
        ({"e": {"target": "exec:cat", "files": {"a": "b"}}}, "epa"),
        ({"e": {"target": "exec:cat", "keep_workdir": True}}, "epa"),
        ({"new": {"target": "exec:cat"}}, "pa"),
    ],
)
def test_whose_instances_are_replaced(changes: dict[str, Any], replaced: str) -> None:
    """Code may be another one at any time; a program that is executed afresh each time need not be begun afresh."""
    before, after = load(overrides={"tasks": KINDS}), load(overrides={"tasks": KINDS | changes})
    assert to_replace(before, after) == set(replaced)


def test_the_pools_own_limits_are_everybodys() -> None:
    before = load(overrides={"tasks": KINDS})
    after = load(overrides={"tasks": KINDS, "limits": {"nice": 5}})
    assert to_replace(before, after) == {"e", "p", "a"}
