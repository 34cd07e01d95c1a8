"""What a task program imports: `serve(handler)` dials the pool that launched it and runs the handler per execution.

    from spearpool.agent import Request, serve

    def shout(request: Request) -> bytes:
        return request.input.upper()

    serve(shout)

A function that is marked with `on_signal` hears the names of `spearpool signal INSTANCE NAME`.

Starts fast: it loads the standard library (no asyncio) and msgspec, nothing heavier.
"""

from __future__ import annotations

from .notices import on_signal
from .request import Handler, Request
from .serving import serve

__all__ = ["Handler", "Request", "on_signal", "serve"]
