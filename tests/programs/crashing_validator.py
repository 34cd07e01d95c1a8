"""A validator whose import ends the worker of slot 0 while the file that `SPEARPOOL_TEST_CRASH` names is there."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["refuse"]

WORDS = Path("/proc/self/cmdline").read_text(encoding="utf-8", errors="replace")

if "worker 0 " in WORDS and Path(os.environ["SPEARPOOL_TEST_CRASH"]).exists():
    os._exit(3)


def refuse(_instance_id: str, _token: str) -> None:
    return None
