"""The `SPEAR_*` variables as one value: written, read back, and named when wrong."""

from __future__ import annotations

import pytest

from spearpool.errors import ConfigError
from spearpool.protocol.environment import InstanceEnvironment

LEAST = {
    "SPEAR_COMMUNICATION_PORT": "9100",
    "SPEAR_INSTANCE_ID": "thumb-0-1",
    "SPEAR_SECRET": "v1.secret",
    "SPEAR_COMMUNICATION_TYPE": "tcp",
}


def test_the_seeds_four_variables_are_always_set() -> None:
    environment = InstanceEnvironment(port=9100, instance_id="thumb-0-1", secret="v1.secret")
    assert environment.to_environ() == LEAST


@pytest.mark.parametrize(
    "environment",
    [
        InstanceEnvironment(port=1, instance_id="i", secret="s"),
        InstanceEnvironment(port=65535, instance_id="i", secret="s", host="::1", task="thumb", concurrency=8),
        InstanceEnvironment(port=1, instance_id="i", secret="s", communication_type="unix", address="/run/a.sock"),
    ],
)
def test_what_is_written_is_read_back(environment: InstanceEnvironment) -> None:
    assert InstanceEnvironment.from_environ(environment.to_environ()) == environment


def test_the_original_sets_no_more_than_it_must() -> None:
    least = {name: text for name, text in LEAST.items() if name != "SPEAR_COMMUNICATION_TYPE"}
    environment = InstanceEnvironment.from_environ({**least, "PATH": "/bin"})
    assert environment == InstanceEnvironment(port=9100, instance_id="thumb-0-1", secret="v1.secret")
    assert (environment.host, environment.task, environment.concurrency) == ("127.0.0.1", "", 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SPEAR_COMMUNICATION_PORT", ""),
        ("SPEAR_COMMUNICATION_PORT", "0"),
        ("SPEAR_COMMUNICATION_PORT", "65536"),
        ("SPEAR_COMMUNICATION_PORT", "-1"),
        ("SPEAR_COMMUNICATION_PORT", "http"),
        ("SPEAR_INSTANCE_ID", ""),
        ("SPEAR_SECRET", ""),
        ("SPEAR_COMMUNICATION_TYPE", "udp"),
        ("SPEAR_CONCURRENCY", "0"),
        ("SPEAR_CONCURRENCY", "many"),
    ],
)
def test_a_wrong_variable_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InstanceEnvironment.from_environ({**LEAST, name: text})
    assert (caught.value.key, caught.value.value) == (name, text)


def test_where_it_dials() -> None:
    tcp = InstanceEnvironment(port=9100, instance_id="i", secret="s", host="::1")
    local = InstanceEnvironment(
        port=9100, instance_id="i", secret="s", communication_type="unix", address="/run/a.sock"
    )
    assert (tcp.dialled, local.dialled) == (("::1", 9100), "/run/a.sock")


def test_a_unix_socket_has_an_address() -> None:
    with pytest.raises(ConfigError, match="SPEAR_COMMUNICATION_ADDRESS"):
        InstanceEnvironment.from_environ({**LEAST, "SPEAR_COMMUNICATION_TYPE": "unix"})


@pytest.mark.parametrize("name", ["SPEAR_COMMUNICATION_PORT", "SPEAR_INSTANCE_ID", "SPEAR_SECRET"])
def test_a_missing_variable_is_named(name: str) -> None:
    environ = {key: text for key, text in LEAST.items() if key != name}
    with pytest.raises(ConfigError, match=name):
        InstanceEnvironment.from_environ(environ)
