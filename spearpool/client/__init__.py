"""What a program that uses a pool imports: `Client` for a running pool, `Pool` for one of its own."""

from __future__ import annotations

from .client import Client
from .outcome import ExecutionResult
from .pool import Pool

__all__ = ["Client", "ExecutionResult", "Pool"]
