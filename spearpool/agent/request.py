"""One execution as its handler sees it, and the answer that its end gives.

A handler takes a `Request` and returns bytes, text, None, or an iterable of chunks of either. `answer` runs it and
turns whatever happens into the final `ExecuteResponse`; nothing that a handler does gets past it.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from spearpool.protocol.messages import UNSET, ExecuteRequest, ExecuteResponse, ExecutionStatus

__all__ = ["Handler", "Outcome", "Request", "answer"]


@dataclass(eq=False)
class Request:
    """One execution. `deadline` is monotonic seconds (`time.monotonic()`), None for no limit."""

    task: str
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    input: bytes = b""
    deadline: float | None = None
    execution_id: str = ""
    working_dir: str | None = None
    is_cancelled: bool = field(default=False, init=False)
    _on_cancel: Callable[[], None] | None = field(default=None, init=False, repr=False)
    _event: ClassVar[threading.Event | None] = None  # an instance has its own once it was asked for

    @classmethod
    def from_payload(cls, payload: ExecuteRequest, now: float) -> Request:
        """`now` is when the message came: its time-out counts from there."""
        limit_s: float | None = payload.timeout
        if payload.deadline_ms is not UNSET:
            limit_s = payload.deadline_ms / 1000
        return cls(
            payload.task_id,
            payload.args,
            payload.env,
            payload.input_data or b"",
            None if limit_s is None else now + limit_s,
            "" if payload.execution_id is UNSET else payload.execution_id,
            payload.working_dir,
        )

    # Who cancels and who is to hear of it may be different threads. No lock between them: each side first leaves its
    # mark and then looks for the other's, so at least one of them acts.

    @property
    def cancelled(self) -> threading.Event:
        """Set when nobody wants the result any more: a handler that takes long looks at it now and then, or waits for
        it, and returns early; what it returns then is not used.

        Made when it is first asked for: most handlers are over before it could matter.
        """
        event: threading.Event = self._event or vars(self).setdefault("_event", threading.Event())
        if self.is_cancelled:
            event.set()
        return event

    def cancel(self) -> None:
        """Set `cancelled`. The agent calls this, from whichever thread reads."""
        self.is_cancelled = True
        if self._event is not None:
            self._event.set()
        if self._on_cancel is not None:
            self._on_cancel()

    def on_cancel(self, action: Callable[[], None]) -> None:
        """Call `action` when the request is cancelled, from another thread; at once when it is already.

        It may be called twice.
        """
        self._on_cancel = action
        if self.is_cancelled:
            action()


_LATE = (ExecutionStatus.TIMEOUT, "cancelled at its deadline")
_CANCELLED = (ExecutionStatus.CANCELLED, "cancelled")


class Outcome(NamedTuple):
    """How an execution ended, where a handler's return value cannot say it: what the `exec:` runner returns."""

    status: ExecutionStatus
    output: bytes | str | None = None
    error: str | None = None
    exit_code: int | None = None


Handler = Callable[[Request], bytes | str | Iterable[bytes] | Iterable[str] | Outcome | None]


def answer(handler: Handler, request: Request) -> ExecuteResponse:
    """Run the handler, unless it is too late already. A traceback goes to stderr, its last line into the answer."""
    began = time.monotonic()
    outcome = _too_late(request, began) or _run(handler, request)
    ended = time.monotonic()
    if request.is_cancelled and outcome.status is not ExecutionStatus.TIMEOUT:
        late = request.deadline is not None and ended >= request.deadline
        status, why = _LATE if late else _CANCELLED
        outcome = Outcome(status, error=why, exit_code=outcome.exit_code)
    text, data = _as_text(outcome.output)
    return ExecuteResponse(
        request.task,
        outcome.status,
        text,
        outcome.error,
        outcome.exit_code,
        int((ended - began) * 1000),
        None,
        request.execution_id or UNSET,
        UNSET if data is None else data,
    )


def _too_late(request: Request, now: float) -> Outcome | None:
    if request.deadline is not None and now >= request.deadline:
        return Outcome(ExecutionStatus.TIMEOUT, error="the deadline passed before the execution could start")
    if request.is_cancelled:
        return Outcome(ExecutionStatus.CANCELLED, error="cancelled before it started")
    return None


def _run(handler: Handler, request: Request) -> Outcome:
    try:
        result = handler(request)
        if isinstance(result, Outcome):
            return result
        return Outcome(ExecutionStatus.COMPLETED, _joined(result))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code: its failure is this execution's
        with suppress(OSError):  # no room for the log is not the end of the instance
            traceback.print_exc()
        return Outcome(ExecutionStatus.FAILED, error="".join(traceback.format_exception_only(error)).strip())


def _joined(result: object) -> bytes | str | None:
    """The output as one piece. Raises `TypeError` for what cannot be one."""
    match result:
        case None | str() | bytes():
            return result
        case bytearray() | memoryview():
            return bytes(result)
        case Iterable() if not isinstance(result, dict | set | frozenset):
            return b"".join(map(_as_bytes, result))
    raise TypeError(f"the handler returned {type(result).__name__}; expected bytes, str, None or an iterable of chunks")


def _as_bytes(chunk: object) -> bytes:
    match chunk:
        case str():
            return chunk.encode()
        case bytes() | bytearray() | memoryview():
            return bytes(chunk)
    raise TypeError(f"the handler gave a chunk of type {type(chunk).__name__}; expected bytes or str")


def _as_text(output: bytes | str | None) -> tuple[str | None, bytes | None]:
    """How it goes on the wire: text where it is text, which is shorter, else bytes."""
    if not isinstance(output, bytes):
        return output, None
    try:
        return output.decode(), None
    except UnicodeDecodeError:
        return None, output
