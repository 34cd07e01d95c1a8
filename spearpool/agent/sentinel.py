"""The sentinel: a thread that reads the connection while a handler keeps the main thread busy for long.

An instance of concurrency 1 does everything in its main thread: wait, read, run the handler, answer. That is the fast
path: no other thread is woken for an execution. But a handler may take seconds, and meanwhile heartbeats want an answer
and a cancel must arrive. So before each handler the main thread leaves a note, the time, in `_began`, and takes it away
afterwards; the sentinel looks at the note every 20 ms, and when it finds one that is older than that, it takes over the
role of the reader (`Conversation.take_over`) until the handler has returned and the main thread takes the role back.
Whoever is not the reader may still be waiting in `poll`; it finds out when it wakes, before it touches a byte.

Looking every 20 ms costs nothing beside work, but would wake an idle instance 50 times a second. So after a second
without a handler the sentinel parks, and the next handler's start wakes it: once per burst, not once per execution.
Parking is safe without a lock because each side first leaves its mark and then looks for the other's.

Rejected: waking the sentinel at each start (two thread switches per execution); a timer signal (it would interrupt the
handler's own system calls); a reader thread that hands executions over (a switch per execution, 20 to 50 µs).
"""

from __future__ import annotations

import threading
import time

from .conversation import Conversation
from .line import Watch

__all__ = ["Sentinel"]

TAKE_OVER_S = 0.02
"""A handler that runs longer than this gets its connection read by the sentinel."""

_PARK_AFTER_S = 1.0
_LOOK_UP_S = 1.0
"""How often a reading sentinel looks whether the program was told to stop: it does not hear the wake-up descriptor."""


class Sentinel:
    """Stands in as the reader for `main`, the watch of the thread that runs handlers."""

    def __init__(self, conversation: Conversation, main: Watch) -> None:
        self._conversation = conversation
        self._main = main
        self._began = 0.0
        self._parked = False
        self._ended = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spearpool-sentinel", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def handler_begins(self) -> None:
        """From now on, after a while, the sentinel reads. The main thread calls this."""
        self._began = time.monotonic()
        if self._parked:
            self._wake.set()

    def handler_ended(self) -> None:
        """The main thread reads again: as a rule, still."""
        self._began = 0.0
        if not self._conversation.is_read_by(self._main):
            self._conversation.take_over(self._main)

    def stop(self) -> None:
        """For the end of the conversation: close that first, which wakes the sentinel wherever it waits."""
        self._ended = True
        self._wake.set()
        self._thread.join(_LOOK_UP_S + 1.0)

    def _run(self) -> None:
        watch = Watch()
        idle_since = time.monotonic()
        while not self._ended:
            began, now = self._began, time.monotonic()
            if began and now - began >= TAKE_OVER_S:
                self._stand_in(watch, began)
                idle_since = time.monotonic()
            elif began or now - idle_since < _PARK_AFTER_S:
                if began:
                    idle_since = now
                time.sleep(began + TAKE_OVER_S - now if began else TAKE_OVER_S)
            else:
                self._park()
                idle_since = time.monotonic()

    def _stand_in(self, watch: Watch, began: float) -> None:
        # The main thread takes its note away before it looks who reads, and we read before we look for the note: when
        # the note is gone, the role is given back, or the main thread is waiting to take it.
        if self._conversation.take_over(watch, lambda: self._began == began):
            while self._began == began and not self._ended:
                self._conversation.turn(watch, _LOOK_UP_S)

    def _park(self) -> None:
        self._wake.clear()
        self._parked = True
        if not self._began and not self._ended:
            self._wake.wait()
        self._parked = False
