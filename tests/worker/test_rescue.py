from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from spearpool.worker.rescue import Rescuer
from tests.conftest import eventually_async

pytestmark = pytest.mark.asyncio


def _listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


class Bench:
    """Two listeners as the supervisor keeps them; whom the rescuer accepts is counted."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.accepted = 0
        self.stack = stack
        self.listeners = [stack.enter_context(_listener()) for _ in range(2)]
        self.rescuer = Rescuer(asyncio.get_running_loop(), self._count)

    def _count(self) -> asyncio.Protocol:
        bench = self

        class Counter(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                bench.accepted += 1
                transport.close()

        return Counter()

    def lend(self, slot: int) -> None:
        self.rescuer.begin(slot, self.listeners[slot].dup())

    def dial(self, slot: int) -> None:
        self.stack.enter_context(socket.create_connection(self.listeners[slot].getsockname(), timeout=10))

    async def owner_accepts(self, slot: int) -> None:
        """The next one who dials waits for the slot's own worker, and for nobody else."""
        before = self.accepted
        self.dial(slot)
        await self.settle()
        self.listeners[slot].accept()[0].close()
        assert self.accepted == before

    async def settle(self) -> None:
        """Whatever is ready has its turn."""
        for _ in range(5):
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def benching() -> AsyncIterator[Bench]:
    with contextlib.ExitStack() as stack:
        bench = Bench(stack)
        yield bench
        bench.rescuer.close()
        await bench.settle()


async def test_who_waits_at_a_lent_listener_is_accepted() -> None:
    async with benching() as bench:
        for _ in range(3):
            bench.dial(0)
        bench.lend(0)
        await eventually_async(lambda: bench.accepted == 3)
        bench.dial(0)
        await eventually_async(lambda: bench.accepted == 4)
        bench.dial(1)
        bench.lend(1)
        await eventually_async(lambda: bench.accepted == 5)


@pytest.mark.parametrize("used", [False, True])
async def test_a_listener_that_was_taken_back_is_the_owners_again(used: bool) -> None:
    """However short the loan was. It listens on."""
    async with benching() as bench:
        bench.lend(0)
        if used:
            bench.dial(0)
            await eventually_async(lambda: bench.accepted == 1)
        bench.rescuer.over(0)
        await bench.owner_accepts(0)


async def test_what_was_never_lent_and_what_was_lent_twice() -> None:
    async with benching() as bench:
        bench.rescuer.over(7)
        bench.lend(0)
        bench.lend(0)
        bench.dial(0)
        await eventually_async(lambda: bench.accepted == 1)
        bench.rescuer.over(0)
        await bench.owner_accepts(0)


async def test_a_worker_that_leaves_gives_all_of_them_up() -> None:
    async with benching() as bench:
        for slot in range(2):
            bench.lend(slot)
            bench.dial(slot)
        await eventually_async(lambda: bench.accepted == 2)
        bench.rescuer.close()
        for slot in range(2):
            await bench.owner_accepts(slot)
