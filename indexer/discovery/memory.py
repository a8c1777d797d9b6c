"""What was seen of voxels, so that files that have not changed are not looked into again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Memory:
    """Answers to looks, by what was asked of which files.

    Attributes
    ----------
    before : mapping
        Answers of earlier runs.
    now : dict
        Those that this run has asked for, for the next one.
    """

    before: Mapping[str, str] = field(default_factory=dict)
    now: dict[str, str] = field(default_factory=dict)

    def recall(self, question: str, files: Sequence[Path], look: Callable[[], str | None]) -> str | None:
        """The answer that is known of these files by names, sizes and times; else what a look says."""
        digest = hashlib.sha256(question.encode())
        for file in files:
            try:
                stat = file.stat()
            except OSError:
                return look()
            told = f"\0{file}\0{stat.st_size}\0{stat.st_mtime_ns}"
            digest.update(told.encode(errors="surrogateescape"))
        key = digest.hexdigest()[:32]
        if key not in self.now:
            self.now[key] = self.before[key] if key in self.before else look() or ""
        return self.now[key] or None
