"""Steering: which slots of the port the kernel hands new connections to.

Left alone, the kernel spreads connections over all sockets that listen on the port by a hash: also to slots whose
worker is dead or about to leave, and to a stranger of the same user that joins the port. A classic BPF program on the
group of sockets (SO_ATTACH_REUSEPORT_CBPF: no privilege needed, replaced live within microseconds) picks the socket
instead, by its index in the group, which is the slot. The program counts the slots that serve in *runs* of neighbours:

    A = random number modulo the number of serving slots      the A-th of them, counted from 0
    for each run but the last:  is A below the end of the run?  then answer A + its shift
    answer A + the shift of the last run                      the shift: how many slots below do not serve

The kernel asks it once per connection (for the SYN, whose socket request then keeps the slot), so a random number does
as well as a hash, and spreads as evenly: of 1,600 connections over 8 slots the fullest slot got 1.06 to 1.15 times the
mean, by the kernel's hash 1.03 to 1.15, by the packet's 1.04 to 1.11. That one was rejected because some network
drivers leave it 0, and then one slot would get everything.

It is no boundary: every member of the group may attach a program of its own.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

from spearpool.log import get_logger

__all__ = ["Steering", "found_group", "program"]

_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_DETACH_REUSEPORT_BPF = 68

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_MODULO = 0x94  # BPF_ALU | BPF_MOD | BPF_K
_ADD = 0x04  # BPF_ALU | BPF_ADD | BPF_K
_JUMP_IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN_A = 0x16  # BPF_RET | BPF_A
_RANDOM = 0xFFFF_F038  # SKF_AD_OFF + SKF_AD_RANDOM

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, constant
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog: number of instructions, their address

Instruction = tuple[int, int, int, int]


class Steering:
    """Steers the group that `member`, any of its sockets, belongs to. Until the first `steer` the kernel hashes."""

    def __init__(self, member: socket.socket) -> None:
        self._member = member
        self._slots: tuple[int, ...] = ()
        self._refusal = ""
        self._log = get_logger("steering")

    def steer(self, slots: Sequence[int]) -> None:
        """From now on new connections go to these slots, evenly. With none of them, all stays as it was.

        Where the kernel refuses, it goes on hashing, and each change is tried again.
        """
        if not slots or tuple(slots) == self._slots:
            return
        try:
            _attach(self._member, slots)
        except OSError as error:
            self._let_hash(error)
        else:
            self._slots, self._refusal = tuple(slots), ""

    @property
    def status(self) -> str:
        """`bpf`, or `hash: ` and why the kernel refuses to be steered."""
        return f"hash: {self._refusal}" if self._refusal else "bpf"

    def _let_hash(self, error: OSError) -> None:
        refusal = error.strerror or str(error)
        if refusal != self._refusal:
            self._log.warning("the kernel refuses to steer new connections: it spreads them by a hash", reason=refusal)
        self._slots, self._refusal = (), refusal
        with suppress(OSError):  # there is none. One of better days would go on steering by what was true then
            self._member.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)


def found_group(sock: socket.socket) -> None:
    """Make a bound socket that does not listen yet a group of one, which can be steered.

    The kernel founds a group when a second socket joins, so a single one could not be told to ignore strangers. A
    program that is attached before `listen` founds it as well. Sharing is off again afterwards, for `listen` to be
    exclusive. Where the kernel refuses, the group is founded later.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    with suppress(OSError):
        _attach(sock, [0])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def program(slots: Sequence[int]) -> bytes:
    """The instructions that answer with one of `slots`, which rise and are at least one."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in _instructions(slots))


def _instructions(slots: Sequence[int]) -> Iterator[Instruction]:
    yield _LOAD, 0, 0, _RANDOM
    yield _MODULO, 0, 0, len(slots)
    for place, slot in enumerate(slots):
        is_last = place + 1 == len(slots)
        if is_last or slots[place + 1] != slot + 1:  # a run ends here
            if not is_last:
                yield _JUMP_IF_AT_LEAST, 2, 0, place + 1
            yield _ADD, 0, 0, slot - place
            yield _RETURN_A, 0, 0, 0


def _attach(sock: socket.socket, slots: Sequence[int]) -> None:
    code = program(slots)
    instructions = ctypes.create_string_buffer(code, len(code))
    pointer = _PROGRAM.pack(len(code) // _INSTRUCTION.size, ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, pointer)
