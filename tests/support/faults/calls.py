"""System calls of a child process: at a chosen one it fails, is cut short, or a signal comes.

The kernel asks this process what to do with each call that changes the disk (``SECCOMP_RET_USER_NOTIF``),
so nothing is put in a function's place: Python, SQLite and what else writes are treated alike.
On Linux, x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

WRITING = {
    "write": 1, "close": 3, "pwrite64": 18, "writev": 20, "fsync": 74, "fdatasync": 75, "ftruncate": 77,
    "rename": 82, "mkdir": 83, "rmdir": 84, "unlink": 87, "fchmod": 91, "openat": 257, "mkdirat": 258,
    "unlinkat": 263, "renameat": 264, "fallocate": 285, "renameat2": 316,
}  # fmt: skip
READING = {"read": 0, "stat": 4, "pread64": 17, "newfstatat": 262}
NAMES = {number: name for name, number in (WRITING | READING).items()}
BY_NAME = {"rename", "mkdir", "rmdir", "unlink", "stat"}
BY_NAME_AT = {"openat", "mkdirat", "unlinkat", "renameat", "renameat2", "newfstatat"}
ROOM = {"write", "pwrite64", "writev", "ftruncate", "mkdir", "mkdirat", "openat", "fallocate", "fsync",
        "fdatasync", "rename", "renameat", "renameat2"}  # fmt: skip
"""Calls that a full disk refuses."""
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OWN = ("/memfd:", "/dev/null", "/var/tmp/etilqs_")
"""Beginnings of what is no file of anybody: nothing, memory, and what SQLite works with when it tidies."""
FULL = (errno.ENOSPC, errno.EDQUOT)

_SECCOMP, _PIDFD_GETFD, _NO_NEW_PRIVILEGES = 317, 438, 38
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_ALLOW, _NOTIFY, _X86_64 = 0x7FFF0000, 0x7FC00000, 0xC000003E
_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    """Whether the kernel asks."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    return platform.machine() == "x86_64" and actions.exists() and "user_notif" in actions.read_text()


@dataclass
class Fault:
    """What happens at the call of this number among those of a folder; calls are counted from one.

    Attributes
    ----------
    at : int
        0 for nothing.
    error : int
        That the call fails with; 0 for none.
    lasting : bool
        The calls after it fail, too: those that need room where there is none, else all.
    torn : bool
        A write does half of what it should: and is killed, or the rest of it fails.
    signal : int
        That comes before the call is made; 0 for none.
    reading : bool
        Calls that only read are counted, too.
    """

    at: int = 0
    error: int = 0
    lasting: bool = False
    torn: bool = False
    signal: int = 0
    reading: bool = False

    def __str__(self) -> str:
        what = [errno.errorcode[self.error]] if self.error else []
        what += [signal.Signals(self.signal).name] if self.signal else []
        what += [word for word in ("lasting", "torn") if getattr(self, word)]
        return f"{' '.join(what) or 'nothing'} at call {self.at}"


@dataclass
class Watched:
    """What a child did.

    Attributes
    ----------
    status : int
        As ``os.waitstatus_to_exitcode`` gives it: negative for a signal.
    calls : int
        That it made in the folder.
    met : str
        Which call the fault came at; empty if there were fewer.
    abroad : list of str
        Calls that change something else than what they may.
    """

    status: int = 0
    calls: int = 0
    met: str = ""
    abroad: list[str] = field(default_factory=list)


