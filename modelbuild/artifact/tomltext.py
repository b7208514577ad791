"""A recipe as Modelfile text: what one artifact needs and nothing else, in building order, without comments.

Cards show this rather than the file itself, so that a comment or an unrelated artifact changes no output.
"""

from __future__ import annotations

from modelbuild.artifact.recipe import recipe
from modelbuild.modelfile.spec import Spec
from modelbuild.modelfile.toml import pairs


def modelfile_text(spec: Spec, name: str) -> str:
    """A Modelfile that builds the artifact `name` as `spec` does; the same for the same recipe."""
    parts = []
    chosen = spec.settings
    settings = {"dtype": chosen.dtype, "seed": chosen.seed or None, "shard_size": _size(spec), "shards": chosen.shards}
    given = {key: value for key, value in settings.items() if value is not None}
    if given:
        parts.append("\n".join(["[settings]", *pairs(given)]))
    for data in recipe(spec, name):
        fields = {key: value for key, value in data.items() if key not in ("kind", "name")}
        slices = fields.pop("slices", ())
        lines = [f"[{data['kind']}.{data['name']}]", *pairs(fields)]
        for part in slices:
            lines += ["", f"[[{data['kind']}.{data['name']}.slices]]", *pairs(part)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _size(spec: Spec) -> str | None:
    size = spec.settings.shard_size
    return f"{size}B" if size != 5_000_000_000 else None
