"""The work of the quick start: every top-level module of Python's own library through two tasks of a running pool.

`analyse` (a Python handler) counts names and keywords, `sum` (the program sha256sum) hashes; digests are checked here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

from spearpool import Client

__all__ = ["main"]


def main() -> None:
    """Submit everything at once over one connection, and print what came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="default", help="the pool")
    parser.add_argument("--files", type=int, default=60, help="how many files")
    options = parser.parse_args()
    paths = sorted(Path(os.__file__).parent.glob("*.py"))[: options.files]
    sources = {path.name: path.read_bytes() for path in paths}
    names: Counter[str] = Counter()
    lines = wrong = 0
    with Client(options.name) as client:
        analyses = {name: client.submit("analyse", name, input=data) for name, data in sources.items()}
        digests = {name: client.submit("sum", input=data) for name, data in sources.items()}
        for name, data in sources.items():
            found = json.loads(analyses[name].result(60).output)
            lines += found["lines"]
            names.update(found["most_used"])
            wrong += digests[name].result(60).output.split()[0].decode() != hashlib.sha256(data).hexdigest()
    most_used = ", ".join(name for name, _ in names.most_common(5))
    print(f"{len(sources)} files, {lines} lines; most used names: {most_used}; wrong digests: {wrong}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
