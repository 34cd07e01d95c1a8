"""Where a pool keeps its files: the runtime directory (gone after `stop`) and the state directory (stays).

Both are directories of one pool, named after it, mode 0700, owned by the user who runs it, and locked by the one
supervisor that uses them. Other processes of the same user find the pool by `find_pool`, which reads `pool.json`.

The lock is a `flock`, which forked children share: while a warden or worker of a killed supervisor still lives, the
lock is held, and the next `start` waits for it instead of meeting half a pool. So the holder's pid and start time stand
in the lock file: a *living* holder is an error at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from .config import NAME
from .errors import ConfigError, NoSuchPool, PoolAlreadyRunning, PoolError
from .packing import Section, UnpackError, from_plain, to_plain
from .processes import ProcessIdentity

__all__ = ["Endpoints", "PoolDescription", "RuntimeDir", "StateDir", "find_pool"]

_MAX_SOCKET_PATH_BYTES = 107
_MAX_SOCKET_NAME_BYTES = 16
"""Room kept for the name of a socket inside the runtime directory."""

_LOCK_WAIT_S = 5.0
"""How long the processes of a killed supervisor may take to end; they are promised to be gone after 2 s."""


class Endpoints(Section, frozen=True, kw_only=True):
    """ZeroMQ addresses of the bus."""

    live: str
    ask: str


class PoolDescription(Section, frozen=True, kw_only=True):
    """What `pool.json` says: the supervisor's identity, and where to reach the pool."""

    name: str
    pid: int
    start_ticks: int
    host: str
    port: int
    endpoints: Endpoints
    segment: str
    epoch: int
    runtime_dir: str
    log_dir: str
    version: str
    workers: int

    @property
    def supervisor(self) -> ProcessIdentity:
        return ProcessIdentity(self.pid, self.start_ticks)


class _PrivateDirectory:
    """A directory that is ours alone, its lock, and the small files in it."""

    kind = "private"
    remedy = ""

    def __init__(self, name: str, base: Path) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError("pool.name", name, "1 to 63 letters, digits, dots, dashes or underscores")
        self.name = name
        self.base = base
        self.path = base / name
        self._lock_fd: int | None = None

    def create(self) -> None:
        """Make the directory if it is not there, and check that it is ours. Raises `PoolError`."""
        try:
            for directory in reversed((self.path, *self.path.parents)):
                if not directory.exists():
                    directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise PoolError(
                f"cannot make the {self.kind} directory {self.path}: {error.strerror}; {self.remedy}"
            ) from None
        self._check()

    def lock(self, wait_s: float = _LOCK_WAIT_S) -> None:
        """Create the directory and hold its lock until `unlock` or the end of this process and its forked children.

        Call it in the process that stays: after going into the background. Raises `PoolAlreadyRunning`, at once when
        the holder lives, and after `wait_s` when it is dead but its processes hold on.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self.create()
                fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue  # the last holder removed the directory just now
            except OSError as error:
                raise PoolError(f"cannot lock {self.path / 'lock'}: {error.strerror}; {self.remedy}") from None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._refuse(fd, wait_s, time.monotonic() >= deadline)
                os.close(fd)
                time.sleep(0.02)
                continue
            if os.fstat(fd).st_nlink:
                self._sign(fd)
                return
            os.close(fd)  # opened before, locked after its holder removed it: a lock on nothing

    def unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _sign(self, fd: int) -> None:
        """Write into our lock who holds it."""
        identity = ProcessIdentity.of(os.getpid())
        os.truncate(fd, 0)
        os.pwrite(fd, f"{identity.pid} {identity.start_ticks}\n".encode(), 0)
        self._lock_fd = fd

    def _refuse(self, fd: int, waited_s: float, late: bool) -> None:
        """Raise `PoolAlreadyRunning` when the lock's holder lives, or is dead and its processes stayed for too long."""
        words = os.pread(fd, 64, 0).split()
        holder = ProcessIdentity(int(words[0]), int(words[1])) if len(words) == 2 else None
        if holder is not None and holder.alive():
            problem = f"pool {self.name!r} is running already as pid {holder.pid} ({self.path}); stop it"
        elif late:
            problem = f"processes of an earlier pool {self.name!r} hold {self.path}/lock for {waited_s:g} s; end them"
        else:
            return
        os.close(fd)
        raise PoolAlreadyRunning(f"{problem}, or choose another --name", holder.pid if holder else None)

    def _check(self) -> None:
        """Refuse what another user could have put there, or could change."""
        for path, forbidden in ((self.base, 0o022), (self.path, 0o077)):
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                problem = "is not a directory (symbolic links are not followed)"
            elif found.st_uid != os.geteuid():
                problem = f"belongs to user {found.st_uid}, not to you ({os.geteuid()})"
            elif found.st_mode & forbidden:
                problem = f"is open to others (mode {stat.S_IMODE(found.st_mode):04o}, expected 0700)"
            else:
                continue
            raise PoolError(f"the {self.kind} directory {path} {problem}; {self.remedy}")

    def _write(self, name: str, data: bytes) -> None:
        """Replace a file of mode 0600 atomically."""
        temporary = self.path / f".{name}.{os.getpid()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(self.path / name)

    def _read(self, name: str) -> bytes | None:
        """A file's content, or None when it (or the directory) is not there."""
        try:
            self._check()
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PoolError(f"cannot read {self.path / name}: {error.strerror}") from None


