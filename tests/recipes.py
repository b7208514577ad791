"""A merge by each method, for what all of them have to hold: the same bytes anywhere, and mergekit's numbers."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """A merge of fine-tuned models: our words, mergekit's, and how near the two have to be (× the tensor's rms).

    `per_model` are the parameters of each model in turn. `same`: whether mergekit's result is the same by definition.
    """

    method: str
    shared: dict = field(default_factory=dict)
    per_model: tuple = ({}, {}, {})
    based: bool = True
    theirs: dict | None = None
    tolerance: float = 1e-6
    same: bool = True

    @property
    def id(self):
        """A short name."""
        return "-".join([self.method, *(f"{key}={value}" for key, value in self.shared.items())])

    @property
    def names(self):
        """The models' names, without the base."""
        return [f"m{i}" for i in range(len(self.per_model))]

    def toml(self, name="m"):
        """The merge as a Modelfile has it."""
        lines = [f"[merge.{name}]", f'method = "{self.method}"']
        lines += ['base = "base"'] if self.based else []
        lines += [f"{key} = {toml(value)}" for key, value in self.shared.items()]
        entries = []
        for name, own in zip(self.names, self.per_model, strict=True):
            words = [f'model = "{name}"', *(f"{key} = {toml(value)}" for key, value in own.items())]
            entries.append(f"{{ {', '.join(words)} }}")
        return "\n".join([*lines, f"models = [ {', '.join(entries)} ]", ""])

    def mergekit(self):
        """The parameters as mergekit has them."""
        shared = dict(self.shared) if self.theirs is None else dict(self.theirs)
        names = {name for own in self.per_model for name in own}
        return shared | {name: [own[name] for own in self.per_model] for name in names}


def toml(value):
    """A value as a Modelfile has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def weights(*values):
    """A weight for each model."""
    return tuple({"weight": value} for value in values)


RECIPES = [
    Recipe("linear", {}, weights(0.5, 0.3, 0.4), based=False),
    Recipe("lerp", {}, ({"t": 0.3},), same=False),
    Recipe("task_arithmetic", {"lambda": 0.7}, weights(0.5, 0.3, -0.4)),
    Recipe("passthrough", {"scale": 0.3}, ({},), based=False),
    Recipe("slerp", {"t": 0.3}, ({},)),
    Recipe("nuslerp", {}, weights(0.6, 0.4), theirs={"nuslerp_flatten": True}),
    Recipe("nuslerp", {"flatten": False}, weights(0.6, 0.4), theirs={"nuslerp_flatten": False}),
    Recipe(
        "nuslerp",
        {"flatten": False, "row_wise": True},
        weights(0.6, 0.4),
        based=False,
        theirs={"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ),
    Recipe("multislerp", {}, weights(0.5, 0.3, 0.4)),
    Recipe("multislerp", {"normalize_weights": False}, weights(0.5, 0.3, 0.4), based=False),
    Recipe("karcher", {}, based=False),
    Recipe("model_stock", {}),
    Recipe("model_stock", {"filter_wise": True}),
]

VOTES = tuple({"weight": weight, "density": density} for weight, density in ((0.5, 0.6), (0.3, 0.4), (-0.4, 0.8)))


def with_(**more):
    """The votes with another parameter for each model."""
    return tuple({**own, **more} for own in VOTES)


RECIPES += [
    Recipe("ties", {}, VOTES),
    Recipe("ties", {"rescale": True, "lambda": 0.7}, VOTES),
    Recipe("ties", {"consensus": "count"}, VOTES, same=False),
    Recipe("dare_linear", {}, VOTES, same=False),
    Recipe("dare_ties", {"rescale_by": "density"}, VOTES, same=False),
    Recipe("breadcrumbs", {}, with_(gamma=0.05)),
    Recipe("breadcrumbs_ties", {"normalize": True}, with_(gamma=0.05)),
    Recipe("della", {}, with_(epsilon=0.1), same=False),
    Recipe("della_linear", {"rescale": False}, with_(epsilon=0.1), same=False),
    Recipe("sce", {"select_topk": 0.5}, same=False),
    Recipe("ram", {"epsilon": 1e-3}),
    Recipe("ramplus_tl", {"epsilon": 1e-3}),
    Recipe("nearswap", {"t": 0.002}, ({},)),
    Recipe("arcee_fusion", {}, ({},), same=False),
    Recipe("iso_c", {"lambda": 0.7}, weights(1.0, 0.5, -0.4), same=False),
    Recipe("tsv", {}, weights(1.0, 0.5, -0.4), same=False),
    Recipe("tsv", {"density": 0.6}, same=False),
]
