"""`verify`: whether an output is what the lock says, or what the Hub lists.

What stands in the output folder is compared, every byte of it read, whatever is remembered; it is built first only
where nothing stands there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelbuild.artifact.edits import walk
from modelbuild.artifact.output import output_key
from modelbuild.artifact.provenance import operations
from modelbuild.build import run
from modelbuild.errors import BuildFailed, VerificationFailed, Where
from modelbuild.options import Options
from modelbuild.publish.compare import Compared, Facts, compare
from modelbuild.publish.listing import listing
from modelbuild.report.terminal import Listener
from modelbuild.result import ErrorInfo, error_info, shown_path
from modelbuild.session import Session, open_session, open_spec
from modelbuild.sources.lock import LockedOutput
from modelbuild.sources.strictjson import show


@dataclass(frozen=True, slots=True)
class Verification:
    """What comparing an output came to: each file, and what it was compared with: "lock", or the place on the Hub.

    `reference` is what identifies that: the recorded key, or the commit.
    """

    name: str
    path: str
    against: str
    reference: str
    files: tuple[Compared, ...]
    error: ErrorInfo | None = None

    def as_json(self) -> dict[str, Any]:
        """The answer as `verify --json` prints it."""
        data: dict[str, Any] = {
            "name": self.name,
            "path": self.path,
            "against": self.against,
            "reference": self.reference,
            "files": [file.as_json() for file in self.files],
        }
        return data | ({"error": self.error.as_json()} if self.error is not None else {})


def verify_with(options: Options, name: str, against: str | None, listener: Listener) -> Verification:
    """Compares the output of `name` with the lock's `[outputs]`, or with the repository `against`.

    Raises VerificationFailed with a line for every file that is not what it should be; BuildFailed where the lock has
    nothing to compare with; SourceNotFound where the Hub has not; and what building raises.
    """
    open_spec(options, [name])
    if against is None:
        entry = _recorded(options, name, listener)
        reference, wanted = entry.key, {f.name: Facts(f.size, f"sha256:{f.sha256}") for f in entry.files}
        _build(options, name, listener)
    else:
        listed = listing(against)
        _build(options, name, listener)
        reference, wanted = listed.commit, listed.of_an_output(frozenset(walk(_folder(options, name))))
    with listener:
        listener.begin(name, "comparing", sum(facts.size for facts in wanted.values()))
        files = compare(_folder(options, name), wanted, options.jobs, listener.advance)
    found = Verification(name, shown_path(_folder(options, name)), against or "lock", reference, files)
    return _judged(found)


def _folder(options: Options, name: str) -> str:
    return os.path.join(options.out_root, name)


def _build(options: Options, name: str, listener: Listener) -> None:
    """Builds the artifact where no output stands; else only sees to what `--locked` and `--frozen` ask for."""
    if not os.path.isdir(_folder(options, name)):
        run(options, (name,), listener)
    elif options.locked or options.frozen:
        with open_session(options, (name,), listener):
            pass


def _recorded(options: Options, name: str, listener: Listener) -> LockedOutput:
    """What the lock has of the artifact, if that is of the present plan; raises BuildFailed if it is not."""
    with open_session(options, (name,), listener) as session:
        lock = session.held.lock
        entry = lock.outputs.get(name) if lock is not None else None
        if entry is not None and entry.key == output_key(session.plan, session.plan.artifacts[name]):
            return entry
        raise BuildFailed(
            f"there is nothing to compare `{name}` with",
            where=Where(session.held.file),
            facts=_why_not(session, name, entry),
            hint=f"`modelbuild build --record {name}` records what it is now; `--against hf:ORG/NAME` asks the Hub",
        )


def _why_not(session: Session, name: str, entry: LockedOutput | None) -> list[str]:
    """Why what the lock has is not compared with, if it has anything."""
    if entry is None:
        return [f"the lock has no [outputs.{name}]" if session.held.lock is not None else "there is no lock"]
    here = tuple(operations(session.plan.artifacts[name].tensors.values())["numerics"])
    if entry.numerics != here:
        classes = [", ".join(map(show, known)) or "none" for known in (entry.numerics, here)]
        told = [f"it was recorded in another class of numerics: {classes[0]}", f"here it is {classes[1]}"]
        return [*told, "the same recipe need not give the same bytes there and here"]
    key = output_key(session.plan, session.plan.artifacts[name])
    told = [f"[outputs.{name}] is of another recipe or of other sources, and is ignored"]
    return [*told, f"its key is {entry.key[:12]}, that of the present plan is {key[:12]}"]


# --- what came of it --------------------------------------------------------------------------------------------------


def _judged(found: Verification) -> Verification:
    """The verification if all is the same; raises VerificationFailed, which has it as its result, if not."""
    by = "the lock" if found.against == "lock" else show(found.against)
    if lines := [line for file in found.files if file.status != "same" for line in _lines(file, by)]:
        hint = f"`modelbuild build {found.name}` brings the output up to date" if found.against == "lock" else None
        error = VerificationFailed(f"`{found.name}` in {found.path} is not what {by} says", facts=lines, hint=hint)
        error.result = replace(found, error=error_info(error))
        raise error
    return found


def _lines(file: Compared, by: str) -> list[str]:
    """How a file differs: one line, or one for what it should be and one for what it is."""
    name = show(file.name)
    if file.status == "missing":
        return [f"{name} is missing"]
    if file.expected is None:
        return [f"{name} is not in {by}"]
    found = _told(file.found) if file.found is not None else "something that is no file"
    return [f"{name}: expected {_told(file.expected)}", f"{name}: found    {found}"]


def _told(facts: Facts) -> str:
    kind, _, digest = facts.digest.partition(":")
    words: Mapping[str, str] = {"sha256": "SHA-256", "git": "git's SHA-1"}
    return f"{facts.size} bytes" + (f", {words[kind]} {digest}" if digest else "")
