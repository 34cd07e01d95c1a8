"""What a service manager is told: that the pool is ready, reloads or stops, how it does, and that it is alive.

The protocol is systemd's (sd_notify(3), `Type=notify`): datagrams of `NAME=value` lines to the Unix socket that
`NOTIFY_SOCKET` names, a path or, behind an `@`, a name in the abstract namespace. `WATCHDOG_USEC` asks for a sign of
life within that time; it is given twice as often, by the supervisor's loop, so a loop that hangs gives none.

`Notices` decides what to say (pure); `ServiceManager` says it. A manager that does not listen is no reason to stop.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping
from enum import Enum

from spearpool.log import get_logger

__all__ = ["Notices", "ServiceManager", "ServiceState", "watchdog_interval_s"]


class ServiceState(Enum):
    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"


class Notices:
    """What has been said, and so what is to be said next."""

    def __init__(self, watchdog_s: float) -> None:
        """`watchdog_s`: how often to give a sign of life; infinity for never."""
        self._watchdog_s = watchdog_s
        self._alive_at = -math.inf
        self._state = ServiceState.STARTING
        self._status = ""

    def look(self, state: ServiceState, status: str, now: float) -> list[str]:
        """The datagrams to send now (monotonic seconds). A reload is over when the pool is ready again."""
        lines: list[str] = []
        if state is not self._state:
            self._state = state
            match state:
                case ServiceState.READY:
                    lines.append("READY=1")
                case ServiceState.RELOADING:
                    lines += ["RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}"]
                case ServiceState.STOPPING:
                    lines.append("STOPPING=1")
                case ServiceState.STARTING:
                    raise AssertionError("nothing starts twice")
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        datagrams = ["\n".join(lines)] if lines else []
        if now >= self._alive_at + self._watchdog_s:
            self._alive_at = now
            datagrams.append("WATCHDOG=1")
        return datagrams


class ServiceManager:
    """Whoever has started us and wants to know. Without a `NOTIFY_SOCKET` there is nobody, and nothing is done."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self._log = get_logger("notify")
        self._socket: socket.socket | None = None
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._notices = Notices(watchdog_interval_s(environ, pid))
        self._deaf = False
        if self._address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        elif self._address:
            self._log.warning("NOTIFY_SOCKET is neither a path nor an abstract name", address=self._address)

    def tell(self, state: ServiceState, status: str, now: float) -> None:
        """Say what is new; `status` is one line for people."""
        if self._socket is None:
            return
        address = self._address.replace("@", "\0", 1) if self._address.startswith("@") else self._address
        for datagram in self._notices.look(state, status, now):
            try:
                self._socket.sendto(datagram.encode(), socket.MSG_NOSIGNAL, address)
            except OSError as error:
                if not self._deaf:
                    self._log.warning("the service manager does not listen", reason=error.strerror or str(error))
                self._deaf = True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def watchdog_interval_s(environ: Mapping[str, str], pid: int) -> float:
    """Half the time within which a sign of life is expected of this process; infinity when none is."""
    text = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid) or not text.isdecimal() or not int(text):
        return math.inf
    return int(text) / 2e6
