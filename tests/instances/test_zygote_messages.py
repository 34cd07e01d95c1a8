"""The records between warden and zygote survive the way, each in its own direction."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.launch import ForkSpec
from spearpool.instances.zygote_messages import (
    Fork,
    Forked,
    FromZygote,
    Imported,
    ImportFailed,
    WardenEnd,
    ZygoteEnd,
    warden_end,
    zygote_end,
)
from spearpool.packing import UnpackError


@pytest.fixture
def ends() -> Iterator[tuple[WardenEnd, ZygoteEnd]]:
    ours, theirs = WardenEnd.pair()
    warden, zygote = warden_end(ours), zygote_end(theirs)
    yield warden, zygote
    warden.close()
    zygote.close()


def test_a_fork_request(ends: tuple[WardenEnd, ZygoteEnd]) -> None:
    warden, zygote = ends
    request = Fork(7, ForkSpec(1, ["sha256sum", "-b"], {"A": "ü"}, "/", ResourceLimits(nice=3, cpu_affinity=(0,))))
    warden.send(request)
    assert zygote.receive() == (request, [])


@pytest.mark.parametrize("answer", [Imported(), ImportFailed("Traceback …\n"), Forked(7, 12345, 2**62)])
def test_answers(ends: tuple[WardenEnd, ZygoteEnd], answer: FromZygote) -> None:
    warden, zygote = ends
    zygote.send(answer)
    assert warden.receive() == (answer, [])


def test_an_answer_is_no_request(ends: tuple[WardenEnd, ZygoteEnd]) -> None:
    warden, zygote = ends
    warden.send(Imported())  # type: ignore[arg-type]
    with pytest.raises(UnpackError):
        zygote.receive()
