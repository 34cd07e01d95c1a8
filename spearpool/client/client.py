"""The synchronous client: executes tasks on a running pool over one connection, from as many threads as you like.

It dials on first use and again whenever the connection was lost, reading the token anew each time. It never sends an
execution twice: a connection that is lost under one raises `OutcomeUnknown`, and the caller decides.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from math import ceil, inf
from pathlib import Path
from random import random
from typing import Self, TypeVar

from spearpool import __version__
from spearpool.agent.dial import dial
from spearpool.backoff import Backoff
from spearpool.errors import ConfigError, ConnectionLost, ExecutionTimeout, PoolError
from spearpool.protocol.messages import UNSET, AuthRequest, ExecuteRequest, UnsetType
from spearpool.protocol.negotiation import ASK
from spearpool.protocol.session import Side
from spearpool.runtime_dir import RuntimeDir, find_pool

from .connection import Connection
from .future import ExecutionFuture
from .outcome import ExecutionResult, result_of

__all__ = ["Client"]

T = TypeVar("T")

_BACKOFF = Backoff(cap_s=1.0)
_ANSWER_GRACE_S = 0.5
"""How long after an execution's deadline the pool's own word about it is still waited for."""

_FOREVER_S = 2.0**32
"""A time limit of this much (136 years) or more is none; the wire could not carry the largest ones."""

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Client:
    """A client of the pool `name`, found by its runtime directory; or of any pool, by `address` and a token.

    `address` is `HOST:PORT`, the token comes from `token`, `token_file`, or else the named pool's `client.token`.
    `label` is how this client is called in events and metrics. `connect_timeout_s` is how long a call may take to get a
    connection. Thread-safe; close it, or use it in a `with` block.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        address: str | None = None,
        token: str | None = None,
        token_file: Path | None = None,
        label: str | None = None,
        connect_timeout_s: float = 10.0,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._name = name
        self._address = None if address is None else _parse(address)
        self._token = token
        self._token_file = token_file
        self._label = label or f"python-{os.getpid()}"
        self._connect_timeout_s = connect_timeout_s
        self._environ = environ
        self._dialling = threading.Lock()
        self._connection: Connection | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Executions under way raise `OutcomeUnknown`."""
        with self._dialling:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def execute(
        self,
        task: str,
        *args: str,
        input: bytes = b"",  # noqa: A002 - what it is called everywhere else
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """`run`, and only the output of it."""
        return self.run(task, *args, input=input, env=env, timeout=timeout).output

    def run(
        self,
        task: str,
        *args: str,
        input: bytes = b"",  # noqa: A002
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> ExecutionResult:
        """Execute a task and wait for its end; `timeout` in seconds, None or infinity for none.

        Raises an `ExecutionError` when it did not complete (`ExecutionFailed`, `ExecutionTimeout`,
        `ExecutionCancelled`, `OutcomeUnknown`), a `RequestRefused` when it was not accepted (`UnknownTask`,
        `Overloaded`, `Draining`), and `NoSuchPool`, `AuthenticationError` or `ConnectionLost` when nothing was sent;
        `ConfigError` for a `timeout` that is negative or not a number.
        """
        return result_of(task, self._send(_Order(task, args, input, env, timeout), Connection.call))

    def submit(
        self,
        task: str,
        *args: str,
        input: bytes = b"",  # noqa: A002
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Future[ExecutionResult]:
        """Send an execution and return at once. The future ends as `run` would; it cannot be cancelled.

        Raises by itself when nothing could be sent. Callbacks run in one thread, one after another.
        """
        future = ExecutionFuture(task)
        self._send(_Order(task, args, input, env, timeout), future.send)
        return future

    def _send(self, order: _Order, send: Callable[[Connection, ExecuteRequest, float], T]) -> T:
        """`send` the order on an open connection, and on another one after `ConnectionLost`: nothing was sent."""
        deadline = min(order.begins_at + self._connect_timeout_s, order.ends_at)
        attempt = 0
        while True:
            try:
                return send(self._open_connection(deadline), order.request(), order.ends_at + _ANSWER_GRACE_S)
            except ConnectionLost:
                delay_s = _BACKOFF.delay_s(attempt, random())
                if self._closed or time.monotonic() + delay_s >= deadline:
                    raise
                attempt += 1
                time.sleep(delay_s)

    def _open_connection(self, deadline: float) -> Connection:
        connection = self._connection
        if connection is not None and connection.open:
            return connection
        if not self._dialling.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise ConnectionLost("no connection to the pool in time: another thread of this client is still dialling")
        try:
            if self._closed:
                raise ConnectionLost("this client has been closed")
            if self._connection is None or not self._connection.open:
                self._connection = self._dial(deadline)
            return self._connection
        finally:
            self._dialling.release()

    def _dial(self, deadline: float) -> Connection:
        address = self._address or self._find()
        request = AuthRequest(self._label, self._read_token(), __version__, "client", ASK)
        line, early = dial(Side.CLIENT, address, request, max(0.1, deadline - time.monotonic()))
        connection = Connection(line, early)
        connection.start()
        return connection

    def _find(self) -> tuple[str, int]:
        pool = find_pool(self._name, self._environ)
        return _LOOPBACK.get(pool.host, pool.host), pool.port

    def _read_token(self) -> str:
        if self._token is not None:
            return self._token
        if self._token_file is None:
            return RuntimeDir.locate(self._name, self._environ).read_client_token()
        try:
            return self._token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise PoolError(f"cannot read the token file {self._token_file}: {error.strerror}") from None


class _Order:
    """What is asked for, ready to be put into a request at any moment: the time that remains is the request's."""

    __slots__ = ("_args", "_data", "_env", "_task", "_timeout_s", "begins_at", "ends_at")

    def __init__(
        self, task: str, args: tuple[str, ...], data: bytes, env: Mapping[str, str] | None, timeout_s: float | None
    ) -> None:
        self._task = task
        self._args = list(args)
        self._data = bytes(data) or None
        self._env = dict(env) if env else {}
        self._timeout_s = timeout_s
        self.begins_at = time.monotonic()
        self.ends_at = inf
        if timeout_s is not None:
            if not timeout_s >= 0:  # NaN is neither
                raise ConfigError("timeout", timeout_s, "seconds, 0 or more, or None for no limit")
            if timeout_s < _FOREVER_S:
                self.ends_at = self.begins_at + timeout_s

    def request(self) -> ExecuteRequest:
        """Raises `ExecutionTimeout` when no time remains."""
        timeout: int | None = None
        deadline_ms: int | UnsetType = UNSET
        if self.ends_at < inf:
            left_s = self.ends_at - time.monotonic()
            if left_s <= 0:
                words = f"task {self._task!r}: no connection within {self._timeout_s:g} s; nothing was sent"
                raise ExecutionTimeout(words, task=self._task)
            timeout, deadline_ms = ceil(left_s), ceil(left_s * 1000)
        return ExecuteRequest(
            self._task,
            "",
            self._args,
            self._env,
            timeout=timeout,
            input_data=self._data,
            deadline_ms=deadline_ms,
        )


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError("address", address, "HOST:PORT")
    return host, int(port)
