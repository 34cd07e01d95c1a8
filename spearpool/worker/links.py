"""Links: the streams between this worker and its neighbours, and the board that they share.

A link carries `SpearMessage` frames of version 2 over a socketpair that the supervisor made and handed to both ends, so
nobody has to authenticate, nor to agree on an encoding. Its end of file says that the neighbour is dead.
Every message names its execution by the `execution_id`; request ids are only numbers.

| message | means |
|---|---|
| ExecuteRequest, `hops` 1 | execute this now, or refuse it |
| Error, `details` = execution id | refused: nothing was started |
| ExecuteResponse, final | the answer; `error_code` 502 when the outcome is unknown |
| Signal Terminate, `execution_id` | nobody waits for it any more |
| Signal `@nudge`, `task_id` | send me one of those that wait |
| Signal `@unused`, `task_id` | there is none: the answer to a nudge that brings no ExecuteRequest |
| Signal `@located`, `@mislaid`, `execution_id` | its agent came here; it is gone again |
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Protocol, cast

from spearpool.errors import ErrorCode, RemoteProtocolError
from spearpool.log import get_logger
from spearpool.metrics import Board, Seat, SeatState
from spearpool.protocol.codec_v2 import MSGPACK_V2
from spearpool.protocol.framing import FrameReader, frame
from spearpool.protocol.messages import (
    Custom,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    MessageType,
    Payload,
    Signal,
    SignalName,
)

from .outbox import Outbox

__all__ = ["Link", "LinkHandler", "Links", "SharedBoard"]

_ROOM_BYTES = 64 * 1024
"""How much larger a frame may be on a link than elsewhere: so what is passed on, with more fields, always fits."""


_NUDGE, _UNUSED, _LOCATED, _MISLAID = Custom("@nudge"), Custom("@unused"), Custom("@located"), Custom("@mislaid")


class LinkHandler(Protocol):
    """What is done with what comes over links."""

    def link_up(self, link: Link, /) -> None: ...

    def link_submitted(self, link: Link, request_id: int, request: ExecuteRequest, /) -> None: ...

    def link_refused(self, link: Link, execution_id: str, /) -> None: ...

    def link_answered(self, link: Link, execution_id: str, response: ExecuteResponse, /) -> None: ...

    def link_cancelled(self, link: Link, execution_id: str, /) -> None: ...

    def link_nudged(self, link: Link, task: str, /) -> None: ...

    def link_unused(self, link: Link, task: str, /) -> None: ...

    def link_located(self, link: Link, execution_id: str, /) -> None: ...

    def link_mislaid(self, link: Link, execution_id: str, /) -> None: ...

    def link_down(self, link: Link, /) -> None:
        """The last call for a link."""
        ...


class Link(asyncio.Protocol):
    """Our end of the stream to a worker. `congested` while it does not read what we wrote."""

    def __init__(
        self,
        incarnation: int,
        seat: int,
        handler: LinkHandler,
        outbox: Outbox,
        max_message_bytes: int,
        on_over: Callable[[Link], None],
    ) -> None:
        self.incarnation = incarnation
        self.seat = seat
        self.congested = False
        self.posted = False
        self._handler = handler
        self._on_over = on_over
        self._outbox = outbox
        self._max_bytes = max_message_bytes + _ROOM_BYTES
        self._reader = FrameReader(self._max_bytes)
        self._outgoing: list[bytes] = []
        self._numbers = itertools.count(1)
        self._transport: asyncio.Transport | None = None
        self._over = False

    # ------------------------------------------------------------------------------------------------- what we say

    def forward(self, request: ExecuteRequest) -> None:
        self.reply(next(self._numbers), request)

    def reply(self, request_id: int, payload: Payload) -> None:
        """Queue a message; it is lost when the link is down."""
        if self._transport is not None:
            self._outgoing.append(frame(MSGPACK_V2.encode(payload, request_id, time.time_ns()), self._max_bytes))
            self._outbox.post(self)

    def refuse(self, request_id: int, code: ErrorCode, message: str, details: str | None = None) -> None:
        """`details` is the execution id, by which the neighbour knows what was refused."""
        self.reply(request_id, ErrorMessage(code, message, details, request_id))

    def relay(self, response: ExecuteResponse) -> None:
        """An answer that found its way here although the execution had not been forwarded."""
        self.reply(0, response)

    def terminate(self, execution_id: str) -> None:
        self.reply(0, Signal(SignalName.TERMINATE, execution_id=execution_id))

    def nudge(self, task: str) -> None:
        self.reply(0, Signal(_NUDGE, task))

    def unused(self, task: str) -> None:
        self.reply(0, Signal(_UNUSED, task))

    def located(self, execution_id: str) -> None:
        self.reply(0, Signal(_LOCATED, execution_id=execution_id))

    def mislaid(self, execution_id: str) -> None:
        self.reply(0, Signal(_MISLAID, execution_id=execution_id))

    def close(self) -> None:
        """End the link, and report it down. What was said before still goes out."""
        self.flush()
        self._over = True
        self._on_over(self)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            self._handler.link_down(self)

    def flush(self) -> None:
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # ------------------------------------------------------------------------------------------ what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._over:
            cast(asyncio.Transport, transport).abort()
        else:
            self._transport = cast(asyncio.Transport, transport)
            self._handler.link_up(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (body := self._reader.next_frame()) is not None:
                self._take(*MSGPACK_V2.open(body))
        except RemoteProtocolError as error:
            get_logger(__name__).error("link broken", incarnation=self.incarnation, error=str(error))
            self.close()

    def _take(self, kind: MessageType, request_id: int, packed: bytes) -> None:
        match MSGPACK_V2.decode_payload(kind, packed):
            case ExecuteRequest() as request:
                self._handler.link_submitted(self, request_id, request)
            case ExecuteResponse(execution_id=str(name)) as response:
                self._handler.link_answered(self, name, response)
            case ErrorMessage(details=str(name)):
                self._handler.link_refused(self, name)
            case Signal(SignalName.TERMINATE, execution_id=str(name)):
                self._handler.link_cancelled(self, name)
            case Signal(signal_type, str(task)) if signal_type == _NUDGE:
                self._handler.link_nudged(self, task)
            case Signal(signal_type, str(task)) if signal_type == _UNUSED:
                self._handler.link_unused(self, task)
            case Signal(signal_type, execution_id=str(name)) if signal_type == _LOCATED:
                self._handler.link_located(self, name)
            case Signal(signal_type, execution_id=str(name)) if signal_type == _MISLAID:
                self._handler.link_mislaid(self, name)
            case payload:
                raise RemoteProtocolError(f"{payload} has no meaning on a link")

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a reset says no more than an end
        self.close()


class Links:
    """The links of this worker, one to each neighbour: by incarnation, because a slot can have two workers."""

    def __init__(self, handler: LinkHandler, outbox: Outbox, max_message_bytes: int) -> None:
        self._handler = handler
        self._outbox = outbox
        self._max_message_bytes = max_message_bytes
        self._links: dict[int, Link] = {}

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def get(self, incarnation: int) -> Link | None:
        return self._links.get(incarnation)

    def to(self, incarnation: int) -> Link:
        """The link to a neighbour that was reported up, and not yet down."""
        return self._links[incarnation]

    async def open(self, incarnation: int, seat: int, fd: int) -> None:
        """Take over our end of a new link. Who sat there before is dead: a link to it is reported down first."""
        for older in [link for link in self if link.seat == seat]:
            older.close()
        link = Link(incarnation, seat, self._handler, self._outbox, self._max_message_bytes, self._forget)
        self._links[incarnation] = link
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)

    def close(self) -> None:
        for link in list(self):
            link.close()

    def _forget(self, link: Link) -> None:
        if self._links.get(link.incarnation) is link:
            del self._links[link.incarnation]


class SharedBoard:
    """The board in shared memory as the dispatcher sees it: neighbours by incarnation, tasks by place in `columns`."""

    def __init__(self, seat: Seat, columns: Sequence[int], links: Links) -> None:
        self._seat = seat
        self._columns = tuple(columns)
        self._links = links
        self._board = Board(seat.segment)
        self._neighbours: dict[int, Seat] = {}

    def publish(self, task: int, free: int, queued: int, since: float) -> None:
        self._seat.publish_capacity(self._columns[task], free, queued, int(since * 1e9))

    def free(self, task: int) -> dict[int, int]:
        words = self._board.free(self._columns[task])
        if not any(words):
            return {}
        return {link.incarnation: words[link.seat] for link in self._links if words[link.seat] and not link.congested}

    def waiting(self, task: int, before: float) -> dict[int, float]:
        words = self._board.since_ns(self._columns[task])
        before_ns = before * 1e9
        if min(filter(None, words), default=inf) >= before_ns:  # the usual case, on the way of every answer
            return {}
        return {link.incarnation: words[link.seat] * 1e-9 for link in self._links if 0 < words[link.seat] < before_ns}

    def queued(self, incarnation: int, task: int) -> int:
        _, queued = self._board.capacity(self._links.to(incarnation).seat, self._columns[task])
        return queued

    def publish_arrived(self, incarnation: int, count: int) -> None:
        self._seat.publish_arrived(self._links.to(incarnation).seat, count)

    def arrived(self, incarnation: int) -> int:
        return self._board.arrived(self._links.to(incarnation).seat, self._seat.index)

    def congested(self, incarnation: int) -> bool:
        return self._links.to(incarnation).congested

    def leaving(self, incarnation: int) -> bool:
        link = self._links.get(incarnation)
        return link is None or self._state(link.seat) is SeatState.LEAVING

    def _state(self, seat: int) -> SeatState:
        found = self._neighbours.get(seat)
        if found is None:
            found = self._neighbours[seat] = Seat(self._seat.segment, seat)
        return found.state
