from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from spearpool.errors import PoolError, PoolStartError
from spearpool.supervisor.listeners import Listeners, adopt_listener, listen_locally, open_listeners
from tests.conftest import eventually


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socks = [stack.enter_context(socket.socket(family)) for _ in range(count)]
        for sock in socks:
            sock.bind((host, 0))
        return [sock.getsockname()[1] for sock in socks]


@contextmanager
def opened(host: str, port: int, count: int, **more: object) -> Iterator[Listeners]:
    with closing(open_listeners(host, port, count, 16, **more)) as listeners:  # type: ignore[arg-type]
        yield listeners


def connect_until(listeners: Listeners, slot: int) -> list[socket.socket]:
    """Connect until one connection waits at this slot: they are spread at random."""
    peers: list[socket.socket] = []
    while not listeners.accept_queue(slot):
        assert len(peers) < 500
        peers.append(socket.create_connection((listeners.host, listeners.port), timeout=5))
    return peers


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_every_slot_has_a_socket_that_gets_connections(host: str) -> None:
    (port,) = free_ports(1, host)
    with opened(host, port, 4) as listeners, ExitStack() as stack:
        assert (listeners.host, listeners.port, len(listeners.sockets)) == (host, port, 4)
        assert listeners.steering.status == "bpf"
        for slot in range(4):
            for peer in connect_until(listeners, slot):
                stack.enter_context(peer)
        waiting = sum(listeners.accept_queue(slot) for slot in range(4))
        before = listeners.accept_queue(2)
        connection, _ = listeners.sockets[2].accept()
        connection.close()
        assert listeners.accept_queue(2) == before - 1
        assert sum(listeners.accept_queue(slot) for slot in range(4)) == waiting - 1


def test_sockets_are_close_on_exec_and_do_not_block() -> None:
    with opened("127.0.0.1", free_ports(1)[0], 2) as listeners:
        for sock in listeners.sockets:
            assert not os.get_inheritable(sock.fileno())
            assert not sock.getblocking()
            with pytest.raises(BlockingIOError):
                sock.accept()


def test_the_backlog_is_the_one_asked_for() -> None:
    with opened("127.0.0.1", free_ports(1)[0], 1) as listeners:
        info = listeners.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert int.from_bytes(info[28:32], "little") == 16


def test_a_port_in_use_is_an_error_that_names_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PoolStartError, match=rf"port {port} on 127.0.0.1 is taken by pid {os.getpid()} \("):
            open_listeners("127.0.0.1", port, 2, 16)


def test_a_reuseport_server_is_never_joined_in_silence() -> None:
    other = socket.create_server(("127.0.0.1", 0), reuse_port=True)
    with other, pytest.raises(PoolStartError, match="is taken by pid"):
        open_listeners("127.0.0.1", other.getsockname()[1], 2, 16)


def test_of_two_pools_on_one_port_the_second_fails() -> None:
    (port,) = free_ports(1)
    with opened("127.0.0.1", port, 3) as first:
        with pytest.raises(PoolStartError, match="is taken by pid"):
            open_listeners("127.0.0.1", port, 3, 16)
        with ExitStack() as stack:  # and the first one was not disturbed
            for peer in connect_until(first, 2):
                stack.enter_context(peer)


