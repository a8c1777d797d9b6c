"""A network of one's own: Milvus listens on all addresses."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

NEW_NETWORK = 0x40000000  # CLONE_NEWNET of <sched.h>
SET_FLAGS = 0x8914  # SIOCSIFFLAGS of <linux/sockios.h>
UP = 0x1 | 0x40  # IFF_UP, IFF_RUNNING of <net/if.h>


def alone() -> bool:
    """Whether nobody else can reach what listens here."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def leave() -> bool:
    """Leave all networks, with everything that this thread starts; whether that could be done.

    It takes root. Others start the tests in a network of their own: ``unshare --map-current-user
    --keep-caps --net sh -c 'ip link set lo up && exec "$@"' sh python -m pytest``.
    """
    if alone():
        return True
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK):
        return False
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))
    return True
