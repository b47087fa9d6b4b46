"""A mapped file that became shorter, or a disk that failed under it -> one sentence that names the file, instead of SIGBUS alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_SI_ADDR = 16  # offset in siginfo_t, 64-bit Linux
_SA_SIGINFO = 4
_kept: list[Any] = []  # the C library holds pointers to these


class _SigAction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def name_mapped_file(say: Callable[[str], None]) -> None:
    """At a bus error, find the mapped file behind the address, tell `say` in a sentence, and end with code 2.

    A handler of the signal module would never run: Python handles signals between instructions, and this one comes back
    until its cause is gone. On other systems than 64-bit Linux nothing changes.

    Args:
        say: Writes the sentence where people look; the process ends when it returns.
    """
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return

    def handle(_number: int, info: int, _context: int) -> None:
        try:
            address = ctypes.c_uint64.from_address(info + _SI_ADDR).value
            say(
                f"a bus error while reading {_mapped_at(address)}: the file became shorter, or its disk failed, while it was in "
                "use; see what changes it, make it anew where it is damaged (for a token store: sft-dist prepare --rebuild with "
                "the arguments of this run), then the same command continues"
            )
        finally:
            os._exit(2)

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(handle)
    action = _SigAction(handler=ctypes.cast(callback, ctypes.c_void_p), flags=_SA_SIGINFO)
    _kept[:] = [callback, action]
    ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(action), None)


def _mapped_at(address: int) -> str:
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, *_, path = line.rstrip("\n").split(maxsplit=5)
            first, _, end = span.partition("-")
            if int(first, 16) <= address < int(end, 16) and path.startswith("/"):
                return path
    return "mapped memory"
