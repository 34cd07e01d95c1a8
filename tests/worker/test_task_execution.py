from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from spearpool.protocol.messages import ExecuteResponse

from .peers import agent, client, request
from .workers import new_pool

pytestmark = pytest.mark.asyncio


async def test_executes(tmp_path: Path) -> None:
    async with new_pool(tmp_path) as pool:
        worker = await pool.worker()
        _, name, token = pool.instance("echo")
        served = await agent(worker, name, token)
        caller = await client(worker)
        serving = asyncio.create_task(served.serve(lambda r: (r.input_data or b"").decode()))
        answer = await caller.execute(request(input=b"hello"))
        assert isinstance(answer, ExecuteResponse)
        assert answer.output == "hello"
        caller.close()
        served.close()
        await serving
