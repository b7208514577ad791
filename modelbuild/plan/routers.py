"""The routers of a mixture of experts: one node for each layer, made in the way that `gate_mode` says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import sqrt
from typing import TypeAlias

from modelbuild.digest import identity
from modelbuild.dtypes import FLOATS
from modelbuild.errors import BuildFailed
from modelbuild.formats.numerics import library_version, numerics_class
from modelbuild.methods.base import Method
from modelbuild.methods.moe import DRAWN, GIVEN, computing, random_key
from modelbuild.modelfile.mixtures import prompts_of
from modelbuild.modelfile.spec import Merge, Scalar, Spec
from modelbuild.plan.layout import Place
from modelbuild.plan.merge import wanted_dtype
from modelbuild.plan.mixture_outputs import MIXTURES, Config, Mixture, written_out
from modelbuild.plan.node import Node, Params, cast, operation_node
from modelbuild.plan.planned import Decision, Planned
from modelbuild.plan.prompts import LIBRARY, Encoded, check_installed, encode, identity_of_tokenizer
from modelbuild.plan.rows import RowMap, Run, row_map, rows_node
from modelbuild.plan.token_tensors import embedding
from modelbuild.sources.buffers import is_recomputed

Told: TypeAlias = "tuple[tuple[str, Scalar | None], ...]"

_LEFT_OUT = (
    "architectures", "auto_map", "_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "initializer_range",
)  # fmt: skip
"""Keys of a config that say nothing of what the layers compute."""


class Routers:
    """Makes the routers of one mixture, layer by layer; `inputs` are the planned artifacts that the merge names, and
    `config` that of the base. Raises BuildFailed for prompts that cannot be read and for routers that do not fit."""

    def __init__(
        self,
        spec: Spec,
        merge: Merge,
        method: Method,
        mixture: Mixture,
        base: Planned,
        inputs: Mapping[str, Planned],
        config: Config,
    ) -> None:
        self.spec = spec
        self.merge = merge
        self.method = method
        self.mixture = mixture
        self.base = base
        value = merge.parameters.get("gate_mode")
        self.mode = str(getattr(value, "value", "hidden"))
        self.where = spec.where("merge", merge.name, "gate_mode")
        self.vectors: dict[int, Node] = {}
        self.counts: tuple[tuple[int, int], ...] = ()
        self.told: Told = (("gate_mode", self.mode),)
        self.read: tuple[tuple[str, str], ...] = ()
        self.given: dict[int, Node] = {}
        self.numerics: str | None = None
        if self.mode == GIVEN:
            self._take(inputs[merge.router or ""])
        elif self.mode not in DRAWN:
            self._prompt(config)

    def of(self, layer: int, name: str) -> tuple[Node, Decision]:
        """The router of a layer, called `name`, and why it is that one."""
        if self.mode == GIVEN:
            node = self.given[layer]
            dtype = self.merge.dtype or self.spec.settings.dtype
            decision = Decision(self.told, ((self.merge.router or "", node.key),))
            return cast(node, FLOATS[dtype] if dtype is not None else node.dtype), decision
        dtype, shape = self._shape(layer)
        if self.mode in DRAWN:
            return self._drawn(name, dtype, shape)
        params: Params = (("counts", self.counts), ("unit", self.mode == "cheap_embed"))
        vectors = self.vectors.get(layer, self.vectors[0])
        node = operation_node("router", self.method.version, params, (vectors,), dtype, shape, self.numerics)
        return node, Decision(self.told, self.read)

    def _shape(self, layer: int) -> tuple[str, tuple[int, int]]:
        """The dtype of a layer's router, which is that of its mlp, and [experts, hidden]."""
        part = next(iter(self.mixture.parts))
        own = self.base.tensors[f"{self.base.layout.main}.{layer}.{part}"]
        return wanted_dtype(self.spec, self.merge, own), (len(self.merge.models), own.shape[1])

    def _drawn(self, name: str, dtype: str, shape: tuple[int, int]) -> tuple[Node, Decision]:
        seed = self.spec.settings.seed if self.merge.seed is None else self.merge.seed
        kind, scale = ("normal", 1.0) if self.mode == "random" else ("uniform", sqrt(1.0 / shape[1]))
        params = (("kind", kind), ("scale", scale), ("key", random_key(seed, name, "")))
        node = operation_node("drawn", self.method.version, params, (), dtype, shape)
        return node, Decision((*self.told, ("seed", seed)), ())

    # --- from prompts -------------------------------------------------------------------------------------------------

    def _prompt(self, config: Config) -> None:
        """Finds the vectors that stand for the prompts: of every layer alike, or layer by layer."""
        own = embedding(self.base)
        node = self.base.tensors[own] if own is not None else None
        if own is None or node is None or node.dtype not in FLOATS.values():
            raise BuildFailed(f"`{self.base.name}` has no embedding that prompts are read with", where=self.where)
        if node.shape[1] != (hidden := self._shape(0)[1][1]):
            facts = [f"`{own}` has rows of {node.shape[1]}, its layers take {hidden}"]
            raise BuildFailed(f"prompts cannot be read with `{self.base.name}`", where=self.where, facts=facts)
        asked = [prompts_of(self.merge, entry) for entry in self.merge.models]
        encoded = encode(self.base, node.shape[0], asked, self.where)
        prompts = [prompt for expert in encoded for prompt in expert.prompts]
        embedded = rows_node(row_map([((0, token),) for prompt in prompts for token in prompt]), (node,))
        # Which tokens these are follows from the prompts, the tokenizer and the library that reads it.
        read_by = (f"tokenizer of `{self.base.name}`", identity_of_tokenizer(self.base))
        self.told = (*self.told, *self._texts(), read_by, (LIBRARY, library_version(LIBRARY)))
        self.read = ((self.base.name, node.key),)
        if self.mode == "cheap_embed":
            self.counts = tuple((sum(map(len, e.wanted)), sum(map(len, e.unwanted))) for e in encoded)
            self.vectors = {0: embedded}
        else:
            self._hidden(config, encoded, embedded, tuple(map(len, prompts)))

    def _texts(self) -> Told:
        found = []
        for entry in self.merge.models:
            for name, texts in zip(("prompt", "negative_prompt"), prompts_of(self.merge, entry), strict=True):
                shown = json.dumps(texts, ensure_ascii=False)
                found += [(f"{name} of `{entry.name}`", shown)] if texts else []
        return tuple(found)

    def _hidden(self, config: Config, encoded: list[Encoded], embedded: Node, lengths: tuple[int, ...]) -> None:
        libraries = computing(self.mode)
        check_installed(libraries, self.base.name, self.where)
        self.numerics = numerics_class(libraries, algebra=True)
        depth, count = self.base.layout.layers, len(lengths)
        parts, layers = self._layers(depth)
        described = json.dumps(self._described(config, depth), sort_keys=True)
        params: Params = (
            ("config", described), ("parts", parts), ("lengths", lengths), ("average", self.mode == "hidden_avg"),
        )  # fmt: skip
        shape = (depth * count, embedded.shape[1])
        inputs = (embedded, *layers)
        states = operation_node("states", self.method.version, params, inputs, "F32", shape, self.numerics)
        for layer in range(depth):
            self.vectors[layer] = rows_node(RowMap((Run(0, count, ((0, layer * count),)),)), (states,))
        self.counts = tuple((len(expert.wanted), len(expert.unwanted)) for expert in encoded)
        self.told = (*self.told, (f"config of `{self.base.name}`", identity("config/1", described)[:12]))
        self.read = (*self.read, *((self.base.name, node.key) for node in layers))

    def _layers(self, depth: int) -> tuple[tuple[str, ...], list[Node]]:
        """The names of a layer's tensors, and those of all layers but the last, whose output nothing reads."""
        kinds = [self._names(layer) for layer in range(depth)]
        if odd := next((layer for layer, kind in enumerate(kinds) if kind != kinds[0]), None):
            facts = sorted({*kinds[odd]} ^ {*kinds[0]})
            raise BuildFailed(
                f"layers 0 and {odd} of `{self.base.name}` are of two kinds", where=self.where, facts=facts
            )
        places = [Place(self.base.layout.main or "", 0, part) for part in kinds[0]]
        return kinds[0], [self.base.tensors[p.name(layer)] for layer in range(depth - 1) for p in places]

    def _names(self, layer: int) -> tuple[str, ...]:
        places = self.base.layout.by_layer.get(layer, ())
        shapes = {place.rest: self.base.tensors[place.name(layer)].shape for place in places}
        return tuple(sorted(rest for rest, shape in shapes.items() if not is_recomputed(rest, shape)))

    def _described(self, config: Config, depth: int) -> dict[str, object]:
        """The config of the base as far as its layers depend on it."""
        found = {key: value for key, value in written_out(config, self.mixture).items() if key not in _LEFT_OUT}
        if len(found.get("layer_types") or ()) != depth:
            found.pop("layer_types", None)
        return found | {"num_hidden_layers": depth, "vocab_size": 8}

    # --- those of another model ---------------------------------------------------------------------------------------

    def _take(self, model: Planned) -> None:
        """Finds the router of each layer in the model that has them, under the name that any mixture gives it."""
        names = [mixture.router for mixture in MIXTURES]
        facts = []
        for layer in range(self.base.layout.layers):
            places = [place for place in model.layout.by_layer.get(layer, ()) if place.rest in names]
            if not places:
                facts.append(f"there is no `{self.mixture.router}` in layer {layer}")
                continue
            node = model.tensors[places[0].name(layer)]
            _, shape = self._shape(layer)
            if node.shape != shape or node.dtype not in FLOATS.values():
                name = places[0].name(layer)
                facts.append(f"`{name}` is {list(node.shape)} of {node.dtype}, for this mixture it is {list(shape)}")
            self.given[layer] = node
        if model.layout.layers > self.base.layout.layers:
            facts.append(f"it has {model.layout.layers} layers, `{self.base.name}` has {self.base.layout.layers}")
        if facts:
            more = [f"and {len(facts) - 5} more"] if len(facts) > 5 else []
            where = self.spec.where("merge", self.merge.name, "router")
            message = f"the routers of `{model.name}` do not fit `{self.merge.name}`"
            raise BuildFailed(message, where=where, facts=[*facts[:5], *more])
