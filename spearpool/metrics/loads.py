"""How long-lived connections are spread over the workers: what each seat holds, and what is on its way between two.

Balance needs loads that are exact while connections move. So a seat says how many it holds (`settled`), how many it
has ever sent to each other seat, and how many it has ever received from each; who sends counts *before* the connection
stops being its own, who receives counts *after* it has become its own. What another seat will have is what it holds and
what was sent to it and has not been received. Every word has one writer. A connection that is just moving may be seen
twice for a moment, and is never overlooked.

`sent` and `received` begin from zero with every new occupant at the other end. That a connection has changed hands for
good is another matter and stands in the books: `Seat.hand_over`.
"""

from __future__ import annotations

from collections.abc import Iterable

from .segment import Segment

__all__ = ["Loads"]


class Loads:
    """The words of the occupant of `seat`, and what it can read of the others'."""

    def __init__(self, segment: Segment, seat: int) -> None:
        self._words = segment.words
        self._first_load = segment.layout.seat_part(0, "load").offset // 8
        self._first_sent = segment.layout.seat_part(0, "sent").offset // 8
        self._first_received = segment.layout.seat_part(0, "received").offset // 8
        self._stride = segment.layout.seat_bytes // 8
        self._places = 2 * segment.layout.slots
        self._load = segment.seat_part(seat, "load")
        self._sent = segment.seat_part(seat, "sent")
        self._received = segment.seat_part(seat, "received")

    def hold(self, count: int) -> None:
        """So many more are held here, or fewer."""
        self._load[0] += count

    def send(self, seat: int, count: int = 1) -> None:
        """So many more are on their way to a seat; fewer, when they come back."""
        self._sent[seat] += count

    def receive(self, seat: int) -> None:
        """One that came from that seat is held here now."""
        self._received[seat] += 1

    def meet(self, seat: int) -> None:
        """There is a new occupant: nothing is on its way, in neither direction."""
        self._sent[seat] = 0
        self._received[seat] = 0

    def of(self, seats: Iterable[int]) -> dict[int, int]:
        """What these seats hold, or will: a moment old by nature."""
        return {seat: self._words[self._first_load + seat * self._stride] + self._coming(seat) for seat in seats}

    def _coming(self, seat: int) -> int:
        first = self._first_received + seat * self._stride
        received = self._words[first : first + self._places].tolist()
        sent = self._words[self._first_sent + seat :: self._stride].tolist()
        return sum(gone - come for gone, come in zip(sent, received, strict=False) if gone > come)
