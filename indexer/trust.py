"""Whether a file that nobody named may tell this run what to do."""

from __future__ import annotations

import os
import stat
from pathlib import Path

REMEDY = "copy it into the folder, or name it, if it is right"


def foreign(path: Path) -> str | None:
    """Why a file that lies above what the user named is not obeyed; None where it may be.

    It has to be owned by this user or by root, and nobody else may be able to write it; a group may, if
    this user is its only member.
    """
    if not hasattr(os, "getuid"):  # the permissions of Windows are not looked at
        return None
    held = path.stat()
    if held.st_uid not in (os.getuid(), 0):
        return f"it belongs to another user; {REMEDY}"
    writable = held.st_mode & (stat.S_IWOTH | (0 if _own(held.st_gid) else stat.S_IWGRP))
    return f"other users may write it; {REMEDY}" if writable else None


def _own(group: int) -> bool:
    """Whether nobody but this user is in a group."""
    import grp
    import pwd

    try:
        name, members = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return members.gr_name == name and set(members.gr_mem) <= {name}
