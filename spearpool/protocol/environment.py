"""The `SPEAR_*` variables that tell a launched program where to dial and who it is, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spearpool.errors import ConfigError

__all__ = ["InstanceEnvironment"]


@dataclass(frozen=True, slots=True)
class InstanceEnvironment:
    """What a program needs to dial in. The first four are the seed's and always set; the others have defaults.

    `address` is the path of the Unix socket when `communication_type` is `unix`, else empty.
    """

    port: int
    instance_id: str
    secret: str
    communication_type: str = "tcp"
    host: str = "127.0.0.1"
    address: str = ""
    task: str = ""
    concurrency: int = 1

    def to_environ(self) -> dict[str, str]:
        environ = {
            "SPEAR_COMMUNICATION_PORT": str(self.port),
            "SPEAR_INSTANCE_ID": self.instance_id,
            "SPEAR_SECRET": self.secret,
            "SPEAR_COMMUNICATION_TYPE": self.communication_type,
        }
        if self.host != "127.0.0.1":
            environ["SPEAR_COMMUNICATION_HOST"] = self.host
        if self.address:
            environ["SPEAR_COMMUNICATION_ADDRESS"] = self.address
        if self.task:
            environ["SPEAR_TASK"] = self.task
        if self.concurrency != 1:
            environ["SPEAR_CONCURRENCY"] = str(self.concurrency)
        return environ

    @property
    def dialled(self) -> str | tuple[str, int]:
        """The path of a Unix socket, or host and port."""
        return self.address or (self.host, self.port)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> InstanceEnvironment:
        """Raises `ConfigError` naming the variable that is missing or wrong."""
        kind = environ.get("SPEAR_COMMUNICATION_TYPE", "tcp")
        if kind not in {"tcp", "unix"}:
            raise ConfigError("SPEAR_COMMUNICATION_TYPE", kind, "tcp or unix")
        return cls(
            port=_number(environ, "SPEAR_COMMUNICATION_PORT", 1, 65535),
            instance_id=_text(environ, "SPEAR_INSTANCE_ID"),
            secret=_text(environ, "SPEAR_SECRET"),
            communication_type=kind,
            host=environ.get("SPEAR_COMMUNICATION_HOST", "127.0.0.1"),
            address=_text(environ, "SPEAR_COMMUNICATION_ADDRESS") if kind == "unix" else "",
            task=environ.get("SPEAR_TASK", ""),
            concurrency=_number(environ, "SPEAR_CONCURRENCY", 1, 10_000) if "SPEAR_CONCURRENCY" in environ else 1,
        )


def _text(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise ConfigError(name, value, "to be set by spearpool; run this program as a task, or set it by hand")
    return value


def _number(environ: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = _text(environ, name)
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(name, text, f"a number from {low} to {high}")
    return int(text)
