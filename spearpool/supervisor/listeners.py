"""The listening sockets of a pool: one per slot, all on one port, opened before any worker exists.

The first socket is bound *exclusively* and listens before SO_REUSEPORT is set on it: a server that is there already is
an error, never a silent sharer, and of two pools that start at once one loses (two exclusive binds both succeed, the
second `listen` does not). Then the others join in slot order: a socket's index in the kernel's group is the order of
`listen`, and `steering` tells the kernel which of them get connections. The supervisor keeps all of them open for good,
so a killed worker's accept queue waits for its heir; one is closed only when its slot, the highest, is removed: the
kernel moves its last member into the place of one that goes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spearpool.config import PORTS
from spearpool.errors import PoolError, PoolStartError

from .steering import Steering, found_group

__all__ = ["Listeners", "adopt_listener", "listen_locally", "open_listeners"]

_UNACKED_OFFSET = 24
"""Offset of `tcpi_unacked` in `struct tcp_info`; on a listening socket it is the length of the accept queue."""

_LISTEN_STATE = "0A"


class Listeners:
    """The open sockets, in slot order, their common address, and how new connections are steered to them."""

    def __init__(self, host: str, port: int, sockets: list[socket.socket]) -> None:
        self.host = host
        self.port = port
        self.sockets = sockets
        self.steering = Steering(sockets[0])

    def accept_queue(self, slot: int) -> int:
        """How many connections wait to be accepted by the slot's worker."""
        info = self.sockets[slot].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED_OFFSET + 4)
        (waiting,) = struct.unpack_from("=I", info, _UNACKED_OFFSET)
        return int(waiting)

    def grow(self, count: int, backlog: int) -> None:
        """Open more sockets at the end, until there are `count`. Raises `PoolError`, and opens none then."""
        first = self.sockets[0]
        added: list[socket.socket] = []
        try:
            while len(self.sockets) + len(added) < count:
                added.append(_join_group(first, backlog))
        except OSError as error:
            for sock in added:
                sock.close()
            raise PoolError(f"cannot open another listening socket: {error.strerror}") from None
        self.sockets += added

    def remove_last(self) -> None:
        """Close the last socket, which nobody may be steered to any more; the first one stays."""
        assert len(self.sockets) > 1
        self.sockets.pop().close()

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
        listeners = Listeners(host, candidate, sockets)
        listeners.steering.steer(range(count))
        return listeners
    raise PoolStartError(f"no free port on {host} among {candidates[0]} to {candidates[-1]}; name one with --port")


def adopt_listener(given: socket.socket, count: int, backlog: int, port: int) -> Listeners:
    """Make a socket that listens already the first of `count`; the others join it. It is ours afterwards, or closed.

    `port` is what the configuration asks for, 0 if nothing. Raises `PoolStartError` saying what to set.
    """
    host, bound = given.getsockname()[:2]
    sockets = [given]
    try:
        if port not in {0, bound}:
            raise PoolStartError(f"the socket that was given listens on port {bound}, but pool.port is {port}")
        given.setblocking(False)
        given.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        while len(sockets) < count:
            sockets.append(_join_group(given, backlog))
    except (OSError, PoolStartError) as error:
        why = _explain_lonely(given, bound, error) if isinstance(error, OSError) else str(error)
        for sock in sockets:
            sock.close()
        raise PoolStartError(why) from None
    listeners = Listeners(host, bound, sockets)
    listeners.steering.steer(range(count))
    return listeners


def listen_locally(path: Path, backlog: int) -> socket.socket:
    """A Unix socket at `path`, which this user alone may connect to. Raises `PoolStartError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise PoolStartError(f"cannot listen at {path}: {error.strerror}") from None
    return sock


def _open_group(family: int, address: Any, count: int, backlog: int) -> list[socket.socket]:
    """All sockets of the group, or none: raises OSError."""
    sockets: list[socket.socket] = []
    try:
        sockets.append(_bound(family, address, shared=False))
        found_group(sockets[0])
        sockets[0].listen(backlog)
        sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        while len(sockets) < count:
            sockets.append(_join_group(sockets[0], backlog))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _join_group(first: socket.socket, backlog: int) -> socket.socket:
    v6_only = first.family == socket.AF_INET6 and first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    sock = _bound(first.family, first.getsockname(), shared=True, v6_only=bool(v6_only))
    try:
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _bound(family: int, address: Any, *, shared: bool, v6_only: bool = True) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # what was asked for, whatever the system's default
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


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


def _explain_lonely(given: socket.socket, port: int, error: OSError) -> str:
    """Why no second socket can be opened beside the one that was given, and what helps."""
    owner, us = os.fstat(given.fileno()).st_uid, os.geteuid()
    words = f"no second socket may join the one that was given on port {port} ({error.strerror})"
    if owner != us:
        return f"{words}: uid {owner} opened it, and we are uid {us}; have the service run as that user, or --workers 1"
    return f"{words}: set ReusePort=yes in the socket unit, or start with --workers 1"


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
