from __future__ import annotations

import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.launch import (
    Exited,
    ForkSpec,
    Launched,
    Launcher,
    LaunchFailed,
    LaunchSpec,
    ZygoteReady,
    ZygoteSpec,
)
from spearpool.packing import Packer
from spearpool.supervisor.warden import Warden

LIMITS = ResourceLimits(memory_bytes=1, cpu_seconds=2, open_files=64, nice=-3, cpu_affinity=None)

Values = LaunchSpec | ZygoteSpec | ForkSpec | Launched | LaunchFailed | ZygoteReady | Exited


@pytest.mark.parametrize(
    "value",
    [
        LaunchSpec(["sh", "-c", "exit"], {"A": "b"}, "/", LIMITS),
        ZygoteSpec("shop:thumb", {}, "/"),
        ForkSpec(2**40, [], {"A": ""}, "/", ResourceLimits()),
        Launched(1, 2, 2**60, 2**62),
        LaunchFailed(1, "Traceback …"),
        ZygoteReady(1),
        Exited(1, 2, 0, None),
        Exited(-7, 2, None, 9),
    ],
    ids=lambda value: type(value).__name__,
)
def test_everything_survives_the_way_to_the_warden_and_back(value: Values) -> None:
    packer: Packer[Values] = Packer(Values)
    assert packer.unpack(packer.pack(value)) == value


@pytest.mark.parametrize(("code", "signal", "expected"), [(0, None, 0), (3, None, 3), (None, 9, -9)])
def test_the_end_of_a_process_in_one_number(code: int | None, signal: int | None, expected: int) -> None:
    assert Exited(1, 2, code, signal).returncode == expected


def test_the_warden_is_a_launcher() -> None:
    """mypy checks the signatures by this assignment; the names are checked here."""
    kind: type[Launcher] = Warden
    names = [name for name in vars(Launcher) if not name.startswith("_")]
    assert set(names) >= {"launch", "signal_group", "kill_tree"}
    assert all(callable(getattr(kind, name)) for name in names)
