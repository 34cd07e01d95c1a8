"""The signals that stop or reload a pool: held back until somebody is there who can act on them, and again at the end.

By default they kill. One that came while a pool is set up would leave it half built, and one that came while its files
are removed would leave some of them. So they are held from the first moment on: the kernel keeps what comes. Only the
supervisor's loop, which can end a pool in order at any time, lets them through. (A handler that takes a note was
rejected: every step of a start would have to look at it, and what a forked child inherits would have to be undone.)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever only holds or passes on need not load it
    import asyncio

__all__ = ["RELOAD_SIGNAL", "STOP_SIGNALS", "heed", "hold", "pass_on"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
RELOAD_SIGNAL = signal.SIGHUP

_HEEDED = (*STOP_SIGNALS, RELOAD_SIGNAL)


def hold() -> None:
    """From now on they wait, for this thread and those it starts; what it forks must set its own mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)


def heed(loop: asyncio.AbstractEventLoop, stop: Callable[[signal.Signals], None], reload: Callable[[], None]) -> None:
    """Have the loop call one of them for each that comes, and for those that have waited.

    SIGHUP from somebody means reload. It also comes when the terminal of a pool is closed; then there is nobody left
    who could look at it, and it stops. The handlers go with the loop; `hold` them before it ends.
    """
    has_terminal = _has_terminal()

    def hung_up() -> None:
        if has_terminal and not _has_terminal():
            stop(RELOAD_SIGNAL)
        else:
            reload()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(RELOAD_SIGNAL, hung_up)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)


def pass_on(send: Callable[[int], None]) -> None:
    """Have `send` called for each that comes or has waited: in a process that only waits for the one that acts.

    Nobody would ask such a process for a reload: it has lost its terminal, and the other one is to stop.
    """
    for number in _HEEDED:
        signal.signal(number, lambda number, _frame: send(signal.SIGTERM if number == RELOAD_SIGNAL else number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)


def _has_terminal() -> bool:
    """Whether this session has a controlling terminal now."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
