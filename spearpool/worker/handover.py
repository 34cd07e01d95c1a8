"""Carries out what passes between this worker and its neighbours: the sockets, the books and the loads of `passage`.

A connection is moved by sending a duplicate of its descriptor in the offer. From then on it is not read here, nothing
is written, and its deadlines rest; whatever still happens to it (a revoked token, a signal for its agent) takes the
offer back. When the neighbour has it, our descriptor is closed, which the kernel does not tell the peer, because there
is another one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import assert_never

from spearpool.channel import ChannelClosed
from spearpool.metrics import MonitoringService, Seat, SeatState
from spearpool.metrics.loads import Loads

from .belongings import BELONGINGS, Belongings
from .connection import Connection
from .connection_manager import ConnectionManager
from .passage import (
    MAX_STATE_BYTES,
    Abandon,
    Action,
    Count,
    Discard,
    Keep,
    Offer,
    Passage,
    PassageEnd,
    Ready,
    Reclaim,
    Release,
    Send,
    TakeIn,
    Word,
    passage_end,
)

__all__ = ["HandOver"]


@dataclass(slots=True, eq=False)
class _Line:
    """The passage to the occupant of one seat. `whole` until its channel has ended."""

    seat: Seat
    channel: PassageEnd
    passage: Passage
    whole: bool = True


class HandOver:
    """All passages of one worker. `on_settled` is told of each connection that an offer was about, moved or not."""

    def __init__(
        self,
        seat: Seat,
        connections: ConnectionManager,
        monitoring: MonitoringService,
        on_settled: Callable[[Connection], None],
    ) -> None:
        self.loads = Loads(seat.segment, seat.index)
        self.handed_over = 0
        self._seat = seat
        self._connections = connections
        self._monitoring = monitoring
        self._on_settled = on_settled
        self._loop = asyncio.get_running_loop()
        self._lines: dict[int, _Line] = {}
        self._offered: dict[int, tuple[_Line, bytes]] = {}  # by connection

    # -------------------------------------------------------------------------------------------------- for the mover

    def neighbours(self) -> Iterator[Seat]:
        """The seats that a connection could be handed over to, were they ready."""
        return (line.seat for line in self._lines.values())

    def has_room(self, seat: int) -> bool:
        """Whether one more connection can be offered to that seat now."""
        line = self._lines.get(seat)
        return line is not None and line.passage.has_room

    def give(self, connection: Connection, seat: int) -> bool:
        """Offer a connection that is at rest; False when its state is too large to be moved."""
        line = self._lines[seat]
        state = BELONGINGS.pack(connection.belongings())
        if len(state) > MAX_STATE_BYTES:
            return False
        self.loads.send(seat)
        if connection.settled:
            self.loads.hold(-1)
        connection.hold()
        connection.moving = True
        self._offered[connection.number] = (line, state)
        self._perform(line, line.passage.offer(connection, state, time.monotonic()))
        return True

    def withdraw(self, connection: Connection) -> None:
        """Something happens to the connection: it stays, if it has been offered."""
        if connection.moving:
            line, _ = self._offered[connection.number]
            self._perform(line, line.passage.withdraw(connection))

    def expire(self, now: float) -> None:
        """Withdraw what has not been answered in time."""
        for line in list(self._lines.values()):
            for connection in line.passage.late(now):
                self.withdraw(connection)

    @property
    def busy(self) -> bool:
        """Whether anything is offered and not settled, by us or to us."""
        return any(line.passage.busy for line in self._lines.values())

    # ------------------------------------------------------------------------------------------------------- channels

    def open(self, seat: int, fd: int) -> None:
        """Our end of the channel to the new occupant of a seat; the one before is dead."""
        older = self._lines.get(seat)
        if older is not None:
            self._drain(older)
        self.loads.meet(seat)
        neighbour = Seat(self._seat.segment, seat)
        channel = passage_end(socket.socket(fileno=fd))
        line = _Line(neighbour, channel, Passage(neighbour.handed_over(self._seat.index)))
        self._lines[seat] = line
        self._loop.add_reader(channel.fileno(), self._hear, line)

    def close(self) -> None:
        """End all channels. What is offered is the neighbours' then; what they offered stays theirs."""
        for line in list(self._lines.values()):
            self._hang_up(line)
            self._perform(line, line.passage.close())

    def _hear(self, line: _Line) -> None:
        try:
            while line.whole and (heard := line.channel.receive()) is not None:
                self._take(line, *heard)
        except ChannelClosed:
            self._drain(line)

    def _drain(self, line: _Line) -> None:
        """The neighbour is dead: hear what it said last, and take over what it offered.

        Its death with words of ours unread is told as an error before the rest can be read, hence the second try.
        """
        for _ in range(2):
            try:
                while (heard := line.channel.receive()) is not None:
                    self._take(line, *heard)
            except ChannelClosed:
                pass
        self._hang_up(line)
        self._perform(line, line.passage.ended(line.seat.handed_over(self._seat.index)))
        self.loads.meet(line.seat.index)

    def _take(self, line: _Line, word: Word, fds: list[int]) -> None:
        welcome = True
        if isinstance(word, Offer):
            welcome = self._seat.state is SeatState.READY and self._connections.has_room
        self._perform(line, line.passage.heard(word, fds[0] if fds else None, welcome=welcome))

    def _hang_up(self, line: _Line) -> None:
        line.whole = False
        self._lines.pop(line.seat.index, None)
        self._loop.remove_reader(line.channel.fileno())
        self._loop.remove_writer(line.channel.fileno())
        line.channel.close()

    def _say(self, line: _Line, send: Send) -> bool:
        """False when it cannot be said: the neighbour is dead, or too many descriptors are on their way."""
        fds = [send.connection.fd] if isinstance(send.word, Offer) else []
        try:
            line.channel.send(send.word, fds)
        except (ChannelClosed, OSError):
            return False
        if line.channel.wants_write:
            self._loop.add_writer(line.channel.fileno(), self._flush, line)
        return True

    def _flush(self, line: _Line) -> None:
        try:
            line.channel.flush()
        except ChannelClosed:
            self._drain(line)
            return
        if not line.channel.wants_write:
            self._loop.remove_writer(line.channel.fileno())

    # ---------------------------------------------------------------------------------------------------- performing

    def _perform(self, line: _Line, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    if not self._say(line, action):
                        self._perform(line, line.passage.unsent(action))
                        return
                case Ready(connection):
                    self._decide(line, connection)
                case Count(connection):
                    self._monitoring.record_handed_over(connection.number, line.seat.index)
                case Release(connection):
                    self.handed_over += 1
                    self._settle(connection, self._connections.release)
                case Keep(connection):
                    self._stay(line, connection)
                case Reclaim(connection):
                    self._book_in(connection.belongings(), counted=False)
                    self._stay(line, connection)
                case Abandon(connection):
                    self._settle(connection, self._connections.abandon)
                case TakeIn(state, fd, counted):
                    self._take_in(line, BELONGINGS.unpack(state), fd, counted=counted)
                case Discard(fd):
                    os.close(fd)
                case _:
                    assert_never(action)

    def _take_in(self, line: _Line, belongings: Belongings, fd: int, *, counted: bool) -> None:
        self.loads.hold(1)
        self.loads.receive(line.seat.index)
        self._book_in(belongings, counted=counted)
        self._connections.take_in(belongings, socket.socket(fileno=fd))

    def _book_in(self, belongings: Belongings, *, counted: bool) -> None:
        peer = belongings.session.peer
        instance = 0 if peer.instance is None else peer.instance.pack()
        self._monitoring.record_taken_in(belongings.number, peer.label, instance, counted=counted)

    def _decide(self, line: _Line, connection: Connection) -> None:
        """The neighbour has accepted: give the connection away if nothing has happened to it, nor to the neighbour."""
        if line.channel.hung_up:
            return  # its end is about to be read, and what was not given away stays then
        _, state = self._offered[connection.number]
        as_offered = connection.at_rest and BELONGINGS.pack(connection.belongings()) == state
        self._perform(line, line.passage.commit(connection) if as_offered else line.passage.withdraw(connection))

    def _stay(self, line: _Line, connection: Connection) -> None:
        if connection.settled:
            self.loads.hold(1)
        self.loads.send(line.seat.index, -1)
        connection.let_go_on()
        self._settle(connection, self._connections.keep)

    def _settle(self, connection: Connection, how: Callable[[Connection], None]) -> None:
        del self._offered[connection.number]
        connection.moving = False
        how(connection)
        self._on_settled(connection)
