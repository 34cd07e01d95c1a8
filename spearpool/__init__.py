"""spearpool runs task programs as supervised, authenticated, resource-limited processes behind one port.

`Pool` starts a pool as a child of this program, `Client` talks to any running pool; task programs import
`spearpool.agent` only. Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spearpool.client import Client as Client
    from spearpool.client import Pool as Pool

__all__ = ["Client", "Pool", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in {"Client", "Pool"}:
        import spearpool.client

        return getattr(spearpool.client, name)
    raise AttributeError(f"module 'spearpool' has no attribute {name!r}")
