"""What the supervisor asks of the warden, and what the warden reports. Both are about *launches*, named by number."""

from __future__ import annotations

import socket

from spearpool.channel import Channel
from spearpool.instances.launch import Exited, ForkSpec, Launched, LaunchFailed, LaunchSpec, ZygoteReady, ZygoteSpec
from spearpool.packing import Packer, Record

__all__ = [
    "FromWarden",
    "KillTree",
    "Launch",
    "SignalGroup",
    "SignalTree",
    "SpawnWorker",
    "SupervisorEnd",
    "ToWarden",
    "WardenEnd",
    "supervisor_end",
    "warden_end",
]


class SpawnWorker(Record, frozen=True):
    """Fork a worker; descriptor: its end of the control channel. `name` is shown as its process title."""

    launch: int
    name: str


class Launch(Record, frozen=True):
    """Start a program, a zygote, or an instance from a zygote; descriptor: its log."""

    launch: int
    spec: LaunchSpec | ZygoteSpec | ForkSpec


class SignalGroup(Record, frozen=True):
    """Send a signal to the launch's process group."""

    launch: int
    signum: int


class SignalTree(Record, frozen=True):
    """Send a signal to the launch's process and all that descends from it."""

    launch: int
    signum: int


class KillTree(Record, frozen=True):
    """SIGKILL the launch's process and all that descends from it."""

    launch: int


ToWarden = SpawnWorker | Launch | SignalGroup | SignalTree | KillTree
FromWarden = Launched | LaunchFailed | ZygoteReady | Exited

_TO_WARDEN: Packer[ToWarden] = Packer(ToWarden)
_FROM_WARDEN: Packer[FromWarden] = Packer(FromWarden)

WardenEnd = Channel[ToWarden, FromWarden]
SupervisorEnd = Channel[FromWarden, ToWarden]


def warden_end(sock: socket.socket) -> WardenEnd:
    return Channel(sock, _TO_WARDEN, _FROM_WARDEN)


def supervisor_end(sock: socket.socket) -> SupervisorEnd:
    return Channel(sock, _FROM_WARDEN, _TO_WARDEN)
