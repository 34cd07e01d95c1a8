from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from spearpool.errors import ConfigError, NoSuchPool, PoolAlreadyRunning, PoolError
from spearpool.processes import ProcessIdentity
from spearpool.runtime_dir import Endpoints, PoolDescription, RuntimeDir, StateDir, find_pool


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"SPEARPOOL_RUNTIME_DIR": str(tmp_path / "run"), "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def directory(environ: dict[str, str]) -> RuntimeDir:
    return RuntimeDir.locate("shop", environ)


def description(directory: RuntimeDir, owner: ProcessIdentity) -> PoolDescription:
    return PoolDescription(
        name="shop",
        pid=owner.pid,
        start_ticks=owner.start_ticks,
        host="127.0.0.1",
        port=9100,
        endpoints=Endpoints(live=f"ipc://{directory.path}/live", ask=f"ipc://{directory.path}/ask"),
        segment="/dev/shm/spearpool-shop",
        epoch=7,
        runtime_dir=str(directory.path),
        log_dir="/nowhere/logs",
        version="0.1.0",
        workers=2,
    )


def ourselves() -> ProcessIdentity:
    return ProcessIdentity.of(os.getpid())


def somebody_dead() -> ProcessIdentity:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.of(child.pid)
    child.communicate()
    return identity


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SPEARPOOL_RUNTIME_DIR": "/a", "XDG_RUNTIME_DIR": "/b", "TMPDIR": "/c"}, "/a/shop"),
        ({"XDG_RUNTIME_DIR": "/b", "TMPDIR": "/c"}, "/b/spearpool/shop"),
        ({"TMPDIR": "/c"}, f"/c/spearpool-{os.geteuid()}/shop"),
    ],
)
def test_where_the_runtime_directory_is(environ: dict[str, str], expected: str) -> None:
    assert RuntimeDir.locate("shop", environ).path == Path(expected)


@pytest.mark.parametrize(
    ("environ", "chosen", "expected"),
    [
        ({"XDG_STATE_HOME": "/s"}, Path("/chosen"), "/chosen/shop"),
        ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, None, "/s/spearpool/shop"),
        ({"HOME": "/h"}, None, "/h/.local/state/spearpool/shop"),
    ],
)
def test_where_the_state_directory_is(environ: dict[str, str], chosen: Path | None, expected: str) -> None:
    assert StateDir.locate("shop", environ, chosen).path == Path(expected)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "x" * 64, "a\n"])
def test_a_name_cannot_leave_its_directory(name: str, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"pool\.name"):
        RuntimeDir.locate(name, environ)


