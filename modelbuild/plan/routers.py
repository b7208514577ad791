"""The routers of a mixture of experts: one node for each layer, made in the way that `gate_mode` says."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from modelbuild.errors import Fault, NotBuiltYet
from modelbuild.methods.base import Method
from modelbuild.methods.moe import DRAWN, random_key
from modelbuild.modelfile.spec import Merge, Scalar, Spec
from modelbuild.plan.merge import wanted_dtype
from modelbuild.plan.mixture_outputs import Mixture
from modelbuild.plan.node import Node, operation_node
from modelbuild.plan.planned import Decision, Planned


class Routers:
    """Makes the routers of one mixture, layer by layer; `inputs` are the planned artifacts that the merge names."""

    def __init__(
        self, spec: Spec, merge: Merge, method: Method, mixture: Mixture, base: Planned, inputs: Mapping[str, Planned]
    ) -> None:
        self.spec = spec
        self.merge = merge
        self.method = method
        self.mixture = mixture
        self.base = base
        self.inputs = inputs
        value = merge.parameters.get("gate_mode")
        self.mode = str(getattr(value, "value", "hidden"))
        self.notes: list[str] = []

    def of(self, layer: int, name: str) -> tuple[Node, Decision]:
        """The router of a layer, called `name`, and why it is that one."""
        if self.mode not in DRAWN:
            what = f"`{self.merge.name}` needs routers by `{self.mode}`, which this version does not build yet"
            raise NotBuiltYet([Fault(what, self.spec.where("merge", self.merge.name, "gate_mode"))])
        return self._drawn(layer, name)

    def _shape(self, layer: int) -> tuple[str, tuple[int, int]]:
        """The dtype of a layer's router, which is that of its mlp, and [experts, hidden]."""
        stack = self.base.layout.main
        part = next(iter(self.mixture.parts))
        own = self.base.tensors[f"{stack}.{layer}.{part}"]
        return wanted_dtype(self.spec, self.merge, own), (len(self.merge.models), own.shape[1])

    def _drawn(self, layer: int, name: str) -> tuple[Node, Decision]:
        seed = self.spec.settings.seed if self.merge.seed is None else self.merge.seed
        dtype, shape = self._shape(layer)
        kind, scale = ("normal", 1.0) if self.mode == "random" else ("uniform", sqrt(1.0 / shape[1]))
        params = (("kind", kind), ("scale", scale), ("key", random_key(seed, name, "")))
        node = operation_node("drawn", self.method.version, params, (), dtype, shape)
        told: tuple[tuple[str, Scalar | None], ...] = (("gate_mode", self.mode), ("seed", seed))
        return node, Decision(told, ())
