"""The records between supervisor and warden survive the way, each in its own direction."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.launch import Exited, ForkSpec, Launched, LaunchFailed, LaunchSpec, ZygoteReady, ZygoteSpec
from spearpool.packing import UnpackError
from spearpool.supervisor.warden_messages import (
    FromWarden,
    KillTree,
    Launch,
    SignalGroup,
    SpawnWorker,
    SupervisorEnd,
    ToWarden,
    WardenEnd,
    supervisor_end,
    warden_end,
)

LIMITS = ResourceLimits(memory_bytes=1 << 40, cpu_affinity=(0,))


@pytest.fixture
def ends() -> Iterator[tuple[SupervisorEnd, WardenEnd]]:
    ours, theirs = SupervisorEnd.pair()
    supervisor, warden = supervisor_end(ours), warden_end(theirs)
    yield supervisor, warden
    supervisor.close()
    warden.close()


@pytest.mark.parametrize(
    "request_",
    [
        SpawnWorker(-1, "0 [ü]"),
        Launch(1, LaunchSpec(["a", "", "ü"], {"K": "v=w"}, "/", LIMITS)),
        Launch(2, ZygoteSpec("", {}, "/")),
        Launch(3, ForkSpec(2, [], {}, "/", ResourceLimits())),
        SignalGroup(3, 15),
        KillTree(-1),
    ],
)
def test_requests(ends: tuple[SupervisorEnd, WardenEnd], request_: ToWarden) -> None:
    supervisor, warden = ends
    supervisor.send(request_)
    assert warden.receive() == (request_, [])


@pytest.mark.parametrize(
    "report",
    [Launched(1, 2, 3, 4), LaunchFailed(-1, "why\n"), ZygoteReady(1), Exited(1, 2, 0, None), Exited(1, 2, None, 9)],
)
def test_reports(ends: tuple[SupervisorEnd, WardenEnd], report: FromWarden) -> None:
    supervisor, warden = ends
    warden.send(report, [1])
    received = supervisor.receive()
    assert received is not None
    assert received[0] == report
    assert os.fstat(received[1][0]) == os.fstat(1)
    os.close(received[1][0])


def test_a_request_is_no_report(ends: tuple[SupervisorEnd, WardenEnd]) -> None:
    supervisor, warden = ends
    warden.send(KillTree(1))  # type: ignore[arg-type]
    with pytest.raises(UnpackError):
        supervisor.receive()