class RuntimeDir(_PrivateDirectory):
    """`pool.json`, `client.token`, the bus's sockets and private working directories of a running pool."""

    kind = "runtime"
    remedy = "set SPEARPOOL_RUNTIME_DIR to a directory that you own"

    def __init__(self, name: str, base: Path, own_base: bool = True) -> None:
        super().__init__(name, base)
        self._own_base = own_base

    @classmethod
    def locate(cls, name: str, environ: Mapping[str, str]) -> RuntimeDir:
        """Where the pool's files are or would be; nothing is touched. Raises `ConfigError` for an impossible name."""
        if chosen := environ.get("SPEARPOOL_RUNTIME_DIR"):
            return cls(name, Path(chosen).absolute(), own_base=False)
        if session := environ.get("XDG_RUNTIME_DIR"):
            return cls(name, Path(session) / "spearpool")
        return cls(name, Path(environ.get("TMPDIR") or tempfile.gettempdir()) / f"spearpool-{os.geteuid()}")

    def create(self) -> None:
        excess = len(os.fsencode(self.path)) + 1 + _MAX_SOCKET_NAME_BYTES - _MAX_SOCKET_PATH_BYTES
        if excess > 0:
            raise PoolError(
                f"the runtime directory {self.path} is {excess} bytes too deep: the paths of Unix sockets have at most "
                f"{_MAX_SOCKET_PATH_BYTES}; set SPEARPOOL_RUNTIME_DIR to a shorter one"
            )
        super().create()

    @property
    def work_path(self) -> Path:
        """Where instances get their private working directories."""
        return self.path / "work"

    @property
    def agents_path(self) -> Path:
        """The Unix socket that instances dial whose task has the transport `unix`."""
        return self.path / "agents.sock"

    def write_pool(self, pool: PoolDescription) -> None:
        self._write("pool.json", json.dumps(to_plain(pool), indent=1).encode())

    def read_pool(self) -> PoolDescription | None:
        """What `pool.json` says, whether or not that pool still lives; None when there is none. Raises `PoolError`."""
        data = self._read("pool.json")
        if data is None:
            return None
        try:
            return from_plain(json.loads(data), PoolDescription)
        except (ValueError, UnpackError) as error:
            raise PoolError(
                f"{self.path / 'pool.json'} was not written by this version of spearpool: {error}"
            ) from None

    def write_client_token(self, token: str) -> None:
        self._write("client.token", token.encode())

    def read_client_token(self) -> str:
        """Raises `PoolError` when there is none."""
        data = self._read("client.token")
        if data is None:
            raise PoolError(f"there is no client token in {self.path}; is the pool still starting?")
        return data.decode().strip()

    def clear(self) -> None:
        """Remove everything but the lock, which must be held: what a killed pool left behind."""
        assert self._lock_fd is not None, "clear() needs the lock"
        for entry in self.path.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the directory with all that is in it and give up the lock, which must be held."""
        self.clear()
        (self.path / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a new pool of this name may be on its way in
            self.path.rmdir()
        if self._own_base:  # not one that the user named
            with contextlib.suppress(OSError):
                self.base.rmdir()
        self.unlock()


class StateDir(_PrivateDirectory):
    """What outlives a pool: the issuing key, logs and (later) journals."""

    kind = "state"
    remedy = "set --state-dir or XDG_STATE_HOME to a directory that you own"

    @classmethod
    def locate(cls, name: str, environ: Mapping[str, str], chosen: Path | None = None) -> StateDir:
        """`chosen` (`--state-dir`), else `$XDG_STATE_HOME/spearpool`, else `~/.local/state/spearpool`."""
        if chosen is None:
            home = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME') or Path.home()}/.local/state"
            chosen = Path(home) / "spearpool"
        return cls(name, chosen.absolute())

    @property
    def log_path(self) -> Path:
        return self.path / "logs"

    def create(self) -> None:
        super().create()
        self.log_path.mkdir(mode=0o700, exist_ok=True)

    def issuing_key(self) -> tuple[str, bytes]:
        """Key id and secret of the key that signs issued tokens; made at the first call. Raises `PoolError`."""
        self.create()
        data = self._read("issue.key")
        if data is None:
            fresh = f".issue.key.{secrets.token_hex(8)}"
            self._write(fresh, f"{secrets.token_hex(4)} {secrets.token_hex(32)}\n".encode())
            with contextlib.suppress(FileExistsError):  # two at once: the first link is the key
                os.link(self.path / fresh, self.path / "issue.key")
            (self.path / fresh).unlink()
            data = self._read("issue.key") or b""
        try:
            key_id, secret = data.decode().split()
            return key_id, bytes.fromhex(secret)
        except ValueError:
            raise PoolError(f"{self.path / 'issue.key'} is damaged: expected a key id and hexadecimal digits") from None


def find_pool(name: str, environ: Mapping[str, str]) -> PoolDescription:
    """The running pool of that name. Raises `NoSuchPool`, also when its process is gone and only files are left."""
    directory = RuntimeDir.locate(name, environ)
    pool = directory.read_pool()
    if pool is None:
        raise NoSuchPool(f"no pool {name!r} is running for this user (no pool.json in {directory.path})")
    if not pool.supervisor.alive():
        raise NoSuchPool(
            f"pool {name!r} is not running: its supervisor, pid {pool.pid}, is gone and left {directory.path}"
        )
    return pool
