"""Who may connect to the bus: the pool's own user, and root.

libzmq asks a handler at a fixed address inside the process (ZAP, rfc.zeromq.org/spec/27) about each connection to a
socket that has a `ZAP_DOMAIN`; without a domain it does not ask. On ipc the address ends in `uid:gid:pid` of the
peer, as the kernel tells it. File modes keep strangers out already; this is the second lock.
"""

from __future__ import annotations

import asyncio
import os

import zmq

from .sockets import LoopSocket

__all__ = ["Gate"]

_ADDRESS = "inproc://zeromq.zap.01"
_DOMAIN = "spearpool"


class Gate:
    """Answers libzmq's questions about the sockets of one context that it `guard`s. Bind it before them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = LoopSocket(context.socket(zmq.ROUTER), self._answer)
        self._welcome = {0, os.geteuid()}
        self.refused = 0

    @staticmethod
    def guard(socket: zmq.Socket[bytes]) -> None:
        socket.setsockopt_string(zmq.ZAP_DOMAIN, _DOMAIN)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._socket.bind(loop, _ADDRESS)

    def close(self) -> None:
        self._socket.close()

    def _answer(self, frames: list[bytes]) -> None:
        sender, _, version, request_id, _domain, address, *_ = frames
        peer = address.split(b":")[-3:]
        welcome = len(peer) == 3 and peer[0].isdigit() and int(peer[0]) in self._welcome
        self.refused += not welcome
        verdict = (b"200", b"OK", peer[0]) if welcome else (b"400", b"another user's pool", b"")
        self._socket.send([sender, b"", version, request_id, *verdict, b""])
