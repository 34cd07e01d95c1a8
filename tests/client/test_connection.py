"""One connection under many threads: each answer to its request, the reader's role passed on, futures, heartbeats."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from math import inf

import pytest

from spearpool.agent.dial import dial
from spearpool.client import connection as connection_module
from spearpool.client.connection import Connection
from spearpool.client.outcome import Answer, Lost, Overdue
from spearpool.errors import ConnectionLost, ErrorCode, LocalProtocolError
from spearpool.protocol.credentials import Role
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import (
    AuthRequest,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
)
from spearpool.protocol.session import SessionEvent, Side
from tests.conftest import eventually
from tests.stub_worker import SECRET, Peer, StubWorker, completed


@pytest.fixture
def worker() -> Iterator[StubWorker]:
    with StubWorker(Role.CLIENT) as worker:
        yield worker


@pytest.fixture
def connect(worker: StubWorker) -> Iterator[Callable[[], Connection]]:
    """Connects; the stub's end is accepted by whoever plays it. At the end nothing is left of what they keep."""
    connections: list[Connection] = []

    def connect() -> Connection:
        request = AuthRequest("me", SECRET, "1", "client", {})
        connection = Connection(*dial(Side.CLIENT, ("127.0.0.1", worker.port), request, 5.0))
        connection.start()
        connections.append(connection)
        return connection

    yield connect
    for connection in connections:
        connection.close()
        assert not connection._keeper.is_alive()
        assert (connection._calls, connection._followers, connection._open_futures) == ({}, {}, 0)
        assert not connection._untold
        assert not connection._callbacks


@pytest.fixture
def no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper does nothing by itself: whatever it is to do, somebody has to wake it. Comes before `ends`."""
    monkeypatch.setattr(connection_module, "_KEEPER_S", 60.0)


@pytest.fixture
def ends(worker: StubWorker, connect: Callable[[], Connection]) -> tuple[Connection, Peer]:
    """Both ends; the test itself plays the worker's."""
    peers: list[Peer] = []
    server = threading.Thread(target=lambda: peers.append(worker.accept()))
    server.start()
    connection = connect()
    server.join()
    return connection, peers[0]


def ask(text: str) -> ExecuteRequest:
    return ExecuteRequest("t", "", [text], {})


def output(answer: Answer) -> str | None:
    assert isinstance(answer, ExecuteResponse), answer
    return answer.output


def echo(peer: Peer) -> None:
    for number, request in peer.requests():
        peer.send(completed(request, request.args[0]), number)


class Caller(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, connection: Connection, text: str, give_up_at: float = inf) -> None:
        super().__init__()
        self._call: Callable[[], Answer] = lambda: connection.call(ask(text), give_up_at)
        self._answer: Answer | BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._call()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self._answer = error

    def answer(self) -> Answer | BaseException:
        self.join(10)
        assert self._answer is not None, "no answer"
        return self._answer


def test_one_call_after_another(worker: StubWorker, connect: Callable[[], Connection]) -> None:
    worker.play(echo)
    connection = connect()
    assert [output(connection.call(ask(str(n)), inf)) for n in range(100)] == [str(n) for n in range(100)]