def test_two_bound_sockets_of_which_one_listens_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The race of two starts: both have bound, the other one listens before us."""
    (port,) = free_ports(1)
    rival = socket.socket()
    rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    rival.bind(("127.0.0.1", port))
    listen = socket.socket.listen

    def late(sock: socket.socket, backlog: int) -> None:
        if rival.fileno() >= 0:
            listen(rival, 1)
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", late)
    with rival, pytest.raises(PoolStartError, match="is taken by"):
        open_listeners("127.0.0.1", port, 2, 16)


def test_port_zero_takes_the_first_free_one() -> None:
    ports = free_ports(3)
    with socket.create_server(("127.0.0.1", ports[0])), opened("127.0.0.1", 0, 2, ports=ports) as first:
        assert first.port == ports[1]
        with opened("127.0.0.1", 0, 2, ports=ports) as second:
            assert second.port == ports[2]
            with pytest.raises(PoolStartError, match="no free port"):
                open_listeners("127.0.0.1", 0, 2, 16, ports=ports)


def test_the_same_port_again_after_connections_were_closed_by_us() -> None:
    """TIME_WAIT of the last run must not keep the next start from its port."""
    (port,) = free_ports(1)
    with opened("127.0.0.1", port, 1) as listeners, socket.create_connection(("127.0.0.1", port)) as peer:
        eventually(lambda: listeners.accept_queue(0) == 1)
        listeners.sockets[0].accept()[0].close()
        assert peer.recv(1) == b""
    with opened("127.0.0.1", port, 2):
        pass


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("203.0.113.9", "203.0.113.9 is not an address of this machine"),
        ("not an address", "cannot listen on host 'not an address'"),
    ],
)
def test_an_impossible_host(host: str, words: str) -> None:
    with pytest.raises(PoolStartError, match=words):
        open_listeners(host, 9100, 1, 16)


def test_nothing_stays_open_when_it_fails() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PoolStartError):
        open_listeners("127.0.0.1", other.getsockname()[1], 4, 16)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_group_grows_at_its_end_and_shrinks_from_there() -> None:
    with opened("127.0.0.1", free_ports(1)[0], 1) as listeners, ExitStack() as stack:
        listeners.grow(3, 16)
        assert {sock.getsockname()[1] for sock in listeners.sockets} == {listeners.port}
        listeners.steering.steer([2])
        stack.callback(stack.enter_context(socket.create_connection((listeners.host, listeners.port), timeout=5)).close)
        assert [listeners.accept_queue(slot) for slot in range(3)] == [0, 0, 1]
        listeners.steering.steer([0])
        listeners.remove_last()
        listeners.remove_last()
        stack.enter_context(socket.create_connection((listeners.host, listeners.port), timeout=5))
        assert [listeners.accept_queue(slot) for slot in range(len(listeners.sockets))] == [1]
        with pytest.raises(AssertionError):
            listeners.remove_last()


def test_growing_that_fails_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("127.0.0.1", free_ports(1)[0], 1) as listeners:
        real, left = socket.socket, [1]

        def limited(*arguments: int) -> socket.socket:
            if not left:
                raise OSError(24, "Too many open files")
            left.pop()
            return real(*arguments)

        monkeypatch.setattr("spearpool.supervisor.listeners.socket.socket", limited)
        with pytest.raises(PoolError, match="Too many open files"):
            listeners.grow(4, 16)
        assert len(listeners.sockets) == 1


# Sockets that somebody else has opened


def given(host: str = "127.0.0.1", *, dual: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, dualstack_ipv6=dual)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_given_socket_is_the_first_and_others_join(host: str) -> None:
    sock = given(host)
    port = sock.getsockname()[1]
    with closing(adopt_listener(sock, 3, 16, 0)) as listeners, ExitStack() as stack:
        assert (listeners.host, listeners.port, listeners.sockets[0]) == (host, port, sock)
        assert listeners.steering.status == "bpf"
        assert not sock.getblocking()
        for slot in range(3):
            for peer in connect_until(listeners, slot):
                stack.enter_context(peer)


def test_a_socket_for_both_families_is_joined_by_such() -> None:
    with closing(adopt_listener(given("::", dual=True), 2, 16, 0)) as listeners:
        only_v6 = [sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for sock in listeners.sockets]
        assert only_v6 == [0, 0]


def test_a_given_socket_on_another_port_than_asked_for() -> None:
    sock = given()
    with pytest.raises(PoolStartError, match=r"pool\.port is 1"):
        adopt_listener(sock, 2, 16, 1)
    assert sock.fileno() == -1


def test_a_given_socket_that_nobody_may_join(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = given()
    port = sock.getsockname()[1]
    with closing(adopt_listener(sock, 1, 16, port)) as listeners:
        assert len(listeners.sockets) == 1, "alone it may serve"
        shared = listeners.sockets[0].dup()
    monkeypatch.setattr(socket.socket, "bind", _in_use)
    with pytest.raises(PoolStartError, match="ReusePort=yes"):
        adopt_listener(shared, 2, 16, 0)
    assert shared.fileno() == -1


def _in_use(_sock: socket.socket, _address: object) -> None:
    raise OSError(errno.EADDRINUSE, "Address already in use")


def test_a_unix_socket_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "agents.sock"
    with listen_locally(path, 16) as listener, socket.socket(socket.AF_UNIX) as peer:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not listener.getblocking()
        assert not os.get_inheritable(listener.fileno())
        peer.connect(str(path))
        listener.accept()[0].close()
    with pytest.raises(PoolStartError, match=rf"cannot listen at {path}: Address already in use"):
        listen_locally(path, 16)
    path.unlink()
