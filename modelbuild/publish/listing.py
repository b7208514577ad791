"""What a repository on the Hub lists: the commit, and size and digest of every file, in one request and no download.

The Hub gives the SHA-256 of files that it keeps as large files, and git's own digest of all others. Its answer is a
stranger's: names, sizes and digests are checked before anything is compared with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelbuild.artifact.edits import is_inside
from modelbuild.errors import SourceNotFound, UsageError
from modelbuild.publish.compare import SPEAKING, Facts
from modelbuild.sources.sidefiles import is_side_file
from modelbuild.sources.strictjson import show

PATIENCE = 30.0
"""Seconds to wait for the Hub's answer."""

_PLACE = re.compile(r"hf:([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)(?:@(.+))?")
_OWN = frozenset({"config.json", "generation_config.json"})
_WEIGHTS = (".safetensors", ".gguf", ".index.json")
_SHA256, _SHA1, _COMMIT = (re.compile(rf"[0-9a-f]{{{count}}}") for count in (64, 40, 40))


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at a commit: what every file is, by name."""

    place: str
    commit: str
    files: Mapping[str, Facts]

    def of_an_output(self, names: frozenset[str]) -> dict[str, Facts]:
        """The files to compare an output with that has these `names`: all that it has, and all that outputs have.

        A repository also holds what no output has: licences that came later, pictures, weights in other formats.
        """
        return {n: f for n, f in self.files.items() if n not in SPEAKING and (n in names or _is_of_outputs(n))}


def _is_of_outputs(name: str) -> bool:
    plain = "/" not in name and (name in _OWN or name.endswith(_WEIGHTS))
    return plain or is_side_file(name)


def listing(place: str) -> Listing:
    """What the Hub lists at `hf:ORG/NAME[@REVISION]`.

    Raises UsageError for a place that is none, and SourceNotFound where the repository or revision is not there or may
    not be read, the Hub cannot be reached, or what it answers cannot be right.
    """
    match = _PLACE.fullmatch(place)
    if match is None:
        raise UsageError(f"`--against {show(place)[1:-1]}` is not on the Hub", hint="write `hf:ORG/NAME[@REVISION]`")
    return _checked(place, _ask(place, match[1], match[2]))


def _ask(place: str, repository: str, revision: str | None) -> Any:
    """The client's answer; its exceptions become ours."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as theirs

    page = f"https://huggingface.co/{repository}"
    try:
        return HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=PATIENCE)
    except theirs.GatedRepoError:
        hint = f"accept its terms at {page}, then `hf auth login`"
        raise _refused(place, "its owner has to let you in", hint) from None
    except theirs.RepositoryNotFoundError:
        facts = "the Hub has no such repository, or you may not see it"
        raise _refused(place, facts, "see to its spelling; if it is private, `hf auth login` first") from None
    except theirs.RevisionNotFoundError:
        raise _refused(place, f"the repository has no revision {show(revision or 'main')}") from None
    except theirs.HFValidationError as error:
        raise UsageError(f"{show(place)} is no repository", facts=[_line(error)]) from None
    except theirs.OfflineModeIsEnabled:
        raise _refused(place, "`HF_HUB_OFFLINE` is set", "comparing with the Hub needs its listing: unset it") from None
    except Exception as error:
        raise _refused(place, _line(error), "try again when the Hub can be reached") from error


def _line(error: Exception) -> str:
    """The first line of what an exception says."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return "".join(char if char.isprintable() else " " for char in text)[:300]


def _refused(place: str, fact: str, hint: str | None = None) -> SourceNotFound:
    return SourceNotFound(f"{show(place)} cannot be compared with", facts=[fact], hint=hint)


def _checked(place: str, info: Any) -> Listing:
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise _refused(place, "the Hub does not say which commit it lists")
    files: dict[str, Facts] = {}
    for entry in info.siblings or ():
        name, facts = entry.rfilename, _facts(entry)
        if not isinstance(name, str) or not is_inside(name) or not name.isprintable() or name in files:
            raise _refused(place, f"the Hub lists a file that cannot be: {show(str(name))}")
        if facts is None:
            raise _refused(place, f"what the Hub says of {show(name)} makes no sense")
        files[name] = facts
    return Listing(place, info.sha, files)


def _facts(entry: Any) -> Facts | None:
    """What the Hub says of one file; None where that cannot be right."""
    size, kind, digest, form = entry.size, "git", entry.blob_id, _SHA1
    if entry.lfs is not None:
        size, kind, digest, form = entry.lfs.size, "sha256", entry.lfs.sha256, _SHA256
    sound = type(size) is int and size >= 0 and isinstance(digest, str) and form.fullmatch(digest)
    return Facts(size, f"{kind}:{digest}") if sound else None
