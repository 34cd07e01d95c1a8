"""The command line. `main` is the program; each command lives in a module of its own and is loaded when it is used."""

from __future__ import annotations

from .group import main

__all__ = ["main"]
