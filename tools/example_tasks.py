"""The Python task of the quick start: looks at Python source files, which every installation carries.

`spearpool start --task analyse=python:example_tasks:analyse` with this folder on PYTHONPATH.
"""

from __future__ import annotations

import io
import json
import keyword
import tokenize
from collections import Counter

from spearpool.agent import Request

__all__ = ["analyse"]


def analyse(request: Request) -> str:
    """Count lines, names and keywords of the Python source in `request.input`; answers with one JSON object."""
    source = request.input.decode("utf-8", "replace")
    names: Counter[str] = Counter()
    keywords = comments = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += 1
        elif token.type == tokenize.NAME and keyword.iskeyword(token.string):
            keywords += 1
        elif token.type == tokenize.NAME:
            names[token.string] += 1
    return json.dumps(
        {
            "file": request.args[0] if request.args else None,
            "lines": source.count("\n"),
            "names": len(names),
            "keywords": keywords,
            "comments": comments,
            "most_used": [name for name, _ in names.most_common(3)],
        }
    )
