"""What `lock` and `verify` came to, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelbuild.locking import Locked
    from modelbuild.verifying import Verification


def show_lock(locked: Locked) -> str:
    """Where the lock is and whether it was written; below, what changed in one that was there."""
    count = f"{len(locked.sources)} source{'s' if len(locked.sources) != 1 else ''}"
    head = f"{locked.path}: {count}, {'written' if locked.written else 'nothing changed'}"
    return "\n".join([head, *(f"  {sentence}" for sentence in locked.changes)])


def show_verification(found: Verification) -> str:
    """That every file is what it should be; where one is not, that is an error."""
    count = sum(file.status == "same" for file in found.files)
    by = "the lock says" if found.against == "lock" else f"{found.against} has at {found.reference[:12]}"
    return f"{found.name}: {count} files are what {by} ({found.path})"
