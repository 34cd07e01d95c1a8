"""Steering: the program by its bytes, run here instruction by instruction, and in the kernel with real sockets."""

from __future__ import annotations

import errno
import itertools
import random
import selectors
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Self, cast

import pytest

from spearpool.supervisor.listeners import Listeners, open_listeners
from spearpool.supervisor.steering import Steering, found_group, program
from tests.conftest import TIME_SCALE

# The program

INSTRUCTION = struct.Struct("=HBBI")
RANDOM = 0xFFFF_F000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM of linux/filter.h


def _decoded(slots: Sequence[int]) -> list[tuple[int, int, int, int]]:
    return list(INSTRUCTION.iter_unpack(program(slots)))


def _answer(instructions: Sequence[tuple[int, int, int, int]], number: int) -> int:
    """What a program of the five instructions that there are says when the random number is this one."""
    accumulator = place = 0
    while True:
        code, if_true, if_false, constant = instructions[place]
        place += 1
        match code:
            case 0x20:  # ld [k]
                assert constant == RANDOM
                accumulator = number
            case 0x94:  # mod #k
                accumulator %= constant
            case 0x04:  # add #k
                accumulator += constant
            case 0x35:  # jge #k, if_true, if_false
                place += if_true if accumulator >= constant else if_false
            case 0x16:  # ret a
                return accumulator
            case _:
                raise AssertionError(f"instruction {code:#x}")


def test_all_slots_are_one_run() -> None:
    assert _decoded([0, 1, 2, 3]) == [(0x20, 0, 0, RANDOM), (0x94, 0, 0, 4), (0x04, 0, 0, 0), (0x16, 0, 0, 0)]


def test_each_run_has_its_shift() -> None:
    assert _decoded([1, 2, 5]) == [
        (0x20, 0, 0, RANDOM),
        (0x94, 0, 0, 3),
        (0x35, 2, 0, 2),
        (0x04, 0, 0, 1),
        (0x16, 0, 0, 0),
        (0x04, 0, 0, 3),
        (0x16, 0, 0, 0),
    ]


def _subsets(count: int) -> Iterator[Sequence[int]]:
    """All, each one alone, all but each one, every other one, and some of any kind."""
    everybody = range(count)
    yield everybody
    yield everybody[::2]
    yield everybody[1::2]
    for slot in everybody:
        yield [slot]
        yield [other for other in everybody if other != slot]
    chance = random.Random(count)
    for _ in range(20):
        yield sorted(chance.sample(everybody, chance.randint(1, count)))


@pytest.mark.parametrize("count", [*range(1, 33), 128])
def test_the_answers_are_the_slots_and_each_as_often_as_any_other(count: int) -> None:
    for slots in filter(None, _subsets(count)):
        instructions = _decoded(slots)
        assert len(instructions) <= 2 + 3 * count
        answers = Counter(_answer(instructions, number) for number in range(3 * len(slots)))
        assert answers == dict.fromkeys(slots, 3)


# The kernel


@contextmanager
def _opened(count: int, host: str = "127.0.0.1") -> Iterator[Listeners]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    with closing(open_listeners(host, port, count, 1024)) as listeners:
        yield listeners


def _connect(stack: ExitStack, listeners: Listeners, times: int) -> list[int]:
    """Make connections, and see how many each slot has in its queue then."""
    for _ in range(times):
        stack.enter_context(socket.create_connection((listeners.host, listeners.port), timeout=10))
    return [listeners.accept_queue(slot) for slot in range(len(listeners.sockets))]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("slots", [[0], [3], [1, 2], [0, 2, 4], [0, 1, 2, 3, 4]], ids=str)
def test_connections_go_to_the_slots_that_were_named(host: str, slots: list[int]) -> None:
    with _opened(5, host) as listeners, ExitStack() as stack:
        listeners.steering.steer(slots)
        queues = _connect(stack, listeners, 150)
        assert sum(queues) == 150
        assert [slot for slot, length in enumerate(queues) if length] == slots
        assert listeners.steering.status == "bpf"


def test_connections_are_spread_evenly() -> None:
    """Of 400 over 4 slots, 100 each; 60 are nearly five standard deviations away."""
    with _opened(4) as listeners, ExitStack() as stack:
        assert all(60 < length < 140 for length in _connect(stack, listeners, 400))


