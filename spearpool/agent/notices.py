"""Signals with a name of their own (`spearpool signal INSTANCE NAME`) and who wants to hear of them.

They are for the whole process, not for one execution: forget a cache, reload a model, write a dump. A module of a
`python:` task says at its top who listens; an instance that is forked from the module's zygote has that by itself:

    from spearpool.agent import Request, on_signal

    @on_signal
    def reload_model(name: str) -> None:
        if name == "reload":
            ...
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["deliver", "on_signal"]

Listener = TypeVar("Listener", bound=Callable[[str], object])

_listeners: list[Callable[[str], object]] = []  # of this process, because that is who a signal is for


def on_signal(listener: Listener) -> Listener:
    """Have `listener(name)` called for each signal with a name of its own; can be used as a decorator.

    It is called by the thread that reads the connection, beside handlers that are running, and nothing is read until it
    has returned: what takes long belongs into a thread. What it raises is written to the log, and that is all. Several
    listeners are called in the order in which they were registered. `Terminate` is not told: it ends the program.
    """
    _listeners.append(listener)
    return listener


def deliver(name: str) -> None:
    """A signal has come. Names with an `@` are spearpool's own."""
    if name.startswith("@"):
        return
    for listener in _listeners:
        try:
            listener(name)
        except (Exception, SystemExit):  # noqa: BLE001 - the user's code: no reason to end the conversation
            with suppress(OSError):  # no room for the log
                traceback.print_exc()