def test_many_threads_get_each_their_own_answer(worker: StubWorker, connect: Callable[[], Connection]) -> None:
    def shuffle(peer: Peer) -> None:
        """Answer in batches of up to 7, in any order."""
        shuffler, held = random.Random(5), []
        for number, request in peer.requests():
            held.append((number, request))
            if len(held) >= shuffler.randint(1, 7) or not peer.events:
                shuffler.shuffle(held)
                for number, request in held:
                    peer.session.send(completed(request, request.args[0]), number)
                peer.flush()
                held.clear()

    worker.play(shuffle)
    connection = connect()
    wrong: list[str] = []

    def call_often(name: str) -> None:
        for turn in range(100):
            text = f"{name}-{turn}"
            if output(connection.call(ask(text), inf)) != text:
                wrong.append(text)

    threads = [threading.Thread(target=call_often, args=(str(n),)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_the_role_of_the_reader_is_passed_on(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    callers, numbers = [], []
    for text in "abc":
        callers.append(Caller(connection, text))
        numbers.append(peer.expect(ExecuteRequest)[0])
    for index in (0, 2, 1):  # the first is the reader; when it leaves, the second reads for the third
        request = ask("abc"[index])
        peer.send(completed(request, request.args[0]), numbers[index])
        answer = callers[index].answer()
        assert isinstance(answer, ExecuteResponse)
        assert answer.output == "abc"[index]


def test_a_reader_that_gives_up_passes_the_role_on(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    impatient = Caller(connection, "a", time.monotonic() + 0.2)
    peer.expect(ExecuteRequest)
    patient = Caller(connection, "b")
    number, request = peer.expect(ExecuteRequest)
    assert impatient.answer() == Overdue()
    peer.send(completed(request, "b"), number)
    assert output(patient.answer()) == "b"  # type: ignore[arg-type]


def test_a_late_answer_reaches_nobody(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    late = Caller(connection, "late", time.monotonic() + 0.05)
    late_number, late_request = peer.expect(ExecuteRequest)
    assert late.answer() == Overdue()
    caller = Caller(connection, "next")
    number, request = peer.expect(ExecuteRequest)
    assert number != late_number
    peer.send(completed(late_request, "late"), late_number)
    peer.send(completed(request, "next"), number)
    assert output(caller.answer()) == "next"  # type: ignore[arg-type]


def test_a_follower_may_give_up_too(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    reader = Caller(connection, "a")
    number, request = peer.expect(ExecuteRequest)
    assert Caller(connection, "b", time.monotonic() + 0.05).answer() == Overdue()
    peer.send(completed(request, "a"), number)
    assert output(reader.answer()) == "a"  # type: ignore[arg-type]


def test_news_of_a_running_execution_is_not_its_end(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    caller = Caller(connection, "a")
    number, request = peer.expect(ExecuteRequest)
    for status in (ExecutionStatus.RECEIVED, ExecutionStatus.STARTED, ExecutionStatus.RUNNING):
        peer.send(ExecuteResponse("t", status), number)
    peer.send(completed(request, "end"), number)
    assert output(caller.answer()) == "end"  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["request id", "related id"])
def test_an_error_belongs_to_its_request(ends: tuple[Connection, Peer], by: str) -> None:
    connection, peer = ends
    caller = Caller(connection, "a")
    number, _ = peer.expect(ExecuteRequest)
    error = ErrorMessage(ErrorCode.UNKNOWN, "no task", None, number)
    peer.send(ErrorMessage(ErrorCode.INTERNAL, "about nothing of ours", None, None), 4711)
    peer.send(error, number if by == "request id" else 4711)
    assert caller.answer() == error


def test_the_end_of_the_connection_is_everybodys(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    answers: list[Answer] = []
    callers = [Caller(connection, text) for text in "abc"]
    connection.submit(ask("d"), inf, answers.append)
    for _ in range(4):
        peer.expect(ExecuteRequest)
    peer.leave(CloseReason.DRAIN)
    assert [caller.answer() for caller in callers] == [Lost("peer: drain")] * 3
    eventually(lambda: answers == [Lost("peer: drain")])
    assert not connection.open
    with pytest.raises(ConnectionLost):
        connection.call(ask("e"), inf)
    with pytest.raises(ConnectionLost):
        connection.submit(ask("f"), inf, answers.append)


@pytest.mark.usefixtures("no_look")
def test_an_idle_connection_ends_at_once(worker: StubWorker, connect: Callable[[], Connection]) -> None:
    worker.play(echo)
    connection = connect()
    began = time.monotonic()
    connection.close()
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("no_look")
def test_the_keeper_ends_with_the_connection(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    caller = Caller(connection, "a")
    peer.expect(ExecuteRequest)
    peer.close()
    assert isinstance(caller.answer(), Lost)
    eventually(lambda: not connection._keeper.is_alive())


def test_close_ends_what_is_under_way(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    answers: list[Answer] = []
    caller = Caller(connection, "a")
    connection.submit(ask("b"), inf, answers.append)
    peer.expect(ExecuteRequest)
    peer.expect(ExecuteRequest)
    connection.close()
    assert isinstance(caller.answer(), Lost)
    assert len(answers) == 1
    assert isinstance(answers[0], Lost)
    assert peer.expect_closed().detail == "drain"


def test_no_future_is_forgotten_when_the_keeper_ends(
    ends: tuple[Connection, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, peer = ends
    answers: list[Answer] = []
    caller = Caller(connection, "a")  # the reader, so that it is not the keeper who gives out what follows
    peer.expect(ExecuteRequest)
    connection.submit(ask("b"), inf, answers.append)
    peer.expect(ExecuteRequest)
    settle = connection._settle

    def slowly(number: int, answer: Answer) -> None:
        connection._wake_keeper()
        time.sleep(0.05)
        settle(number, answer)

    monkeypatch.setattr(connection, "_settle", slowly)
    connection.close()
    assert isinstance(caller.answer(), Lost)
    assert len(answers) == 1


def test_a_connection_that_ended_while_idle_is_noticed_before_anything_is_sent(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    time.sleep(2 * connection_module._STALE_S)
    peer.close()
    with pytest.raises(ConnectionLost):
        eventually(lambda: connection.call(ask("a"), inf))


def test_heartbeats_of_an_idle_connection_are_answered(ends: tuple[Connection, Peer]) -> None:
    _, peer = ends
    began = time.monotonic()
    for sequence in range(2):
        number = peer.ping(sequence)
        answered, heartbeat = peer.expect(Heartbeat)
        assert (answered, heartbeat.sequence) == (number, sequence)
    assert time.monotonic() - began < 2 * connection_module._KEEPER_S + 5


def test_heartbeats_are_answered_while_a_call_waits(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    caller = Caller(connection, "a")
    number, request = peer.expect(ExecuteRequest)
    peer.ping(7)
    assert peer.expect(Heartbeat)[1].sequence == 7
    peer.send(completed(request, "a"), number)
    caller.join()


@pytest.mark.parametrize("submitted", [False, True], ids=["call", "submit and wait"])
def test_a_single_caller_reads_its_own_answers(
    worker: StubWorker, connect: Callable[[], Connection], submitted: bool
) -> None:
    worker.play(echo)
    connection = connect()
    readers: Counter[str] = Counter()
    take = connection._take

    def note(events: list[SessionEvent]) -> None:
        if events:
            readers[threading.current_thread().name] += 1
        take(events)

    connection._take = note  # type: ignore[method-assign]
    began = time.monotonic()
    for number in range(500):
        if submitted:
            call = connection.submit(ask(str(number)), inf, lambda _: None)
            connection.wait(call, inf)
            assert output(call.answer) == str(number)  # type: ignore[arg-type]
        else:
            assert output(connection.call(ask(str(number)), inf)) == str(number)
    # The keeper looks once a second; it reads for futures, too, when the machine had no time for us between the two
    # steps, and then goes on for a while.
    others = 250 if submitted else (time.monotonic() - began) / connection_module._KEEPER_S + 1
    assert readers.pop(threading.current_thread().name) >= 500 - others
    assert readers.total() <= others


def test_answers_that_nobody_waits_for_come_from_the_keeper(
    worker: StubWorker, connect: Callable[[], Connection]
) -> None:
    worker.play(echo)
    connection = connect()
    answers: list[tuple[str | None, str]] = []
    for number in range(200):
        connection.submit(
            ask(str(number)), inf, lambda answer: answers.append((output(answer), threading.current_thread().name))
        )
    eventually(lambda: len(answers) == 200)
    assert [text for text, _ in answers] == [str(number) for number in range(200)]
    assert {name for _, name in answers} == {"spearpool-keeper"}


def test_the_keeper_reads_again_when_nobody_waits_any_more(
    worker: StubWorker, connect: Callable[[], Connection]
) -> None:
    worker.play(echo)
    connection = connect()
    answers: list[str | None] = []
    for number in range(20):
        connection.wait(connection.submit(ask("waited for"), inf, lambda _: None), inf)
        connection.submit(ask(str(number)), inf, lambda answer: answers.append(output(answer)))
        eventually(lambda number=number: len(answers) == number + 1)  # type: ignore[misc]


@pytest.mark.usefixtures("no_look")
def test_the_keeper_reads_when_the_last_caller_leaves(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    caller = Caller(connection, "a")
    first = peer.expect(ExecuteRequest)
    answers: list[Answer] = []
    connection.submit(ask("b"), inf, answers.append)
    second = peer.expect(ExecuteRequest)
    peer.send(completed(first[1], "a"), first[0])
    caller.answer()
    peer.send(completed(second[1], "b"), second[0])
    eventually(lambda: [output(answer) for answer in answers] == ["b"])


@pytest.mark.usefixtures("no_look")
def test_who_comes_to_wait_takes_the_role_from_the_keeper(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    answers: list[Answer] = []
    call = connection.submit(ask("a"), inf, answers.append)
    number, request = peer.expect(ExecuteRequest)
    eventually(lambda: connection._reader is connection)
    noticed = threading.Event()
    stops_reading = connection._stops_reading

    def note() -> None:
        stops_reading()
        noticed.set()

    connection._stops_reading = note  # type: ignore[method-assign]
    waiter = threading.Thread(target=connection.wait, args=(call, inf))
    waiter.start()
    assert noticed.wait(10)  # though nothing came
    assert connection._reader is call
    peer.send(completed(request, "a"), number)
    waiter.join(5)
    assert [output(answer) for answer in answers] == ["a"]


def test_the_role_may_be_taken_while_the_keeper_gives_out_the_answer(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    taken, go_on = threading.Event(), threading.Event()
    take = connection._take

    def slowly(events: list[SessionEvent]) -> None:
        taken.set()
        assert go_on.wait(10)
        take(events)

    connection._take = slowly  # type: ignore[method-assign]
    call = connection.submit(ask("a"), inf, lambda _: None)
    number, request = peer.expect(ExecuteRequest)
    peer.send(completed(request, "a"), number)
    assert taken.wait(10)
    waiter = threading.Thread(target=connection.wait, args=(call, time.monotonic() + 20))
    waiter.start()
    eventually(lambda: connection._reader is call)
    go_on.set()
    waiter.join(10)
    assert not waiter.is_alive()
    assert call.answer is not None


def test_waiting_ends_with_its_time_and_the_answer_comes_all_the_same(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    answers: list[Answer] = []
    call = connection.submit(ask("a"), inf, answers.append)
    number, request = peer.expect(ExecuteRequest)
    for _ in range(3):
        until = time.monotonic() + 0.02
        connection.wait(call, until)
        assert time.monotonic() >= until
    assert call.answer is None
    peer.send(completed(request, "a"), number)
    eventually(lambda: [output(answer) for answer in answers] == ["a"])


def test_a_call_that_another_thread_waits_for_is_not_waited_for_twice(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    reader = Caller(connection, "reader")
    first = peer.expect(ExecuteRequest)
    call = connection.submit(ask("a"), inf, lambda _: None)
    second = peer.expect(ExecuteRequest)
    waiter = threading.Thread(target=connection.wait, args=(call, inf))
    waiter.start()
    eventually(lambda: call in connection._followers)
    connection.wait(call, inf)
    assert waiter.is_alive()
    peer.send(completed(first[1], "reader"), first[0])
    assert output(reader.answer()) == "reader"  # type: ignore[arg-type]
    eventually(lambda: connection._reader is call)
    connection.wait(call, inf)
    assert waiter.is_alive()
    peer.send(completed(second[1], "a"), second[0])
    waiter.join(5)
    assert call.answer is not None
    connection.wait(call, inf)


def test_callers_and_waiters_and_futures_side_by_side(worker: StubWorker, connect: Callable[[], Connection]) -> None:
    worker.play(echo)
    connection = connect()
    told: list[str | None] = []
    wrong: list[str] = []

    def mix(name: str) -> None:
        chance = random.Random(name)
        for turn in range(150):
            text = f"{name}-{turn}"
            if chance.random() < 0.3 and output(connection.call(ask(text), inf)) != text:
                wrong.append(text)
            call = connection.submit(ask(text), inf, lambda answer: told.append(output(answer)))
            if chance.random() < 0.5:
                connection.wait(call, time.monotonic() + chance.choice([0.0, 0.0005, 5.0]))

    threads = [threading.Thread(target=mix, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    eventually(lambda: len(told) == 8 * 150)
    assert sorted(map(str, told)) == sorted(f"{name}-{turn}" for name in range(8) for turn in range(150))
    assert wrong == []


def test_an_interrupt_amid_the_answers_ends_the_connection(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    answers: list[Answer] = []

    def interrupted(events: list[SessionEvent]) -> None:
        del connection._take
        raise KeyboardInterrupt

    connection.submit(ask("a"), inf, answers.append)
    peer.expect(ExecuteRequest)
    caller = Caller(connection, "b")
    number, request = peer.expect(ExecuteRequest)
    connection._take = interrupted  # type: ignore[method-assign]
    peer.send(completed(request, "b"), number)
    assert isinstance(caller.answer(), KeyboardInterrupt)
    eventually(lambda: [type(answer) for answer in answers] == [Lost])
    assert not connection.open


@pytest.mark.usefixtures("no_look")
def test_what_the_keeper_is_asked_to_do_is_done(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    names: list[str] = []
    caller = Caller(connection, "a")
    peer.expect(ExecuteRequest)

    def note() -> None:
        names.append(threading.current_thread().name)

    connection.call_back(note)
    eventually(lambda: names == ["spearpool-keeper"])
    connection.close()
    assert isinstance(caller.answer(), Lost)
    connection.call_back(note)
    assert names == ["spearpool-keeper", threading.current_thread().name]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_ends_the_keeper_ends_the_connection(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    answers: list[Answer] = []
    connection.submit(ask("a"), inf, answers.append)
    peer.expect(ExecuteRequest)
    connection.call_back(sys.exit)
    eventually(lambda: [type(answer) for answer in answers] == [Lost])
    assert not connection.open


def test_a_future_that_nobody_answers_ends(ends: tuple[Connection, Peer]) -> None:
    connection, peer = ends
    answers: list[Answer] = []
    connection.submit(ask("a"), time.monotonic() + 0.05, answers.append)
    number, request = peer.expect(ExecuteRequest)
    eventually(lambda: answers == [Overdue()])
    peer.send(completed(request, "late"), number)
    peer.ping()
    peer.expect(Heartbeat)
    assert len(answers) == 1


def test_a_request_that_cannot_be_sent_leaves_the_connection_usable(
    worker: StubWorker, connect: Callable[[], Connection]
) -> None:
    worker.play(echo)
    connection = connect()
    with pytest.raises(LocalProtocolError):
        connection.call(ask("\ud800"), inf)
    with pytest.raises(LocalProtocolError):
        connection.submit(ask("\ud800"), inf, lambda _: None)
    assert output(connection.call(ask("x"), inf)) == "x"
    assert connection._open_futures == 0
