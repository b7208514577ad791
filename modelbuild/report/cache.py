"""What `cache` prints, as data and text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from modelbuild.cache.collect import Entry, GcResult
from modelbuild.units import show_bytes


def size_data(nbytes: int) -> dict[str, Any]:
    """The size of the cache as data."""
    return {"bytes": nbytes}


def show_size(data: dict[str, Any]) -> str:
    """The size of the cache as text."""
    return show_bytes(data["bytes"])


def listing_data(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The artifacts in the cache as data."""
    return [
        {
            "key": entry.key,
            "name": entry.name,
            "complete": entry.complete,
            "bytes": entry.nbytes,
            "linked": entry.linked,
            "used": entry.used,
            "pinned": entry.pinned,
            "needed_by": list(entry.needed_by),
        }
        for entry in entries
    ]


def show_listing(data: list[dict[str, Any]]) -> str:
    """The artifacts in the cache, a line each: key, size, days since use, name, and why it stays."""
    if not data:
        return "the cache is empty"
    lines = []
    for entry in data:
        days = max(0.0, (time.time() - entry["used"]) / 86400)
        stays = ["pinned"] if entry["pinned"] else []
        stays += [f"needed by {who}" for who in entry["needed_by"]]
        kind = "" if entry["complete"] else " (kept tensors)"
        tail = f"  [{'; '.join(stays)}]" if stays else ""
        lines.append(
            f"{entry['key'][:12]}  {show_bytes(entry['bytes']):>9}  {days:5.1f} days  {entry['name']}{kind}{tail}"
        )
    return "\n".join(lines)


def gc_data(result: GcResult) -> dict[str, Any]:
    """A collection as data."""
    return {
        "removed": listing_data(result.removed),
        "bytes": {"before": result.before, "after": result.after},
        "stages": result.stages,
        "notes": list(result.notes),
    }


def show_gc(data: dict[str, Any]) -> str:
    """A collection as text."""
    sizes = data["bytes"]
    lines = [f"removed {entry['key'][:12]}  {show_bytes(entry['bytes'])}  {entry['name']}" for entry in data["removed"]]
    lines.append(f"{show_bytes(sizes['before'])} before, {show_bytes(sizes['after'])} now")
    return "\n".join([*lines, *data["notes"]])
