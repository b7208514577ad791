"""What the lock calls a source: where the Modelfile says that it comes from, before anything is looked up."""

from __future__ import annotations

from modelbuild.modelfile.spec import Adapter, Base
from modelbuild.sources.hub.names import SCHEME, hub_name

LOCAL = "local:"
"""How the origin of a source in a folder or file starts."""


def origin_of(artifact: Base | Adapter) -> str:
    """The origin of a source: `hf:ORG/NAME[@REVISION]`, or `local:` and its path, with the subfolder after it.

    Empty for an adapter that is made from other artifacts. On the Hub the names of files have the subfolder.
    """
    source = artifact.source
    if source is None:
        return ""
    if (name := hub_name(artifact)) is not None:
        return name.origin
    subfolder = artifact.subfolder if isinstance(artifact, Adapter) else None
    return f"{LOCAL}{source}" if subfolder is None else f"{LOCAL}{source.rstrip('/')}/{subfolder}"


def below(artifact: Base | Adapter) -> str:
    """What the names of a source's files start with, as the lock has them: on the Hub, the subfolder."""
    subfolder = artifact.subfolder if isinstance(artifact, Adapter) and is_hub(origin_of(artifact)) else None
    return "" if subfolder is None else f"{subfolder.strip('/')}/"


def is_hub(origin: str) -> bool:
    """Whether a source of this origin is on the Hub, so that only a commit says what it was."""
    return origin.startswith(SCHEME)
