"""Small chores: removing outputs that nothing names any more, and pinning artifacts in the cache."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from modelbuild.artifact.provenance import FILE as PROVENANCE
from modelbuild.errors import UsageError
from modelbuild.importing.load import load
from modelbuild.options import Options
from modelbuild.session import output_record, outputs_of

if TYPE_CHECKING:
    from modelbuild.cache.store import LocalStore


def clean(options: Options, dry_run: bool) -> list[str]:
    """Removes from the output folder what the Modelfile no longer names; a sentence for each.

    Only folders that modelbuild wrote are touched; one that somebody edited, or that another Modelfile built, is left
    alone and named.
    """
    from modelbuild.artifact.edits import check_output, recorded

    spec = load(options.modelfile, trusted=options.trusted)
    records = outputs_of(options)
    lines = []
    for name in sorted(os.listdir(options.out_root)) if os.path.isdir(options.out_root) else []:
        path = os.path.join(options.out_root, name)
        ours = os.path.isfile(os.path.join(path, PROVENANCE)) and not os.path.islink(path)
        if name in spec.artifacts or name.startswith(".") or not ours:
            continue
        stored = records.read("output", name)
        other = str((stored or {}).get("modelfile", ""))
        if other != os.path.realpath(options.modelfile) and os.path.exists(other):
            lines.append(f"{path} is left alone: {other} built it")
            continue
        record = output_record(records, name) or recorded(path)
        changes = check_output(path, record) if record is not None else []
        kept = [change.name for change in changes if change.kind in ("edited", "extra") and change.name != PROVENANCE]
        if record is None or kept:
            lines.append(f"{path} is left alone: {', '.join(kept) or 'it'} was edited or added")
            continue
        lines.append(f"{'would remove' if dry_run else 'removed'} {path}")
        if not dry_run:
            shutil.rmtree(path)
            records.forget("output", name)
    return lines


def pin(store: LocalStore, start: str, on: bool) -> str:
    """Pins the artifact whose key starts so, or lets it go; what was done. UsageError unless just one does."""
    found = [key for key in store.artifacts() if key.startswith(start)] if start else []
    if len(found) != 1:
        facts = [key[:16] for key in found[:5]]
        what = f"{len(found)} artifacts have keys that start" if found else "no artifact has a key that starts"
        raise UsageError(f"{what} with `{start}`", facts=facts, hint="`modelbuild cache ls` lists them")
    store.pin(found[0], on)
    return f"{found[0][:12]} is {'pinned' if on else 'no longer pinned'}"
