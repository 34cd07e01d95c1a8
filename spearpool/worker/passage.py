"""How a connection passes from one worker to another: the words of it, and who owns the connection after each.

    giver                                     taker
      │ Offer (state, descriptor)               │    the giver neither reads nor writes the connection any more
      ├────────────────────────────────────────►│    the taker holds a descriptor, and does nothing with it
      │                       Accepted, Refused │
      │◄────────────────────────────────────────┤
      │ Commit, Withdrawn                       │
      ├────────────────────────────────────────►│

The giver owns it until it says Commit; a refused or withdrawn offer leaves everything as it was. The taker owns it from
Commit on, or from the end of the channel on: then the giver is dead, and what it had offered lives on with the taker.
The end of the channel tells the giver that the taker is dead: what was not committed stays. So at any time one of two
living workers owns a connection, and if one of them dies at any point between, the other one does.

In the books a connection changes hands by one word of the giver's (`Seat.hand_over`), which is stored before Commit is
said. A taker that inherits compares the word with the Commits it has read: what the giver had not counted is booked as
closed by its crash, so it is booked as opened here. Likewise a giver that cannot say Commit after it has counted takes
the connection back as a new one: it is booked with the dead taker.

Each `Offer` is answered exactly once, also when it has been withdrawn meanwhile, and only `MAX_UNANSWERED` may wait for
that: so a neighbour that hangs never fills its socket, and Commit and Withdrawn can always be said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spearpool.channel import Channel
from spearpool.packing import Packer, Record

__all__ = [
    "MAX_STATE_BYTES",
    "MAX_UNANSWERED",
    "OFFER_TIMEOUT_S",
    "Abandon",
    "Accepted",
    "Action",
    "Commit",
    "Count",
    "Discard",
    "Keep",
    "Offer",
    "Passage",
    "PassageEnd",
    "Ready",
    "Reclaim",
    "Refused",
    "Release",
    "Send",
    "TakeIn",
    "Withdrawn",
    "Word",
    "passage_end",
]

MAX_STATE_BYTES = 64 * 1024
MAX_UNANSWERED = 64
MAX_UNANSWERED_BYTES = 64 * 1024
OFFER_TIMEOUT_S = 0.5


# The words


class Offer(Record, frozen=True):
    """Take this connection? With its descriptor."""

    number: int
    state: bytes


class Accepted(Record, frozen=True):
    number: int


class Refused(Record, frozen=True):
    number: int


class Commit(Record, frozen=True):
    """It is yours."""

    number: int


class Withdrawn(Record, frozen=True):
    """It is not: forget it."""

    number: int


Word = Offer | Accepted | Refused | Commit | Withdrawn
PassageEnd = Channel[Word, Word]
_WORDS: Packer[Word] = Packer(Word)


def passage_end(channel_socket: Any) -> PassageEnd:
    """Our end of the channel to one neighbour. A descriptor for which there is no room here is simply missing."""
    return Channel(channel_socket, _WORDS, _WORDS, may_lack_fds=True)


# What is to be done about it, in order. `connection` is the shell's own object.


@dataclass(frozen=True, slots=True)
class Send:
    """Say this. If it cannot be said, the rest is void: call `unsent`, and do what that returns."""

    word: Word
    connection: Any = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The neighbour accepted. Call `commit` if the connection is still as it was offered, else `withdraw`."""

    connection: Any


@dataclass(frozen=True, slots=True)
class Count:
    """Book the connection as handed over to the neighbour."""

    connection: Any


@dataclass(frozen=True, slots=True)
class Release:
    """The connection is the neighbour's: let go of it without a word to the peer."""

    connection: Any


@dataclass(frozen=True, slots=True)
class Keep:
    """The connection stays and goes on."""

    connection: Any


@dataclass(frozen=True, slots=True)
class Reclaim:
    """It stays, though it was booked as handed over: book it as a new one."""

    connection: Any


@dataclass(frozen=True, slots=True)
class Abandon:
    """We end the channel with the offer open: it is the neighbour's, who books it as a new one. Book it as closed."""

    connection: Any


@dataclass(frozen=True, slots=True)
class TakeIn:
    """The connection behind `fd` is ours; book it as a new one unless the giver `counted` it as handed over."""

    state: bytes
    fd: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Discard:
    """Close the descriptor: it is not ours after all."""

    fd: int


Action = Send | Ready | Count | Release | Keep | Reclaim | Abandon | TakeIn | Discard


@dataclass(slots=True)
class _Offered:
    connection: Any
    until: float