def watch(
    work: Callable[[], None],
    folder: Path,
    fault: Fault,
    seconds: float = 120,
    allowed: tuple[Path, ...] | None = None,
) -> Watched:
    """Fork a child that does the work while calls on what lies in a folder are watched.

    What it changes elsewhere than in the `allowed` folders is taken down, if these are given.

    Raises
    ------
    TimeoutError
        If it takes too long; it was killed.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            listener = _listen(WRITING | (READING if fault.reading else {}))
            socket.send_fds(theirs, [b"."], [listener])
            theirs.close()
            os.close(listener)
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(70)
    theirs.close()
    _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    ours.close()
    found = Watched()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    left = seconds * 1000
    try:
        while True:
            events = poll.poll(left)
            if not events:
                os.kill(child, signal.SIGKILL)
                raise TimeoutError(f"it took more than {seconds} s")
            if not events[0][1] & select.POLLIN:
                break
            _answer(listener, child, str(folder), fault, found, allowed)
    finally:
        found.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(listener)
    return found


def _answer(
    listener: int,
    child: int,
    folder: str,
    fault: Fault,
    found: Watched,
    allowed: tuple[Path, ...] | None,
) -> None:
    """Say what becomes of a call."""
    asked = bytearray(80)
    try:
        fcntl.ioctl(listener, _RECEIVE, asked)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):  # who asked was killed
            return
        raise
    number, process, _, call, _, _, *arguments = struct.unpack("QIIiIQ6Q", asked)
    name = NAMES[call]
    value, refused, flags = 0, 0, _CONTINUE
    path = _path(process, name, arguments)
    if allowed is not None and name != "close" and path.startswith("/") and not path.startswith(OWN):
        found.abroad += [f"{name} {path}"] * (not any(Path(path).is_relative_to(one) for one in allowed))
    if path.startswith(folder):
        found.calls += 1
        now = found.calls == fault.at
        if now:
            found.met = name
        half = 0
        if fault.torn and now and name in ("write", "pwrite64"):
            half = _write_half(process, name, arguments)
        if now and fault.signal:
            os.kill(child, fault.signal)
            if fault.signal == signal.SIGKILL:
                return
        if half:
            value, flags = half, 0
        elif fault.error and (now or (fault.lasting and found.calls > fault.at)):
            room = fault.error not in FULL or name in ROOM or name == "close"
            if room and (name != "close" or now):
                refused, flags = -fault.error, 0
    with _gone():
        fcntl.ioctl(listener, _SEND, struct.pack("QqiI", number, value, refused, flags))


class _gone:
    """Who asked may have been killed meanwhile."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, _: object) -> bool:
        return isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESRCH)


def _path(process: int, name: str, arguments: list[int]) -> str:
    """Which file a call is about."""
    try:
        if name in BY_NAME:
            return _text(process, arguments[0])
        if name in BY_NAME_AT:
            path = _text(process, arguments[1])
            at = ctypes.c_int(arguments[0] & 0xFFFFFFFF).value
            return (
                path if path.startswith("/") or at < 0 else str(Path(f"/proc/{process}/fd/{at}").readlink())
            )
        handle = ctypes.c_int(arguments[0] & 0xFFFFFFFF).value
        if name == "close":  # of what was only read it does not fail
            told = Path(f"/proc/{process}/fdinfo/{handle}").read_text()
            if not int(told.partition("flags:")[2].split()[0], 8) & CHANGES:
                return ""
        return str(Path(f"/proc/{process}/fd/{handle}").readlink())
    except OSError:
        return ""


def _text(process: int, address: int) -> str:
    """Text in another process."""
    found = b""
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        while b"\0" not in found and len(found) < 4096:
            memory.seek(address + len(found))
            found += memory.read(256 - (address + len(found)) % 256)
    return os.fsdecode(found.partition(b"\0")[0])


def _write_half(process: int, name: str, arguments: list[int]) -> int:
    """Write half of what a process wants to be written; how much that was."""
    half = arguments[2] // 2
    if not half:
        return 0
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        memory.seek(arguments[1])
        content = memory.read(half)
    leader = int(Path(f"/proc/{process}/status").read_text().partition("\nTgid:")[2].split()[0])
    pidfd = os.pidfd_open(leader)
    handle = _libc.syscall(_PIDFD_GETFD, pidfd, ctypes.c_int(arguments[0] & 0xFFFFFFFF), 0)
    os.close(pidfd)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    try:
        if name == "pwrite64":
            return os.pwrite(handle, content, arguments[3])
        return os.write(handle, content)
    finally:
        os.close(handle)


def _listen(numbers: dict[str, int]) -> int:
    """Have the kernel ask about calls of this process and its threads; a handle to be asked by."""

    def step(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, anyof, give = 0x20, 0x15, 0x45, 0x06
    rest = [number for name, number in sorted(numbers.items()) if name != "openat"]
    flags = 0xFFFFFFFF if "read" in numbers else CHANGES
    lines = [
        step(load, 0, 0, 4),  # which machine
        step(equal, 1, 0, _X86_64),
        step(give, 0, 0, _ALLOW),
        step(load, 0, 0, 0),  # which call
        step(equal, 0, 2, numbers["openat"]),
        step(load, 0, 0, 16 + 2 * 8),  # its third argument
        step(anyof, len(rest) + 1, len(rest), flags),
        *(step(equal, len(rest) - place, 0, number) for place, number in enumerate(rest)),
        step(give, 0, 0, _ALLOW),
        step(give, 0, 0, _NOTIFY),
    ]
    program = b"".join(lines)
    held = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(held))
    if _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    handle: int = _libc.syscall(_SECCOMP, 1, 8, filter_)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return handle
