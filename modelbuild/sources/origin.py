"""What the lock calls a source: where the Modelfile says that it comes from, before anything is looked up."""

from __future__ import annotations

from modelbuild.modelfile.spec import Adapter, Base

HUB = "hf:"
"""How the origin of a source on the Hub starts."""

LOCAL = "local:"
"""How the origin of a source in a folder or file starts."""


def origin_of(artifact: Base | Adapter) -> str:
    """The origin of a source: `local:` and its path, or `hf:ORG/NAME[@REVISION]`; then `/` and the subfolder.

    Empty for an adapter that is made from other artifacts.
    """
    source = artifact.source
    if source is None:
        return ""
    subfolder = artifact.subfolder if isinstance(artifact, Adapter) else None
    if source.startswith(HUB):
        place = f"{source}@{artifact.revision}" if artifact.revision is not None else source
    else:
        place = LOCAL + (source if subfolder is None else source.rstrip("/"))
    return place if subfolder is None else f"{place}/{subfolder}"


def is_hub(origin: str) -> bool:
    """Whether a source of this origin is on the Hub, so that only a commit says what it was."""
    return origin.startswith(HUB)
