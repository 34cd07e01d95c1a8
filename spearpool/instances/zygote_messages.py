"""What the warden and a zygote say to each other. A zygote answers a `Fork` by `Forked`, or through its status pipe."""

from __future__ import annotations

import socket

from spearpool.channel import Channel
from spearpool.packing import Packer, Record

from .launch import ForkSpec

__all__ = [
    "Fork",
    "Forked",
    "FromZygote",
    "ImportFailed",
    "Imported",
    "WardenEnd",
    "ZygoteEnd",
    "warden_end",
    "zygote_end",
]


class Fork(Record, frozen=True):
    """Fork an instance; descriptors: its log, its status pipe's write end."""

    launch: int
    spec: ForkSpec


class Imported(Record, frozen=True):
    """The target is imported; the zygote can fork."""


class ImportFailed(Record, frozen=True):
    """The target cannot be imported, or cannot be forked safely; the zygote exits."""

    reason: str


class Forked(Record, frozen=True):
    """The instance exists; `forked_ns` as in `Launched`. It is sent before it can become the warden's child."""

    launch: int
    pid: int
    forked_ns: int


FromZygote = Imported | ImportFailed | Forked

_TO_ZYGOTE: Packer[Fork] = Packer(Fork)
_FROM_ZYGOTE: Packer[FromZygote] = Packer(FromZygote)

WardenEnd = Channel[FromZygote, Fork]
ZygoteEnd = Channel[Fork, FromZygote]


def warden_end(sock: socket.socket) -> WardenEnd:
    return Channel(sock, _FROM_ZYGOTE, _TO_ZYGOTE)


def zygote_end(sock: socket.socket) -> ZygoteEnd:
    return Channel(sock, _TO_ZYGOTE, _FROM_ZYGOTE)
