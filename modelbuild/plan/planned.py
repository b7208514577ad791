"""The nouns of a plan: artifacts whose every tensor has a node, and why it has that one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from modelbuild.digest import identity
from modelbuild.modelfile.spec import Scalar, Spec
from modelbuild.plan.language import Language, language_of
from modelbuild.plan.layout import Layout, layout
from modelbuild.plan.node import Node
from modelbuild.sources.content import SourceAdapter, SourceFile, SourceModel


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a tensor has its node: the resolved parameters by label (`weight of x`), and what each input is called."""

    parameters: tuple[tuple[str, Scalar | None], ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()
    """For each input that matters, the artifact's name and its node's key."""


@dataclass(frozen=True, slots=True)
class Side:
    """What goes beside the weights: config.json and generation_config.json as data (None: the source has none), the
    files to copy, those that are `made`, which source layer each output layer is, where slices chose, and the rows of
    the embedding, where a vocabulary was chosen."""

    config: Mapping[str, Any] | None = None
    config_file: SourceFile | None = None
    config_overrides: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] | None = None
    generation_file: SourceFile | None = None
    generation_overrides: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, SourceFile] = field(default_factory=dict)
    made: Mapping[str, bytes] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    untied: bool = False
    vocabulary: int | None = None


@dataclass(frozen=True)
class Planned:
    """An artifact with a node for every tensor, in order; sources are planned too, each tensor being its own node.

    `aliases` are the names that tensors have in the model itself, where they go by another's in a merge.
    """

    name: str
    kind: str
    tensors: Mapping[str, Node]
    side: Side
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def layout(self) -> Layout:
        """The stacks and layers of the artifact's tensors; the main one is its language model's, if it is more."""
        language = self.language
        return self._plain if language is None or language.alone else replace(self._plain, chosen=language.stack)

    @cached_property
    def _plain(self) -> Layout:
        return layout({name: node.nbytes for name, node in self.tensors.items()})

    @cached_property
    def language(self) -> Language | None:
        """The language model within the artifact; None where its names do not show one."""
        return language_of(self.tensors, self._plain, self.side.config)

    @cached_property
    def key(self) -> str:
        """The identity of the artifact's weights as a whole: names and keys of all tensors, in order."""
        return identity("weights/1", tuple((name, node.key) for name, node in self.tensors.items()))


@dataclass(frozen=True)
class Plan:
    """All artifacts that the targets need, in building order, with the sources they came from."""

    spec: Spec
    targets: tuple[str, ...]
    artifacts: Mapping[str, Planned]
    models: Mapping[str, SourceModel]
    adapters: Mapping[str, SourceAdapter]

    def target_artifacts(self) -> Iterator[Planned]:
        """The artifacts that are to be built into the output folder."""
        return (self.artifacts[name] for name in self.targets)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about this plan, each with the artifact it is about."""
        found = [f"{a.name}: {note}" for a in self.artifacts.values() for note in a.notes]
        found += [f"{a.name}: {note}" for a in self.adapters.values() for note in a.notes]
        bare = [a.name for a in self.target_artifacts() if a.side.config is None and not a.side.config_overrides]
        found += [f"{name}: its donor has no config.json, so transformers will not load the output" for name in bare]
        return (*self.spec.notes, *found)
