"""Socket activation: the listening socket that a service manager has opened for us.

The protocol is systemd's (sd_listen_fds(3)): `LISTEN_FDS` sockets, from descriptor 3 on, for the process `LISTEN_PID`.
The manager keeps its own copy, so connections wait in the queue before we start and while we are replaced.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from spearpool.errors import PoolStartError

__all__ = ["FIRST_FD", "given_listener"]

FIRST_FD = 3


def given_listener(environ: Mapping[str, str], pid: int) -> socket.socket | None:
    """The socket that is meant for us (close-on-exec from now on); None when there is none.

    Raises `PoolStartError` when there are several, or it is not one that TCP connections can be accepted from.
    """
    count = environ.get("LISTEN_FDS", "0")
    if environ.get("LISTEN_PID") != str(pid) or count == "0":
        return None
    if count != "1":
        raise PoolStartError(f"LISTEN_FDS is {count!r}: expected 1 socket; have one ListenStream= in the socket unit")
    try:
        sock = socket.socket(fileno=FIRST_FD)
    except OSError as error:
        raise PoolStartError(f"LISTEN_FDS is 1, but descriptor {FIRST_FD} is no socket: {error.strerror}") from None
    os.set_inheritable(FIRST_FD, False)
    is_tcp = sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM
    if not is_tcp or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise PoolStartError(
            f"descriptor {FIRST_FD} (LISTEN_FDS) is no listening TCP socket: expected ListenStream=ADDRESS:PORT and"
            " Accept=no in the socket unit"
        )
    return sock
