"""The future of an execution that was submitted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from math import inf
from typing import Any

from spearpool.protocol.messages import ExecuteRequest

from .connection import Call, Connection
from .outcome import Answer, ExecutionResult, result_of

__all__ = ["ExecutionFuture"]


class ExecutionFuture(Future[ExecutionResult]):
    """Ends as the execution does. It is running as soon as there is one, and cannot be cancelled.

    Who waits in `result` or `exception` reads the connection meanwhile, so that no thread needs to be woken. Whoever
    reads completes it, so its callbacks are put off: they run in one thread of the connection, one after another.
    """

    _connection: Connection
    _call: Call

    def __init__(self, task: str) -> None:
        super().__init__()
        self._task = task

    def send(self, connection: Connection, request: ExecuteRequest, give_up_at: float) -> None:
        """Begin. Raises like `Connection.submit`; it may then be sent on another connection."""
        self._connection = connection
        self._call = connection.submit(request, give_up_at, self._complete)

    def _complete(self, answer: Answer) -> None:
        try:
            result = result_of(self._task, answer)
        except Exception as error:  # noqa: BLE001 - it is the future's, whatever it is
            self.set_exception(error)
        else:
            self.set_result(result)

    def cancel(self) -> bool:
        return False

    def running(self) -> bool:
        return not self.done()

    def result(self, timeout: float | None = None) -> ExecutionResult:
        return super().result(self._wait(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(self._wait(timeout))

    def _wait(self, timeout: float | None) -> float | None:
        """Wait for the answer; returns what is left of the time, for it to be put into this future, or for nothing."""
        until = inf if timeout is None else time.monotonic() + timeout
        if self._call.answer is None:
            self._connection.wait(self._call, until)
        left_s = until - time.monotonic()
        return max(0.0, left_s) if left_s < threading.TIMEOUT_MAX else None

    def add_done_callback(self, fn: Callable[[Future[ExecutionResult]], Any]) -> None:
        """As usual: at once when it is done. Else in the connection's thread, where what it raises is only logged."""
        if self.done():
            super().add_done_callback(fn)
        else:
            now_done = partial(super().add_done_callback, fn)
            super().add_done_callback(lambda _: self._connection.call_back(now_done))
