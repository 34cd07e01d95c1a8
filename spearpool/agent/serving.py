"""`serve`: what a task program calls. It dials in, runs the handler for each execution, and returns when told to stop.

With concurrency 1 the main thread reads and runs handlers itself, and a `Sentinel` reads while a handler takes long.
With more, the main thread only reads, and as many threads as the concurrency run handlers.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from types import FrameType

from spearpool.errors import ConfigError
from spearpool.protocol.environment import InstanceEnvironment

from .conversation import Conversation, Work
from .line import Watch
from .request import Handler, answer
from .sentinel import Sentinel

__all__ = ["EXIT_NOT_CONFIGURED", "EXIT_REFUSED", "serve"]

EXIT_REFUSED = 77
"""Exit code when the pool refuses us or no longer wants us (EX_NOPERM)."""

EXIT_NOT_CONFIGURED = 78
"""Exit code when a `SPEAR_*` variable is missing or wrong (EX_CONFIG)."""


def serve(handler: Handler, *, environ: Mapping[str, str] = os.environ) -> None:
    """Run until told to stop: by the pool, or by SIGTERM when called in the main thread.

    What is in hand is finished first, for at most `conversation.STOP_GRACE_S`. `environ` holds the `SPEAR_*` variables.
    Raises `SystemExit`, with the reason on stderr, when they are wrong or the pool refuses us.
    """
    try:
        me = InstanceEnvironment.from_environ(environ)
    except ConfigError as error:
        raise _exit(EXIT_NOT_CONFIGURED, error) from None
    serve_it = _serve_alone if me.concurrency == 1 else _serve_with_threads
    refused = serve_it(me, handler)
    if refused is not None:
        raise _exit(EXIT_REFUSED, refused)


def _serve_alone(me: InstanceEnvironment, handler: Handler) -> Exception | None:
    waiting: deque[Work] = deque()
    conversation = Conversation(me, waiting.append)
    watch = Watch(conversation.wake_fd)
    sentinel = Sentinel(conversation, watch)
    sentinel.start()
    try:
        with _open(conversation, watch):
            while not conversation.over:
                if not waiting:
                    conversation.turn(watch)
                    continue
                work = waiting.popleft()
                sentinel.handler_begins()
                response = answer(handler, work.request)
                sentinel.handler_ended()
                conversation.deliver(work, response)
    finally:
        sentinel.stop()
    return conversation.refused


def _serve_with_threads(me: InstanceEnvironment, handler: Handler) -> Exception | None:
    waiting: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
    conversation = Conversation(me, waiting.put)

    def run_handlers() -> None:
        while (work := waiting.get()) is not None:
            conversation.deliver(work, answer(handler, work.request))

    threads = [
        threading.Thread(target=run_handlers, name=f"spearpool-handler-{number}", daemon=True)
        for number in range(me.concurrency)
    ]
    for thread in threads:
        thread.start()
    watch = Watch(conversation.wake_fd)
    try:
        with _open(conversation, watch):
            while not conversation.over:
                conversation.turn(watch)
    finally:
        for _ in threads:
            waiting.put(None)
    return conversation.refused


@contextlib.contextmanager
def _open(conversation: Conversation, watch: Watch) -> Iterator[None]:
    """This thread reads, SIGTERM stops (where this is the main thread), and the conversation is closed at the end."""

    def on_sigterm(_signum: int, _frame: FrameType | None) -> None:
        conversation.stop()

    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, on_sigterm) if main else None
    conversation.take_over(watch)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)
        conversation.close()


def _exit(code: int, error: Exception) -> SystemExit:
    print(f"spearpool.agent: {error}", file=sys.stderr, flush=True)
    return SystemExit(code)
