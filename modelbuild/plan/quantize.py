"""From `[quantize.NAME]` to a node for each tensor: those that the format packs, and all others as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modelbuild.errors import BuildFailed
from modelbuild.formats.base import Format, Model, Pack, Packing, Unfit
from modelbuild.formats.numerics import MissingLibrary, numerics_class
from modelbuild.formats.registry import formats
from modelbuild.modelfile.spec import Quantize, Scalar, Spec
from modelbuild.plan.node import Node, operation_node
from modelbuild.plan.overrides import merged
from modelbuild.plan.pattern import any_matches, matches
from modelbuild.plan.planned import Decision, Planned


def plan_quantize(spec: Spec, artifact: Quantize, model: Planned) -> Planned:
    """The model in another format; raises BuildFailed where the format cannot take it or its library is missing."""
    found = formats()[artifact.format]
    numerics = class_of(spec, artifact, found)
    packing = _packing(spec, artifact, found, model)
    shared = _labels(artifact, found)
    tensors: dict[str, Node] = {}
    decisions: dict[str, Decision] = {}
    for name, own in model.tensors.items():
        pack = packing.packed.get(name)
        tensors[name] = _packed(found, pack, own, numerics) if pack is not None else own
        labels = shared if pack is not None or name in packing.skipped else ()
        named = (*labels, ("skip", pack is None)) if labels else ()
        decisions[name] = Decision(named, ((model.name, own.key),))
    side = replace(model.side, config_overrides=merged(model.side.config_overrides, packing.config))
    notes = (*_idle(artifact, model), *packing.notes)
    return Planned(artifact.name, "quantize", tensors, side, decisions, notes)


def class_of(spec: Spec, artifact: Quantize, found: Format) -> str:
    """The numerics class of what the format's libraries compute here; BuildFailed where one is not installed."""
    try:
        return numerics_class(found.libraries)
    except MissingLibrary as missing:
        raise BuildFailed(
            f"`{artifact.name}` needs {missing.name}, which is not installed",
            where=spec.where("quantize", artifact.name, "format"),
            facts=(f"format `{found.name}` is computed by it",),
            hint=f"pip install 'modelbuild[{found.extra}]'",
        ) from None


def _packing(spec: Spec, artifact: Quantize, found: Format, model: Planned) -> Packing:
    assert found.plan is not None
    tensors = {name: (node.dtype, node.shape) for name, node in model.tensors.items()}
    config = None if model.side.config is None else {**model.side.config, **model.side.config_overrides}
    try:
        return found.plan(
            Model(
                model.name,
                tensors,
                config,
                artifact.type,
                artifact.options,
                lambda name: any_matches(artifact.skip, name),
            )
        )
    except Unfit as unfit:
        message = f"`{artifact.name}` cannot be made: `{model.name}` {unfit.message}"
        where = spec.where("quantize", artifact.name, "model")
        raise BuildFailed(message, where=where, facts=unfit.facts, hint=unfit.hint) from None


def _packed(found: Format, pack: Pack, own: Node, numerics: str) -> Node:
    first = pack.outputs[0]
    node = operation_node(found.name, found.version, pack.params, (own,), first.dtype, first.shape, numerics)
    return replace(node, outputs=pack.outputs)


def _labels(artifact: Quantize, found: Format) -> tuple[tuple[str, Scalar | None], ...]:
    """The settings of the artifact in the words of the Modelfile, those left at their defaults included."""
    settings: Mapping[str, Scalar | None] = {
        option.name: artifact.options.get(option.name, option.default)
        for option in found.options
        if not option.types or artifact.type in option.types
    }
    return (("type", artifact.type), *settings.items())


def _idle(artifact: Quantize, model: Planned) -> list[str]:
    """A sentence for each pattern of `skip` that is in no tensor's name: most likely a slip."""
    # A tied head is stored under no name of its own, and is left alone in any case.
    names = [*model.tensors, "lm_head.weight"]
    idle = [pattern for pattern in artifact.skip if not any(matches(pattern, name) for name in names)]
    return [f"`{pattern}` in `skip` is in no tensor's name" for pattern in idle]
