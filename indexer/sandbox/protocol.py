"""What the processes tell each other, and in what form."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NUMBER = struct.Struct("<Q")
COMMAND = struct.Struct("<cQ")
FORK, END, ANSWER = b"F", b"E", b"A"

PAGE = 4096
"""Bytes in which a worker notes the file that it looks at: the length of its name, and the name."""

NAME = PAGE - NUMBER.size


@dataclass(frozen=True)
class Request:
    """A call that a worker is to make.

    Attributes
    ----------
    operation : str
    arguments : tuple
    folder : str
        Where paths begin that do not say it.
    where : str
        What an error is about that says nothing itself.
    seconds : float
        Of the processor that it may take.
    anew : bool
        Whether each file may take so much.
    refused : mapping of str to str
        Files that are not to be looked at, and why.
    """

    operation: str
    arguments: tuple[Any, ...]
    folder: str
    where: str
    seconds: float
    anew: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


def exactly(connection: socket.socket, size: int) -> bytes | None:
    """So many bytes, or None if nobody is there any more."""
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size:
        if not (got := connection.recv_into(view[done:])):
            return None
        done += got
    return bytes(content)
