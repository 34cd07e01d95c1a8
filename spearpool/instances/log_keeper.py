"""Keeps logs within their quotas. The kernel says which ones are written to; only those are looked at.

inotify tells of the first write to a log after it was *armed*; from then on the log is looked at again and again, until
it has not grown between two looks, and is armed anew. So a log that rests costs nothing, however many there are, and a
flood is met within one tick. Where the kernel has no watch to give, logs are looked at every `POLL_S` instead.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from math import inf

from .logs import InstanceLog

__all__ = ["POLL_S", "LogKeeper"]

POLL_S = 0.25

_IN_MODIFY = 0x2
_IN_Q_OVERFLOW = 0x4000
_IN_ONESHOT = 0x80000000
_EVENT = struct.Struct("iIII")
"""`struct inotify_event`: watch, mask, cookie, length of a name, which a watch on a file does not have."""

_READ_BYTES = 4096
_LIBC = ctypes.CDLL(None, use_errno=True)


class LogKeeper:
    """Of the logs that it is told to `follow`. One watch per log; `close` it at the end."""

    def __init__(self) -> None:
        self._fd: int = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)  # -1: the user has all that are allowed
        self._look_at: dict[InstanceLog, float] = {}  # `inf` for those that rest
        self._watched: dict[int, InstanceLog] = {}

    def follow(self, log: InstanceLog) -> None:
        """Keep this log, which may not be there yet."""
        self._look_at[log] = 0.0

    def forget(self, log: InstanceLog) -> None:
        """Its process has ended."""
        self._look_at.pop(log, None)

    def tick(self, now: float) -> None:
        """Look at those that grow, and rotate what is too large. `now` is monotonic seconds."""
        self._listen()
        for log, look_at in self._look_at.items():
            if look_at <= now:
                self._look_at[log] = self._look(log, now)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _look(self, log: InstanceLog, now: float) -> float:
        """When to look again."""
        if log.has_grown():
            return now
        armed = self._arm(log)
        if log.has_grown():  # just before it was armed
            return now
        return inf if armed else now + POLL_S

    def _arm(self, log: InstanceLog) -> bool:
        if self._fd < 0:
            return False
        watch: int = _LIBC.inotify_add_watch(self._fd, os.fsencode(log.path), ctypes.c_uint32(_IN_MODIFY | _IN_ONESHOT))
        if watch < 0:
            return False
        self._watched[watch] = log
        return True

    def _listen(self) -> None:
        """Which have been written to."""
        while self._fd >= 0:
            with suppress(BlockingIOError):
                for watch, mask, _, _ in _EVENT.iter_unpack(os.read(self._fd, _READ_BYTES)):
                    if mask & _IN_Q_OVERFLOW:
                        self._look_at = dict.fromkeys(self._look_at, 0.0)
                    log = self._watched.pop(watch, None)
                    if log in self._look_at:
                        self._look_at[log] = 0.0
                continue
            return
