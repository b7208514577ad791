"""What a Modelfile calls a source on the Hub, and which names of files a repository may have."""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelbuild.errors import Where
from modelbuild.modelfile.spec import Adapter, Base

SCHEME = "hf:"
"""What the name of a source on the Hub starts with."""

DEFAULT_REVISION = "main"
"""The branch that is meant where none is named."""

PATH_LIMIT = 1024
"""Characters that the path of a file in a repository may have."""

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository as the source `artifact` of a Modelfile names it: `ORG/NAME`, the revision if one is given."""

    artifact: str
    repo: str
    revision: str | None = None
    where: Where | None = None

    @property
    def origin(self) -> str:
        """What the lock calls the source: what the Modelfile says, revision included."""
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision is not None else "")

    @property
    def shown(self) -> str:
        """What messages call the repository."""
        return f"{SCHEME}{self.repo}"


def hub_name(artifact: Base | Adapter, where: Where | None = None) -> HubName | None:
    """What a source of a Modelfile is called on the Hub; None for a local one."""
    if artifact.source is None or not artifact.source.startswith(SCHEME):
        return None
    repo, _, revision = artifact.source.removeprefix(SCHEME).partition("@")
    return HubName(artifact.name, repo, revision or artifact.revision, where)


def is_safe(path: str) -> bool:
    """Whether a path from the Hub names a file below its repository, on any system, fit for a message and the lock."""
    if not path.isprintable() or "\\" in path or len(path) > PATH_LIMIT:
        return False
    return all(part.strip(". ") and len(part.encode("utf-8", "replace")) <= 255 for part in path.split("/"))