class Passage:
    """What passes between this worker and one neighbour, both ways. `counted` is the neighbour's word when it began."""

    def __init__(self, counted: int = 0) -> None:
        self._counted = counted
        self._next_number = 1
        self._offered: dict[int, _Offered] = {}
        self._unanswered: dict[int, int] = {}  # bytes by number; withdrawn ones, too
        self._unanswered_bytes = 0
        self._awaited: dict[int, tuple[bytes, int]] = {}  # accepted here: state and descriptor

    # ------------------------------------------------------------------------------------------------------- giving

    @property
    def busy(self) -> bool:
        """Whether any offer is open, of ours or of theirs."""
        return bool(self._offered or self._awaited)

    @property
    def has_room(self) -> bool:
        """Whether one more may be offered now: not to who has many to answer already, or is late with one."""
        few = len(self._unanswered) < MAX_UNANSWERED and self._unanswered_bytes < MAX_UNANSWERED_BYTES
        return few and self._unanswered.keys() <= self._offered.keys()

    def offer(self, connection: Any, state: bytes, now: float) -> list[Action]:
        number, self._next_number = self._next_number, self._next_number + 1
        self._offered[number] = _Offered(connection, now + OFFER_TIMEOUT_S)
        self._unanswered[number] = len(state)
        self._unanswered_bytes += len(state)
        return [Send(Offer(number, state), connection)]

    def commit(self, connection: Any) -> list[Action]:
        """Give it away for good; it must have been `Ready` just now."""
        number = self._take_back(connection)
        return [Count(connection), Send(Commit(number), connection), Release(connection)]

    def withdraw(self, connection: Any) -> list[Action]:
        """Take an open offer back."""
        number = self._take_back(connection)
        return [Send(Withdrawn(number), connection), Keep(connection)]

    def unsent(self, send: Send) -> list[Action]:
        """A word could not be said."""
        match send.word:
            case Offer(number):
                del self._offered[number]
                self._answered(number)
                return [Keep(send.connection)]
            case Commit():
                return [Reclaim(send.connection)]
            case Withdrawn():
                return [Keep(send.connection)]
            case _:
                return []  # an answer: the end of the channel, which follows, tells the rest

    def late(self, now: float) -> list[Any]:
        """Whose offers have not been answered in time: withdraw each. To be asked now and then while it is `busy`."""
        return [offered.connection for offered in self._offered.values() if offered.until <= now]

    # ------------------------------------------------------------------------------------------------------- hearing

    def heard(self, word: Word, fd: int | None, *, welcome: bool = True) -> list[Action]:
        """Act on a word of the neighbour's. An Offer is accepted if it brings a descriptor and is `welcome`."""
        match word:
            case Offer(number, state):
                if welcome and fd is not None:
                    self._awaited[number] = (state, fd)
                    return [Send(Accepted(number))]
                return [*([] if fd is None else [Discard(fd)]), Send(Refused(number))]
            case Accepted(number):
                self._answered(number)
                return [Ready(self._offered[number].connection)] if number in self._offered else []
            case Refused(number):
                self._answered(number)
                offered = self._offered.pop(number, None)
                return [] if offered is None else [Keep(offered.connection)]
            case Commit(number):
                self._counted += 1
                state, found = self._awaited.pop(number)
                return [TakeIn(state, found, counted=True)]
            case Withdrawn(number):
                awaited = self._awaited.pop(number, None)  # None: we had refused it
                return [] if awaited is None else [Discard(awaited[1])]

    # --------------------------------------------------------------------------------------------------- the end of it

    def ended(self, counted: int) -> list[Action]:
        """The neighbour is dead: what it offered is ours, what we offered stays. `counted` is its word now."""
        missing = counted - self._counted  # counted as ours, and the Commit was not said
        heritage = enumerate(self._awaited.values())
        actions: list[Action] = [TakeIn(state, fd, counted=place < missing) for place, (state, fd) in heritage]
        self._awaited.clear()
        return actions + [Keep(connection) for connection in self._forget_offers()]

    def close(self) -> list[Action]:
        """We end the channel: to the neighbour we are as good as dead."""
        actions: list[Action] = [Discard(fd) for _, fd in self._awaited.values()]
        self._awaited.clear()
        return actions + [Abandon(connection) for connection in self._forget_offers()]

    def _forget_offers(self) -> list[Any]:
        offered = [each.connection for each in self._offered.values()]
        self._offered.clear()
        return offered

    def _take_back(self, connection: Any) -> int:
        number = next(number for number, offered in self._offered.items() if offered.connection is connection)
        del self._offered[number]
        return number

    def _answered(self, number: int) -> None:
        self._unanswered_bytes -= self._unanswered.pop(number)
