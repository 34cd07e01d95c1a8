"""A pool as a child of this program: ready when the `with` block begins, gone when it ends.

The pool is `spearpool start` in a process of its own. It holds the other end of a pipe of ours, its lifeline: when this
program ends, however it ends, the pool stops. Its settings travel as TOML through a memory file, so nothing of them is
left on disk; its log goes to an unnamed temporary file, whose end is quoted when something goes wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from spearpool.config import Settings, load
from spearpool.errors import PoolError, PoolStartError
from spearpool.packing import to_plain

from .client import Client

__all__ = ["Pool"]

_START_MARGIN_S = 10.0
_STOP_MARGIN_S = 10.0
"""What the supervisor may take beyond its own time limits before we give up on it."""

_LOG_TAIL_BYTES = 8192
_SECTIONS = tuple(f"SPEARPOOL_{section.upper()}_" for section in Settings.__struct_fields__)


class Pool:
    """`tasks` maps names to targets (`"python:shop.images:thumbnail"`) or to tables like the configuration file's.

    Other sections of the configuration may be given by name: `connections={"heartbeat_interval": 5}`. Precedence:
    these arguments, then `SPEARPOOL_*` in `environ`, then the defaults. Without a `name` the pool gets one that nobody
    else has, and its state directory (logs) goes with it. Raises `ConfigError`, and `PoolStartError` from `start`.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        tasks: Mapping[str, str | Mapping[str, Any]] | None = None,
        name: str | None = None,
        state_dir: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        **sections: Mapping[str, Any],
    ) -> None:
        chosen = {"name": name or f"pool-{os.getpid()}-{secrets.token_hex(3)}", "workers": workers}
        pool = {**sections.pop("pool", {}), **{key: value for key, value in chosen.items() if value is not None}}
        tables = {task: {"target": t} if isinstance(t, str) else t for task, t in (tasks or {}).items()}
        self._settings = load(None, environ, {**sections, "pool": pool, "tasks": tables})
        self._environ = {key: value for key, value in environ.items() if not key.startswith(_SECTIONS)}
        self._state_dir = state_dir
        self._has_own_state = name is None and state_dir is None
        self._cleanup = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._client: Client | None = None
        self.ready: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self._settings.pool.name

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        # An error of the block says more than that the pool did not stop well after it.
        with contextlib.suppress(*([PoolError] if kind is not None else [])):
            self.stop()

    def start(self) -> None:
        """Start the pool and wait until it is ready; `ready` then holds its ready line.

        Raises `PoolStartError` with what the pool said when it could not be started.
        """
        if self._process is not None:
            raise PoolError(f"pool {self.name!r} has been started already")
        try:
            process = self._process = self._launch()
            try:
                self.ready = self._await_ready(process)
            except BaseException:
                with contextlib.suppress(PoolError):
                    self._terminate(process, _STOP_MARGIN_S)
                raise
        except BaseException:
            self._forget()
            raise
        self._client = self.client()

    def stop(self) -> None:
        """Finish what is in flight, for at most `pool.stop_timeout_s`. Raises `PoolError` if it ended badly."""
        if self._process is None:
            return
        try:
            code = self._terminate(self._process, self._settings.pool.stop_timeout_s + _STOP_MARGIN_S)
            if code:
                raise PoolError(f"pool {self.name!r} ended with exit code {code}{self._quote_log()}")
        finally:
            self._forget()

    def execute(
        self,
        task: str,
        *args: str,
        input: bytes = b"",  # noqa: A002 - as in `Client.execute`
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """Execute a task and return its output; `Client.run` says what it raises."""
        if self._client is None:
            raise PoolError(f"pool {self.name!r} is not running: use it in a `with` block, or call start()")
        return self._client.execute(task, *args, input=input, env=env, timeout=timeout)

    def client(self) -> Client:
        """A client of its own, with its own connection. Close it."""
        return Client(self.name, environ=self._environ)

    def status(self) -> dict[str, Any]:
        """What `spearpool status --json` prints."""
        from spearpool.metrics.bus import ask  # loads pyzmq, which executing does not need

        return ask(self.ready["endpoints"]["ask"], "status", {}, timeout_s=5.0)

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the child; `_cleanup` holds all that goes when it goes."""
        stack = self._cleanup
        lifeline, kept = os.pipe()
        stack.callback(os.close, kept)
        settings = os.memfd_create("spearpool-settings")
        with contextlib.ExitStack() as ours:  # the child has its own copies
            ours.callback(os.close, lifeline)
            ours.callback(os.close, settings)
            os.write(settings, _to_toml(to_plain(self._settings)).encode())
            words = ["--config", f"/dev/fd/{settings}", "--lifeline-fd", str(lifeline)]
            if self._has_own_state:
                self._state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spearpool-state-")))
            if self._state_dir is not None:
                words += ["--state-dir", str(self._state_dir)]
            self._log = stack.enter_context(tempfile.TemporaryFile())
            return subprocess.Popen(
                [sys.executable, "-m", "spearpool", "start", "--json", *words],
                env=self._environ,
                pass_fds=(lifeline, settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,  # a Ctrl-C at our terminal is ours to answer
            )

    def _await_ready(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """The ready line. Raises `PoolStartError` when the child ends, or says nothing until its time is over."""
        deadline = time.monotonic() + self._settings.pool.start_timeout_s + _START_MARGIN_S
        assert process.stdout is not None
        fd = process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise PoolStartError(f"pool {self.name!r} was not ready in time{self._quote_log()}")
            data = os.read(fd, 65536)
            if not data:
                code = process.wait()
                raise PoolStartError(f"pool {self.name!r} could not be started (exit code {code}){self._quote_log()}")
            line += data
        ready: dict[str, Any] = json.loads(line)
        return ready

    def _terminate(self, process: subprocess.Popen[bytes], patience_s: float) -> int:
        """End the child and return its exit code; kill it after `patience_s`, whereupon its warden kills the rest."""
        if self._client is not None:
            self._client.close()
        process.terminate()
        try:
            return process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise PoolError(f"pool {self.name!r} did not stop in time and was killed{self._quote_log()}") from None

    def _forget(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._process = self._client = None
        self._cleanup.close()

    def _quote_log(self) -> str:
        assert self._log is not None
        size = os.fstat(self._log.fileno()).st_size
        said = os.pread(self._log.fileno(), _LOG_TAIL_BYTES, max(0, size - _LOG_TAIL_BYTES)).decode("utf-8", "replace")
        return f":\n{said.strip()}" if said.strip() else ""


def _to_toml(plain: Mapping[str, Any]) -> str:
    return "".join(f"{_inline(key)} = {_inline(value)}\n" for key, value in plain.items())


def _inline(value: object) -> str:
    """One TOML value on one line. None has no form: the key is left out."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case Mapping():
            return "{" + ", ".join(f"{_inline(k)} = {_inline(v)}" for k, v in value.items() if v is not None) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_inline, value)) + "]"
    raise TypeError(f"no TOML form for {type(value).__name__}")
