"""The files of an output: which there are, what identifies them, and whether what stands there is still that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from modelbuild import __version__
from modelbuild.artifact.card import FILE as CARD
from modelbuild.artifact.card import card
from modelbuild.artifact.config import config_json, generation_json
from modelbuild.artifact.edits import OutputRecord, check_output, side_digests
from modelbuild.artifact.library import packed_layout
from modelbuild.artifact.provenance import FILE as PROVENANCE
from modelbuild.artifact.provenance import Made, provenance
from modelbuild.artifact.shards import index_json, index_name, plan_layout
from modelbuild.artifact.tomltext import modelfile_text
from modelbuild.cache.nouns import Layout, Manifest
from modelbuild.digest import identity
from modelbuild.modelfile.spec import Settings
from modelbuild.plan.planned import Plan, Planned


@dataclass(frozen=True, slots=True)
class SideFiles:
    """The files beside the weights: bytes, or the path of a source's file to copy, by name. `key` is the artifact's.

    `digests` are their SHA-256 by name.
    """

    key: str
    files: Mapping[str, bytes | str]
    digests: Mapping[str, str]


PACKED = "quantize"
"""The kind of artifacts whose files are laid out as the safetensors library does it."""


def weights_key(artifact: Planned, settings: Settings) -> str:
    """The key that the artifact's weight files have in the cache: its tensors, and how they are cut into files."""
    if artifact.kind == PACKED:
        return identity("packed-files/1", artifact.key, settings.shard_size)
    return identity("files/2", artifact.key, settings.shard_size, settings.shards or "")


def weights_layout(artifact: Planned, names: Sequence[str], settings: Settings | None) -> Layout:
    """The safetensors files that the tensors `names` of an artifact make; None puts them into one file."""
    tensors = [(name, node.dtype, node.shape) for name, node in ((name, artifact.tensors[name]) for name in names)]
    return plan_layout(tensors, settings.shard_size, settings.shards) if settings else plan_layout(tensors, None)


def _published_layout(artifact: Planned, sizes: Mapping[str, int], settings: Settings) -> Layout:
    """The layout of weight files; of packed ones once the sizes of all tensors are known."""
    if artifact.kind == PACKED:
        return packed_layout(artifact, settings.shard_size, sizes)
    return weights_layout(artifact, list(artifact.tensors), settings)


def output_key(plan: Plan, artifact: Planned) -> str:
    """The key of the whole output: its weights, how they are cut into files, and the side files that do not speak.

    It is known from the plan: the index of the weight files, which may not be, follows from the weights' key.
    """
    return _key(plan, artifact, _copied_and_configs(artifact)[1])


def _key(plan: Plan, artifact: Planned, digests: Mapping[str, str]) -> str:
    return identity("artifact/2", weights_key(artifact, plan.spec.settings), tuple(sorted(digests.items())))


def _copied_and_configs(artifact: Planned) -> tuple[dict[str, bytes | str], dict[str, str]]:
    """The files that are copied from sources, and the configs, with their digests."""
    files: dict[str, bytes | str] = {name: file.path for name, file in artifact.side.files.items()}
    made: dict[str, bytes | None] = {
        **artifact.side.made,
        "config.json": config_json(artifact),
        "generation_config.json": generation_json(artifact),
    }
    files |= {name: data for name, data in made.items() if data is not None}
    known = {name: file.sha256 for name, file in artifact.side.files.items() if made.get(name) is None}
    return files, known | side_digests({name: data for name, data in files.items() if name not in known})


def side_files(plan: Plan, artifact: Planned, manifest: Manifest, overrides: tuple[str, ...]) -> SideFiles:
    """All files beside the weights. Raises SourceChanged where a source's config is not the one that was planned."""
    files, digests = _copied_and_configs(artifact)
    key = _key(plan, artifact, digests)
    sizes = {tensor.name: tensor.nbytes for tensor in manifest.tensors}
    index = index_json(_published_layout(artifact, sizes, plan.spec.settings))
    if index is not None:
        files[index_name()] = index
        digests |= side_digests({index_name(): index})
    # What was asked for before decides whether the SHA-256 of a weight file is known; an output may not depend on that.
    weights = [replace(file, sha256=None) for file in manifest.files]
    text = modelfile_text(plan.spec, artifact.name)
    about = Made(plan, artifact.name, __version__, weights, digests, overrides, text)
    files[CARD] = card(about)
    digests |= side_digests({CARD: files[CARD]})
    document = provenance(Made(plan, artifact.name, __version__, weights, digests, overrides))
    files[PROVENANCE] = document
    return SideFiles(key, files, digests | {PROVENANCE: hashlib.sha256(document).hexdigest()})


def is_fresh(
    target: str,
    record: OutputRecord | None,
    side: SideFiles,
    manifest: Manifest,
    folder: str | None = None,
    made_anew: bool = False,
) -> bool:
    """Whether the output that stands at `target` is what would be written; files that somebody added do not count.

    Its weights are read where they were `made_anew`, or are links to other files than those in the cache's `folder`:
    these may have been set aside as damaged.
    """
    if record is None or record.key != side.key or not os.path.isdir(target):
        return False
    wanted = {name: f"sha256:{digest}" for name, digest in side.digests.items()}
    have = {name: file.digest for name, file in record.files.items() if not file.is_weight}
    doubtful = [
        file.name
        for file in manifest.files
        if made_anew or (folder is not None and _is_link_elsewhere(target, folder, file.name))
    ]
    changes = check_output(target, record, manifest, doubtful)
    return wanted == have and not [change for change in changes if change.kind != "extra"]


def _is_link_elsewhere(target: str, folder: str, name: str) -> bool:
    """Whether a weight file shares its bytes with another file, which is not the cache's."""
    try:
        shown, stored = os.stat(os.path.join(target, name)), os.stat(os.path.join(folder, name))
    except OSError:
        return False
    return shown.st_nlink > 1 and not os.path.samestat(shown, stored)
