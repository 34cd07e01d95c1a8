from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from spearpool.supervisor.notify import Notices, ServiceManager, ServiceState, watchdog_interval_s

# What is said, and when


def test_each_state_is_said_once_with_the_status_of_the_moment() -> None:
    notices = Notices(math.inf)
    said = [
        *notices.look(ServiceState.STARTING, "0 of 2", 10.0),
        *notices.look(ServiceState.STARTING, "0 of 2", 10.1),
        *notices.look(ServiceState.READY, "2 of 2", 11.0),
        *notices.look(ServiceState.READY, "2 of 2", 12.0),
        *notices.look(ServiceState.READY, "1 of 2", 13.0),
        *notices.look(ServiceState.STOPPING, "1 of 2", 14.0),
        *notices.look(ServiceState.STOPPING, "1 of 2", 15.0),
    ]
    assert said == ["STATUS=0 of 2", "READY=1\nSTATUS=2 of 2", "STATUS=1 of 2", "STOPPING=1"]


def test_a_reload_begins_with_the_time_and_ends_with_ready() -> None:
    notices = Notices(math.inf)
    notices.look(ServiceState.READY, "fine", 1.0)
    assert notices.look(ServiceState.RELOADING, "fine", 1234.5) == ["RELOADING=1\nMONOTONIC_USEC=1234500000"]
    assert notices.look(ServiceState.RELOADING, "fine", 1235.0) == []
    assert notices.look(ServiceState.READY, "fine", 1236.0) == ["READY=1"]


def test_signs_of_life_come_as_often_as_they_should() -> None:
    notices = Notices(2.0)
    said = [notices.look(ServiceState.STARTING, "", now / 4) for now in range(21)]
    assert [place / 4 for place, datagrams in enumerate(said) if datagrams == ["WATCHDOG=1"]] == [0.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, math.inf),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
        ({"WATCHDOG_USEC": "often"}, math.inf),
    ],
)
def test_half_the_time_that_is_asked_for(environ: dict[str, str], interval_s: float) -> None:
    assert watchdog_interval_s(environ, 7) == interval_s


# How it is said


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        path = str(tmp_path / "n")
        sock.bind(path if request.param == "path" else "\0" + path)
        sock.settimeout(10)
        yield sock, path if request.param == "path" else "@" + path
    Path(path).unlink(missing_ok=True)


def test_datagrams_reach_the_socket(listener: tuple[socket.socket, str]) -> None:
    sock, address = listener
    with closing(ServiceManager({"NOTIFY_SOCKET": address}, 7)) as manager:
        manager.tell(ServiceState.READY, "fine", 1.0)
        manager.tell(ServiceState.READY, "better", 2.0)
        assert [sock.recv(4096) for _ in range(2)] == [b"READY=1\nSTATUS=fine", b"STATUS=better"]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "vsock:2:9"}, {"NOTIFY_SOCKET": "/no/such/socket"}])
def test_nobody_need_listen(environ: dict[str, str]) -> None:
    with closing(ServiceManager(environ, 7)) as manager:
        manager.tell(ServiceState.READY, "fine", 1.0)
        manager.tell(ServiceState.STOPPING, "fine", 2.0)
