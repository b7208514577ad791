"""A recipe from the Hub: the mergekit_config.yml of a repository, else its model card."""

from __future__ import annotations

import re

from modelbuild.errors import ModelbuildError, SourceNotFound, UsageError
from modelbuild.modelfile.keys import REPOSITORY
from modelbuild.modelfile.suggest import shown

FILES = ("mergekit_config.yml", "mergekit_config.yaml", "mergekit_moe_config.yml", "README.md")
"""Where mergekit leaves a recipe in what it writes, best first."""


def fetch(address: str) -> tuple[str, str]:
    """The path of the file with the recipe of `hf:ORG/NAME[@REVISION]` in the Hub client's cache, and its name.

    Raises UsageError for what is no address, and SourceNotFound where the Hub does not give the file.
    """
    repository, at, revision = address.removeprefix("hf:").partition("@")
    odd = any(not part.strip(".") for part in repository.split("/"))
    if odd or not re.fullmatch(REPOSITORY, repository) or (at and not revision):
        raise UsageError(f"`{shown(address)}` is no repository", hint="write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in FILES:
        try:
            return hf_hub_download(repository, name, revision=revision or None), name
        except LocalEntryNotFoundError as error:
            raise _offline(address, error) from None
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise _refused(address, error) from None
    raise SourceNotFound(f"`{shown(address)}` has no recipe", facts=(f"it has none of {', '.join(FILES)}",))


def _offline(address: str, error: Exception) -> ModelbuildError:
    facts = [_line(error)]
    return SourceNotFound(f"`{shown(address)}` cannot be reached", facts=facts, hint="HF_HUB_OFFLINE, or no network?")


def _refused(address: str, error: Exception) -> ModelbuildError:
    """What the Hub's client raised, as one of ours; an error of our own making goes through."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repository = address.removeprefix("hf:").partition("@")[0]
    if isinstance(error, GatedRepoError):
        hint = f"accept its terms at https://huggingface.co/{repository}, and log in with `hf auth login`"
        return SourceNotFound(f"`{shown(address)}` is gated", hint=hint)
    if isinstance(error, RevisionNotFoundError):
        return SourceNotFound(f"`{shown(address)}` has no such revision")
    if isinstance(error, RepositoryNotFoundError):
        hint = "for a private one, log in with `hf auth login`"
        return SourceNotFound(f"there is no `{shown(address)}` on the Hub, or no access to it", hint=hint)
    return SourceNotFound(f"`{shown(address)}` cannot be fetched", facts=(f"{type(error).__name__}: {_line(error)}",))


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return shown(lines[0]) if lines else type(error).__name__