@contextmanager
def _stranger(listeners: Listeners) -> Iterator[socket.socket]:
    """Another program of this user that listens on the same port."""
    with socket.socket(listeners.sockets[0].family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((listeners.host, listeners.port))
        sock.listen(1024)
        sock.setblocking(False)
        yield sock


def _got_one(sock: socket.socket) -> bool:
    try:
        sock.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_stranger_that_joins_the_port_gets_nothing(count: int) -> None:
    with _opened(count) as listeners, _stranger(listeners) as stranger, ExitStack() as stack:
        assert sum(_connect(stack, listeners, 200)) == 200
        assert not _got_one(stranger)


@pytest.mark.parametrize("count", [1, 8])
def test_without_steering_the_stranger_would_get_its_share(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spearpool.supervisor.listeners.found_group", lambda _sock: None)
    monkeypatch.setattr(Steering, "steer", lambda _steering, _slots: None)
    with _opened(count) as listeners, _stranger(listeners) as stranger, ExitStack() as stack:
        assert sum(_connect(stack, listeners, 200)) < 200
        assert _got_one(stranger)


class Service:
    """Accepts whatever comes, at whatever slot, and answers with the slot's number."""

    def __init__(self, listeners: Listeners) -> None:
        self._selector = selectors.DefaultSelector()
        self._over, self._end = socket.socketpair()
        self._selector.register(self._over, selectors.EVENT_READ, None)
        for slot, sock in enumerate(listeners.sockets):
            self._selector.register(sock, selectors.EVENT_READ, slot)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                with cast(socket.socket, key.fileobj).accept()[0] as connection:
                    connection.sendall(bytes([key.data]))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end.close()
        self._thread.join(10 * TIME_SCALE)
        self._over.close()
        self._selector.close()


def test_the_program_is_replaced_while_connections_come() -> None:
    """None is refused, reset or left waiting, and what comes after a change goes where it should."""
    groups = [[0, 1, 2, 3], [0, 2], [3], [1, 2, 3]]
    with _opened(4) as listeners, Service(listeners):
        over = threading.Event()
        changes = itertools.count()

        def change() -> None:
            for slots in itertools.cycle(groups):
                listeners.steering.steer(slots)
                next(changes)
                if over.wait(0.0005):
                    return

        changing = threading.Thread(target=change)
        changing.start()
        try:
            answered = Counter(_ask(listeners) for _ in range(500))
        finally:
            over.set()
            changing.join(10 * TIME_SCALE)
        assert set(answered) == {0, 1, 2, 3}
        assert next(changes) > 10
        for slots in groups:
            listeners.steering.steer(slots)
            assert {_ask(listeners) for _ in range(40)} <= set(slots)


def _ask(listeners: Listeners) -> int:
    with socket.create_connection((listeners.host, listeners.port), timeout=10) as connection:
        (slot,) = connection.recv(1)
    return slot


# What it does with what it is told


class Kernel:
    """In a listening socket's place: notes what is attached and detached, and refuses when it should."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.refusal: int | None = None

    def setsockopt(self, _level: int, option: int, _value: object) -> None:
        self.calls.append(option)
        if self.refusal is not None:
            raise OSError(self.refusal, "no")


ATTACH, DETACH = 51, 68


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def steering(kernel: Kernel) -> Steering:
    return Steering(cast(Any, kernel))


def test_nothing_is_attached_for_no_change(kernel: Kernel, steering: Steering) -> None:
    for slots in ([0, 1], (0, 1), range(2)):
        steering.steer(slots)
    assert kernel.calls == [ATTACH]
    steering.steer([1])
    steering.steer([0, 1])
    assert kernel.calls == [ATTACH] * 3


def test_without_any_slot_the_last_program_stays(kernel: Kernel, steering: Steering) -> None:
    steering.steer([0, 1])
    steering.steer([])
    assert kernel.calls == [ATTACH]
    assert steering.status == "bpf"
    steering.steer([0, 1])
    assert kernel.calls == [ATTACH]


def test_a_refusal_is_told_and_a_program_of_before_is_gone(kernel: Kernel, steering: Steering) -> None:
    steering.steer([0, 1])
    kernel.refusal = errno.EPERM
    steering.steer([1])
    assert kernel.calls == [ATTACH, ATTACH, DETACH]
    assert steering.status == "hash: no"
    kernel.refusal = None
    steering.steer([0, 1])  # as it was when all was well: that program is not there any more
    assert kernel.calls[3:] == [ATTACH]
    assert steering.status == "bpf"


def test_a_refusal_is_logged_once(kernel: Kernel, steering: Steering, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, object]] = []
    monkeypatch.setattr("spearpool.log.Logger.warning", lambda _log, _event, **values: said.append(values))
    kernel.refusal = errno.ENOPROTOOPT
    for slots in ([0], [1], [0, 1]):
        steering.steer(slots)
    assert said == [{"reason": "no"}]


def test_a_socket_that_shares_its_port_with_nobody_cannot_be_steered_unless_it_founded_a_group() -> None:
    with socket.create_server(("127.0.0.1", 0)) as alone:
        steering = Steering(alone)
        steering.steer([0])
        assert steering.status == "hash: Invalid argument"
    with socket.socket() as founder:
        founder.bind(("127.0.0.1", 0))
        found_group(founder)
        assert founder.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        founder.listen()
        steering = Steering(founder)
        steering.steer([0])
        assert steering.status == "bpf"


def test_a_refusal_is_no_reason_not_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_sock: socket.socket, _slots: Sequence[int]) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("spearpool.supervisor.steering._attach", refused)
    with _opened(4) as listeners, ExitStack() as stack:
        assert listeners.steering.status == "hash: Operation not permitted"
        assert all(_connect(stack, listeners, 200))  # a hash
