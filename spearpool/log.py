"""The log of each process: one line per event, as key-value text for people or as JSON for machines.

The only door of structlog, whose import takes longer than the start of a whole worker: it is loaded by `configure`,
which the outer edge of a process calls once, and a forked child again to name itself. Until then events are dropped, so
that a library user's streams stay theirs. Loggers may be made at any time; they follow the latest configuration.

A line leaves in one write and no buffer is kept, so lines of several processes on one stream do not mix, and a fork
repeats none. Logging never raises because of its stream: a full disk or a closed terminal loses lines, not executions.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

__all__ = ["Logger", "configure", "get_logger"]


class Logger:
    """Logs events: `log.info("worker ready", slot=3)`. The event text is fixed, what varies goes into the values."""

    def __init__(self, name: str) -> None:
        self._name = name

    def info(self, event: str, **values: Any) -> None:
        _emit(logging.INFO, self._name, event, values)

    def warning(self, event: str, **values: Any) -> None:
        _emit(logging.WARNING, self._name, event, values)

    def error(self, event: str, **values: Any) -> None:
        _emit(logging.ERROR, self._name, event, values)

    def exception(self, event: str, **values: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        _emit(logging.ERROR, self._name, event, {"exc_info": True, **values})


def get_logger(name: str) -> Logger:
    """A logger whose lines carry `logger=name`."""
    return Logger(name)


def configure(process: str, *, json_lines: bool, stream: TextIO) -> None:
    """Name this process in every line, and send the lines to `stream`."""
    import structlog

    def add_origin(logger: _LineLogger, _method: str, event: EventDict) -> EventDict:
        return {"logger": logger.name, "process": process, "process_id": os.getpid(), **event}

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            add_origin,
            *(_json() if json_lines else _text(colors=stream.isatty())),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda name: _LineLogger(stream, name),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _Bridge)]
    root.addHandler(_Bridge(logging.WARNING))


def _emit(level: int, name: str, event: str, values: dict[str, Any]) -> None:
    structlog = sys.modules.get("structlog")
    if structlog is not None and structlog.is_configured():
        structlog.get_logger(name).log(level, event, **values)


def _json() -> list[Processor]:
    from structlog import processors

    return [processors.format_exc_info, processors.JSONRenderer(ensure_ascii=False)]


def _text(*, colors: bool) -> list[Processor]:
    from structlog import dev

    return [dev.ConsoleRenderer(colors=colors, timestamp_key="time", exception_formatter=dev.plain_traceback)]


class _LineLogger:
    """What structlog hands a finished line to, whatever its level."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self.name = name

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(line + "\n")
            self._stream.flush()

    info = warning = error = critical = msg


class _Bridge(logging.Handler):
    """Brings warnings of the standard library (asyncio's above all) into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        values = {"exc_info": record.exc_info} if record.exc_info else {}
        level = min(record.levelno // 10 * 10, logging.CRITICAL)  # structlog knows no levels between
        _emit(level, record.name, record.getMessage(), values)