def test_directories_and_files_are_private(directory: RuntimeDir) -> None:
    previous = os.umask(0)
    try:
        directory.lock()
        directory.write_pool(description(directory, ourselves()))
        directory.write_client_token("secret")
    finally:
        os.umask(previous)
    for path in (directory.base, directory.path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in ("pool.json", "client.token", "lock"):
        assert stat.S_IMODE((directory.path / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in directory.path.iterdir()) == ["client.token", "lock", "pool.json"]
    directory.remove()


def _link(path: Path, target: Path) -> None:
    target.mkdir()
    path.symlink_to(target)


def _give_away(path: Path, target: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, 12345, -1)


def _file(path: Path, target: Path) -> None:
    path.write_text("")


def _open(path: Path, target: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize("which", ["base", "path"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_link, "is not a directory (symbolic links are not followed)"),
        (_file, "not a directory"),
        (_open, "is open to others (mode 0777, expected 0700)"),
        pytest.param(
            _give_away,
            "belongs to user 12345, not to you",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away"),
        ),
    ],
)
def test_a_directory_that_others_could_have_made_is_refused(
    spoil: object, words: str, which: str, directory: RuntimeDir, tmp_path: Path
) -> None:
    if which == "path":
        directory.base.mkdir(mode=0o700)
    assert callable(spoil)
    spoil(getattr(directory, which), tmp_path / "elsewhere")
    for act in (directory.create, directory.lock, directory.read_pool):
        with pytest.raises(PoolError, match=f"(?i){re.escape(words)}.*; set SPEARPOOL_RUNTIME_DIR to a directory"):
            act()


def test_a_place_where_nothing_can_be_made() -> None:
    with pytest.raises(PoolError, match="cannot make the runtime directory /proc/nowhere/shop"):
        RuntimeDir.locate("shop", {"SPEARPOOL_RUNTIME_DIR": "/proc/nowhere"}).lock()


def test_too_deep_for_sockets(tmp_path: Path) -> None:
    base = tmp_path / ("d" * 100)
    with pytest.raises(PoolError, match="bytes too deep"):
        RuntimeDir.locate("shop", {"SPEARPOOL_RUNTIME_DIR": str(base)}).lock()
    assert not base.exists()


def test_a_second_pool_of_the_name_is_refused_with_the_pid(directory: RuntimeDir, environ: dict[str, str]) -> None:
    directory.lock()
    with pytest.raises(PoolAlreadyRunning, match=rf"'shop' is running already as pid {os.getpid()} ") as caught:
        RuntimeDir.locate("shop", environ).lock()
    assert caught.value.pid == os.getpid()
    directory.unlock()
    second = RuntimeDir.locate("shop", environ)
    second.lock()
    second.unlock()


HOLD_IN_A_CHILD = """
import os, sys
from spearpool.runtime_dir import RuntimeDir
directory = RuntimeDir.locate("shop", {"SPEARPOOL_RUNTIME_DIR": sys.argv[1]})
directory.lock()
if os.fork() == 0:
    print("held", flush=True)
    sys.stdin.readline()
    os._exit(0)
os._exit(0)
"""


def test_the_lock_waits_for_the_processes_of_a_dead_supervisor(directory: RuntimeDir) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_IN_A_CHILD, str(directory.base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        child.wait(10)
        with pytest.raises(
            PoolAlreadyRunning, match=r"processes of an earlier pool 'shop' hold .*; end them"
        ) as caught:
            directory.lock(wait_s=0.1)
        assert caught.value.pid == child.pid
        child.stdin.write("\n")
        child.stdin.flush()
        directory.lock(wait_s=10)
        directory.remove()


def test_the_lock_is_taken_anew_when_its_holder_removes_the_directory(
    directory: RuntimeDir, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder leaves just between the newcomer's `open` and `flock`: a lock on a removed file is none."""
    directory.lock()
    newcomer = RuntimeDir.locate("shop", environ)
    real_open = os.open

    def open_then_remove(path: object, *arguments: object, **more: object) -> int:
        fd = real_open(path, *arguments, **more)  # type: ignore[arg-type]
        if str(path).endswith("lock"):
            monkeypatch.undo()
            directory.remove()
        return fd

    monkeypatch.setattr(os, "open", open_then_remove)
    newcomer.lock()
    with pytest.raises(PoolAlreadyRunning):
        directory.lock()
    newcomer.remove()
    assert not directory.path.exists()


def test_find_pool(directory: RuntimeDir, environ: dict[str, str]) -> None:
    with pytest.raises(NoSuchPool, match=r"no pool 'shop' is running for this user \(no pool.json in "):
        find_pool("shop", environ)
    directory.lock()
    pool = description(directory, ourselves())
    directory.write_pool(pool)
    assert find_pool("shop", environ) == pool
    assert json.loads((directory.path / "pool.json").read_text())["endpoints"]["ask"].endswith("/ask")
    directory.write_pool(description(directory, somebody_dead()))
    with pytest.raises(NoSuchPool, match=r"its supervisor, pid \d+, is gone"):
        find_pool("shop", environ)
    directory.write_pool(description(directory, ProcessIdentity(os.getpid(), ourselves().start_ticks + 1)))
    with pytest.raises(NoSuchPool, match=r"is gone"):
        find_pool("shop", environ)
    directory.remove()
    with pytest.raises(NoSuchPool):
        find_pool("shop", environ)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "shop"}', b"\xff"])
def test_a_damaged_description(content: bytes, directory: RuntimeDir) -> None:
    directory.create()
    (directory.path / "pool.json").write_bytes(content)
    with pytest.raises(PoolError, match=r"pool\.json was not written by this version of spearpool"):
        directory.read_pool()


def test_the_client_token(directory: RuntimeDir) -> None:
    with pytest.raises(PoolError, match="no client token"):
        directory.read_client_token()
    directory.lock()
    for token in ("v1.first", "v1.second"):
        directory.write_client_token(token)
        assert directory.read_client_token() == token
    directory.remove()


def test_clear_takes_what_a_killed_pool_left(directory: RuntimeDir) -> None:
    directory.lock()
    directory.write_pool(description(directory, somebody_dead()))
    (directory.path / "live").write_text("")
    (directory.work_path / "deep" / "er").mkdir(parents=True)
    (directory.path / "link").symlink_to(directory.base)
    directory.clear()
    assert [path.name for path in directory.path.iterdir()] == ["lock"]
    assert directory.base.is_dir()
    directory.remove()


def test_remove_leaves_nothing_of_ours_and_keeps_what_is_not(tmp_path: Path) -> None:
    chosen = RuntimeDir.locate("shop", {"SPEARPOOL_RUNTIME_DIR": str(tmp_path / "chosen")})
    ours = RuntimeDir.locate("shop", {"XDG_RUNTIME_DIR": str(tmp_path)})
    neighbour = RuntimeDir.locate("other", {"XDG_RUNTIME_DIR": str(tmp_path)})
    for directory in (chosen, ours, neighbour):
        directory.lock()
    chosen.remove()
    ours.remove()
    assert chosen.base.exists()
    assert [path.name for path in ours.base.iterdir()] == ["other"]
    neighbour.remove()
    assert not ours.base.exists()


def test_the_issuing_key_is_made_once_and_stays(environ: dict[str, str]) -> None:
    state = StateDir.locate("shop", environ)
    key_id, secret = state.issuing_key()
    assert key_id
    assert len(secret) == 32
    assert StateDir.locate("shop", environ).issuing_key() == (key_id, secret)
    assert StateDir.locate("other", environ).issuing_key() != (key_id, secret)
    assert stat.S_IMODE((state.path / "issue.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.log_path.stat().st_mode) == 0o700
    assert sorted(path.name for path in state.path.iterdir()) == ["issue.key", "logs"]
    (state.path / "issue.key").write_text("nonsense")
    with pytest.raises(PoolError, match="damaged"):
        state.issuing_key()


def test_the_state_directory_is_locked_too(environ: dict[str, str]) -> None:
    state = StateDir.locate("shop", environ)
    state.lock()
    with pytest.raises(PoolAlreadyRunning):
        StateDir.locate("shop", environ).lock()
    state.unlock()
