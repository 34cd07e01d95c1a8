#!/usr/bin/env python3
"""The least work there is: give the input back. As a handler (`python:echo_task:echo`), and as an agent program."""

from __future__ import annotations

from spearpool.agent import Request, serve

__all__ = ["echo", "echo_bytes"]


def echo(request: Request) -> bytes:
    return request.input


def echo_bytes(data: bytes) -> bytes:
    """The same for a process pool."""
    return data


if __name__ == "__main__":
    serve(echo)
