"""A method on small arrays, the whole way that a plan and the engine go: defaults, the decision, the loops."""

import numpy as np
from kernel_tools import leaf, raw, run, values
from recipes import toml

from modelbuild.methods.base import Compute, Refuse, Request, Take
from modelbuild.methods.registry import method


def merge_text(method, models, says, base=None, name="m"):
    """A merge as a Modelfile has it; what is said by a tuple is one value for each model, in order."""
    shared = {key: value for key, value in says.items() if not isinstance(value, tuple)}
    entries = []
    for i, model in enumerate(models):
        own = {key: value[i] for key, value in says.items() if isinstance(value, tuple)}
        entries.append(", ".join([f'model = "{model}"', *(f"{key} = {toml(value)}" for key, value in own.items())]))
    lines = [f"[merge.{name}]", f'method = "{method}"', *([f'base = "{base}"'] if base else [])]
    lines += [f"{key} = {toml(value)}" for key, value in shared.items()]
    return "\n".join([*lines, f"models = [ {', '.join(f'{{ {entry} }}' for entry in entries)} ]", ""])


class Refused(Exception):
    """The method's reason for not computing a tensor."""


def decided(name, models, base=None, says=None, *, tensor="w", names=None, seed=0):
    """What a method decides for arrays and the words of a merge; a tuple is one value for each model."""
    found, says = method(name), says or {}

    def value(parameter, index=None):
        given = says.get(parameter.name, parameter.default)
        return given[index] if isinstance(given, tuple) else given

    assert set(says) <= {p.name for p in found.parameters}
    shared = {p.name: value(p) for p in found.parameters if p.scope == "merge"}
    own = [{p.name: value(p, i) for p in found.parameters if p.scope == "input"} for i in range(len(models))]
    inputs = tuple(leaf(shape=np.shape(model), key=str(i)) for i, model in enumerate(models))
    used = leaf(shape=np.shape(base), key="-1") if base is not None and found.base != "none" else None
    names = tuple(names or (f"m{i}" for i in range(len(models))))
    return found.step(Request(used, inputs, shared, own, tensor, names, seed))


def applied(name, models, base=None, says=None, *, dtype="F32", **more):
    """The tensor that a method makes of float32 arrays, as float32; Refused if it will not."""
    step = decided(name, models, base, says, **more)
    arrays = [np.asarray(array, np.float32) for array in [*models, *([base] if base is not None else [])]]
    if isinstance(step, Refuse):
        raise Refused(step.reason)
    if isinstance(step, Take):
        return values(raw(arrays[step.index], dtype), dtype).reshape(arrays[0].shape)
    assert isinstance(step, Compute)
    inputs = [("F32", raw(arrays[int(node.key)])) for node in step.inputs]
    return values(run(name, step.params, inputs, dtype, arrays[0].shape), dtype).reshape(arrays[0].shape)
