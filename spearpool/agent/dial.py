"""Dial a pool and prove who we are: `dial` returns a line that is ready for work, or says why there is none."""

from __future__ import annotations

import socket
import time
from math import inf

from spearpool.errors import AuthenticationError, ConnectionLost
from spearpool.protocol.messages import AuthRequest, ErrorMessage
from spearpool.protocol.session import (
    AuthenticationAnswered,
    Closed,
    Received,
    Session,
    SessionEvent,
    SessionSettings,
    Side,
)

from .line import Line, Watch

__all__ = ["MAX_MESSAGE_BYTES", "Address", "dial"]

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message that we send or take; the pool may be set to less."""


Address = str | tuple[str, int]
"""The path of a Unix socket, or host and port."""


def dial(side: Side, address: Address, request: AuthRequest, timeout_s: float) -> tuple[Line, list[SessionEvent]]:
    """Connect and authenticate. The events are those that came right behind the answer.

    Raises `AuthenticationError` when we are refused, `ConnectionLost` when it cannot be done in time.
    """
    deadline = time.monotonic() + timeout_s
    # The pool sets the pace of heartbeats, and a stopped worker is its supervisor's business: no time limit of ours.
    settings = SessionSettings(timeout_s, inf, inf, inf, MAX_MESSAGE_BYTES)
    where = address if isinstance(address, str) else "{}:{}".format(*address)
    line = Line(_connect(address, where, timeout_s), Session(side, settings, time.monotonic()))
    try:
        line.send(request)
        return line, _await_answer(line, deadline, where)
    except BaseException:
        line.close()
        raise


def _connect(address: Address, where: str, timeout_s: float) -> socket.socket:
    # Not create_connection: its getaddrinfo loads the idna codec, 2.3 ms in each fresh process.
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
    except OSError as error:
        sock.close()
        raise ConnectionLost(f"cannot connect to {where}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _await_answer(line: Line, deadline: float, where: str) -> list[SessionEvent]:
    """What came behind a success."""
    watch = Watch()
    said = ""
    while watch.wait(line, deadline - time.monotonic()):
        events = line.receive()
        for index, event in enumerate(events, start=1):
            match event:
                case AuthenticationAnswered(response) if response.success:
                    return events[index:]
                case AuthenticationAnswered(response):
                    raise AuthenticationError(f"{where} refused us: {response.error_message or 'no reason given'}")
                case Received(payload=ErrorMessage() as error):
                    said = f": {error.message} ({error.error_code})"
                case Closed():
                    raise ConnectionLost(f"{where} closed the connection before it answered{said}")
                case _:
                    pass
    raise ConnectionLost(f"{where} did not answer our authentication in time{said}")
