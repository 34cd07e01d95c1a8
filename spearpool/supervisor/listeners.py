"""The listening sockets of a pool: one per slot, all on one port, opened before any worker exists.

The first socket is bound *exclusively* and listens before SO_REUSEPORT is set on it: a server that is there already is
an error, never a silent sharer, and of two pools that start at once one loses (two exclusive binds both succeed, the
second `listen` does not). Then the others join in slot order: a socket's index in the kernel's group is the order of
`listen`. The supervisor keeps all of them open for good, so a killed worker's accept queue waits for its heir.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from spearpool.config import PORTS
from spearpool.errors import PoolStartError

__all__ = ["Listeners", "open_listeners"]

_UNACKED_OFFSET = 24
"""Offset of `tcpi_unacked` in `struct tcp_info`; on a listening socket it is the length of the accept queue."""

_LISTEN_STATE = "0A"


class Listeners:
    """The open sockets, in slot order, and their common address."""

    def __init__(self, host: str, port: int, sockets: list[socket.socket]) -> None:
        self.host = host
        self.port = port
        self.sockets = sockets

    def accept_queue(self, slot: int) -> int:
        """How many connections wait to be accepted by the slot's worker."""
        info = self.sockets[slot].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED_OFFSET + 4)
        (waiting,) = struct.unpack_from("=I", info, _UNACKED_OFFSET)
        return int(waiting)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def open_listeners(host: str, port: int, count: int, backlog: int, ports: Iterable[int] = PORTS) -> Listeners:
    """Open `count` listening sockets, non-blocking and close-on-exec.

    With `port` 0 the first free one of `ports` is taken. Raises `PoolStartError` saying what is in the way.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise PoolStartError(f"cannot listen on host {host!r}: {error.strerror}; expected an IP address") from None
    candidates = [port] if port else list(ports)
    for candidate in candidates:
        try:
            sockets = _open_group(family, (address[0], candidate, *address[2:]), count, backlog)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and not port:
                continue
            raise PoolStartError(_explain(error, host, candidate)) from None
        return Listeners(host, candidate, sockets)
    raise PoolStartError(f"no free port on {host} among {candidates[0]} to {candidates[-1]}; name one with --port")


def _open_group(family: int, address: tuple[object, ...], count: int, backlog: int) -> list[socket.socket]:
    """All sockets of the group, or none: raises OSError."""
    sockets: list[socket.socket] = []
    try:
        for index in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # what was asked for, whatever the system's default
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if index:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            sock.listen(backlog)
            if not index:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _explain(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is taken by {_holder_of(port)}; stop that program or choose another --port"
        case errno.EACCES:
            return f"not allowed to listen on port {port} of {host}: ports below 1024 need a privilege"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; expected one of its own, 127.0.0.1 or 0.0.0.0"
        case _:
            return f"cannot listen on {host} port {port}: {error.strerror}"


def _holder_of(port: int) -> str:
    """Who listens on a port, as far as /proc tells this user; only for the words of an error."""
    inodes = {
        f"socket:[{fields[9]}]"
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for fields in map(str.split, Path(table).read_text(encoding="ascii").splitlines()[1:])
        if fields[3] == _LISTEN_STATE and int(fields[1].rpartition(":")[2], 16) == port
    }
    for process in filter(lambda path: path.name.isdecimal(), Path("/proc").iterdir()):
        try:
            if any(os.readlink(link) in inodes for link in (process / "fd").iterdir()):  # noqa: PTH115 - not a path
                return f"pid {process.name} ({(process / 'comm').read_text(encoding='utf-8').strip()})"
        except OSError:  # gone meanwhile, or another user's
            continue
    return "another user's process" if inodes else "another program"
