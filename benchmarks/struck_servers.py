"""The servers that `zero_loss.py` strikes: spearpool and Python's HTTP servers, each with as many workers.

The others are installed into an environment of their own, in the user's cache directory.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pool_process import PoolProcess, started_pool

from spearpool.metrics.bus import ask
from spearpool.processes import children_of, kill_descendants
from spearpool.protocol.codec import JSON_V1
from spearpool.protocol.framing import PREFIX_BYTES, frame
from spearpool.protocol.messages import AuthRequest, ExecuteRequest, Payload
from spearpool.runtime_dir import find_pool

__all__ = [
    "COMMANDS",
    "REQUEST_S",
    "SPEARPOOL",
    "WORKERS",
    "Server",
    "environment",
    "http_server",
    "install",
    "spear_server",
]

WORKERS = 4
REQUEST_S = 10.0
MAX_BYTES = 64 * 1024

APPLICATION = """
def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})
"""
GUNICORN = ("gunicorn", "gunicorn application:wsgi --bind 127.0.0.1:{port} --workers {workers} --log-level critical")
GRANIAN = (
    "granian application:asgi --interface asgi --host 127.0.0.1 --port {port} --workers {workers} --no-log "
    "--respawn-failed-workers --respawn-interval 0.5"
)
COMMANDS = {
    "gunicorn": GUNICORN,
    "gunicorn --reuse-port": (GUNICORN[0], GUNICORN[1] + " --reuse-port"),
    "granian": ("granian", GRANIAN),
    "uvicorn": (
        "uvicorn",
        "uvicorn application:asgi --host 127.0.0.1 --port {port} --workers {workers} --log-level critical",
    ),
}
"""Name → distribution, and the command that starts it. All of them reload on SIGHUP."""

SPEARPOOL = "spearpool"
SETTINGS = f"""
[pool]
name = "zero-loss"
workers = {WORKERS}
[tasks.echo]
target = "python:echo_task:echo"
min_instances = 2
"""

Exchange = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `exchange` makes one request on a new connection: `"right"`, `"wrong"`, or told as `"failed"`.

    `reload` begins a reload, and may return before it is over; it is None where there is none.
    """

    name: str
    address: tuple[str, int]
    exchange: Exchange
    workers: Callable[[], list[int]]
    reload: Callable[[], Awaitable[None]] | None


async def over_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(5)
    if not head.startswith(b"HTTP/1.1 200 "):
        return "failed"
    return "right" if body == b"hello" else "wrong"


def over_spear(token: str) -> Exchange:
    """Say who we are, and have one execution of `echo` done."""

    def encoded(payload: Payload, request_id: int) -> bytes:
        return frame(JSON_V1.encode(payload, request_id, time.time_ns()), MAX_BYTES)

    greeting = encoded(AuthRequest("zero-loss", token, "1", "benchmark", {}), 1)
    execution = encoded(ExecuteRequest("echo", "", [], {}, input_data=b"hello"), 2)

    async def answer(reader: asyncio.StreamReader) -> dict[str, Any]:
        size = int.from_bytes(await reader.readexactly(PREFIX_BYTES))
        payload: dict[str, Any] = json.loads(bytes(json.loads(await reader.readexactly(size))["payload"]))
        return payload

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(greeting)
        admitted = await answer(reader)
        writer.write(execution)
        done = await answer(reader)
        if not admitted.get("success") or done.get("status") != "Completed":
            return "failed"
        return "right" if done["output"] == "hello" else "wrong"

    return exchange


def environment() -> Path:
    """The `bin` of a virtual environment of our own."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spearpool" / "zero-loss"
    if not (root / "bin" / "python").exists():
        venv.create(root, with_pip=True)
    return root / "bin"


def install(tools: Path, distribution: str) -> str | None:
    """Its version; None when it cannot be installed."""
    if not (tools / distribution).exists():
        pip = [str(tools / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", distribution]
        if subprocess.run(pip, capture_output=True, check=False).returncode:
            return None
    asked = f"import importlib.metadata; print(importlib.metadata.version({distribution!r}))"
    return subprocess.run([tools / "python", "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def http_server(name: str, tools: Path) -> Iterator[Server]:
    port = free_port()
    program, *words = COMMANDS[name][1].format(port=port, workers=WORKERS).split()
    with tempfile.TemporaryDirectory(prefix="zero-loss-") as folder:
        (Path(folder) / "application.py").write_text(APPLICATION)
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([tools / program, *words], cwd=folder, stdin=quiet, stdout=quiet, stderr=quiet)
        try:
            yield Server(name, ("127.0.0.1", port), over_http, lambda: http_workers(process.pid), _hang_up(process.pid))
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            kill_descendants(os.getpid())
            process.wait()


def http_workers(master: int) -> list[int]:
    """Its children, without the helper that multiprocessing starts."""
    return [pid for pid in children_of(master) if b"resource_tracker" not in command_line(pid)]


def command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _hang_up(master: int) -> Callable[[], Awaitable[None]]:
    async def hang_up() -> None:
        os.kill(master, signal.SIGHUP)

    return hang_up


@contextmanager
def spear_server() -> Iterator[Server]:
    with started_pool(SETTINGS) as pool:
        endpoint = find_pool(pool.ready["name"], pool.environ).endpoints.ask

        def workers() -> list[int]:
            rows = ask(endpoint, "status", {}, REQUEST_S)["workers"]
            return [row["pid"] for row in rows if row["state"] == "ready"]

        yield Server(
            SPEARPOOL, pool.address, over_spear(pool.token_file.read_text().strip()), workers, _reload_command(pool)
        )


def _reload_command(pool: PoolProcess) -> Callable[[], Awaitable[None]] | None:
    spearpool = [sys.executable, "-m", "spearpool"]
    words = subprocess.run([*spearpool, "--help"], capture_output=True, text=True, check=True).stdout.split()
    if "reload" not in words:
        return None

    async def command() -> None:
        process = await asyncio.create_subprocess_exec(
            *spearpool, "reload", "--name", pool.ready["name"], env=pool.environ, stdout=asyncio.subprocess.DEVNULL
        )
        if await process.wait():
            raise RuntimeError("spearpool reload failed; its reason stands above")

    return command
