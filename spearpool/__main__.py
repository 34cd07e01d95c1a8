"""`python -m spearpool`: the command line, without a script on the path."""

from __future__ import annotations

from spearpool.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main(prog_name="spearpool")
