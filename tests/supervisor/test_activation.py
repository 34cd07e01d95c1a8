"""Each case runs in a child of its own, which has the socket as descriptor 3."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from spearpool.supervisor.activation import FIRST_FD, given_listener

PROGRAM = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
from spearpool.errors import PoolStartError
from spearpool.supervisor.activation import given_listener
environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": sys.argv[2]}
try:
    sock = given_listener(environ, os.getpid())
except PoolStartError as error:
    print(error)
else:
    print(sock and (sock.fileno(), sock.getsockname()[1], sock.get_inheritable()))
"""


def _said(fd: int, count: str = "1") -> str:
    command = [sys.executable, "-c", PROGRAM, str(fd), count]
    return subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_a_listening_socket_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert _said(sock.fileno()) == str((FIRST_FD, sock.getsockname()[1], False))


@pytest.mark.parametrize("count", ["0", "2", "x"])
def test_exactly_one_is_expected_if_any(count: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        said = _said(sock.fileno(), count)
    assert said == "None" if count == "0" else "expected 1 socket" in said


@pytest.mark.parametrize("kind", ["not listening", "udp", "unix", "no socket"])
def test_what_no_connection_can_come_from(kind: str) -> None:
    if kind == "no socket":
        assert "is no socket" in _said(1)
        return
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sock:
        assert "no listening TCP socket" in _said(sock.fileno())


@pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}])
def test_what_is_meant_for_somebody_else_is_left_alone(environ: dict[str, str]) -> None:
    assert given_listener(environ, os.getpid()) is None
