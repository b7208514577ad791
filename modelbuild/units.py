"""Sizes as people write them: KB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB of 1024."""

from __future__ import annotations

import math
import re

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """The bytes that a size such as `5GB`, `1.5 GiB` or `4096` means, rounded down; ValueError for anything else."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found[3] and not found[2]):
        raise ValueError(f"`{text[:40]}` is not a size such as 5GB or 512MiB")
    unit: int = math.prod([1024 if found[3] else 1000] * " KMGT".index(found[2].upper() or " "))
    whole, _, digits = found[1].partition(".")
    return int(whole + digits) * unit // int(10 ** len(digits))


def show_bytes(count: int) -> str:
    """Bytes as people read them, in powers of 1000 with one digit after the point: `999 B`, `1.5 kB`, `26.0 GB`."""
    if count < 1000:
        return f"{count} B"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"
