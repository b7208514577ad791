"""moe: a mixture of experts made from dense models (https://arxiv.org/abs/2401.04088).

Attention, norms, embeddings and head are the base's. The mlp of each model becomes an expert of every layer, and a
router, a matrix [experts, hidden], says for each token which of them work on it. An expert's tensor is

    y = (x + noise_scale·z)·residual_scale

z being normal random numbers, and residual_scale 1 except for `down_proj`, whose output is what an expert adds.

Exact arithmetic: float32, every operation rounded (kernels/noise.py). The numbers are those of the key (seed, "moe",
the output tensor's name, the model's name) and the element's index.

Identities: without noise, and at scale 1, the model's tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from modelbuild.methods.base import Compute, Kernel, Method, Parameter, Request, Step, Take
from modelbuild.methods.streamed import Streamed
from modelbuild.methods.weights import to_float32

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from modelbuild.plan.node import Node

ARCHITECTURES = ("mixtral", "qwen3_moe")
"""The mixtures that are built."""

LATER = ("qwen2_moe", "deepseek")
"""Mixtures that mergekit makes, and that are not built: they have experts that work on every token."""

PROMPTED = ("hidden", "hidden_avg", "hidden_last", "cheap_embed")
"""The modes in which routers are made from prompts."""

DRAWN = ("random", "uniform_random")
"""The modes in which routers are drawn."""

GIVEN = "given"
"""The mode in which routers are those of another model."""


def architectures(word: str) -> tuple[str, ...]:
    """The mixtures that a word may mean, which may be the beginning of a name: `qwen` is two of them."""
    plain = word.lower().replace("-", "_").replace(" ", "_")
    return tuple(name for name in (*ARCHITECTURES, *LATER) if name.startswith(plain)) if plain else ()


def step(request: Request) -> Step:
    """Decides one tensor of an expert; `residual` among the shared parameters says whether its output is the mlp's."""
    own = request.per_input[0]
    noise = float(own["noise_scale"] or 0.0)
    scale = float(cast("float", own["residual_scale"])) if request.shared["residual"] else 1.0
    silent = to_float32(noise) == 0.0
    if silent and to_float32(scale) == 1.0:
        return Take(0)
    key = "0" if silent else random_key(request.seed, request.tensor, request.names[0])
    return Compute((("noise", noise), ("scale", scale), ("key", key)), request.inputs)


def random_key(seed: int, tensor: str, name: str) -> str:
    """The 64-bit key of a tensor's random numbers, in hexadecimal; `name` is the model's, empty for a router."""
    from modelbuild.digest import identity

    return identity("random/1", seed, "moe", tensor, name)[:16]


def computing(mode: str) -> tuple[str, ...]:
    """The packages that compute routers in this mode: hidden states are theirs."""
    return ("transformers", "torch") if mode.startswith("hidden") else ()


def libraries(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The packages that routers take: what computes them, and what turns prompts into tokens."""
    mode = str(getattr(parameters.get("gate_mode"), "value", "hidden"))
    return (*computing(mode), "tokenizers") if mode in PROMPTED else ()


class Expert(Streamed):
    """The operation: one tensor of an expert, with noise, times a factor."""

    floats = 1

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel for one tensor."""
        from modelbuild.kernels.noise import noisy

        noise, scale = (float(cast("float", node.param(name))) for name in ("noise", "scale"))
        return noisy(node, str(node.param("key")), noise, scale)


METHOD = Method(
    name="moe",
    summary="a mixture of experts made from dense models",
    paper="https://arxiv.org/abs/2401.04088",
    version=1,
    base="required",
    inputs=(2, None),
    parameters=(
        Parameter(
            "gate_mode",
            "merge",
            "string",
            "hidden",
            "where the router comes from",
            choices=(*PROMPTED, *DRAWN, GIVEN),
        ),
        Parameter("experts_per_token", "merge", "integer", 2, "experts that work on one token", 1),
        Parameter("architecture", "merge", "string", None, "mixtral or qwen3_moe; the base decides", nullable=True),
        Parameter("prompt", "input", "strings", None, "texts that this expert is for", nullable=True),
        Parameter("negative_prompt", "input", "strings", None, "texts that this expert is not for", nullable=True),
        Parameter("shared", "input", "boolean", False, "an expert that works on every token; not built yet"),
        Parameter("noise_scale", "input", "number", 0.0, "deviation of noise added to this expert's weights", 0.0),
        Parameter("residual_scale", "input", "number", 1.0, "scale of this expert's output"),
    ),
    step=step,
    operation=Expert,
    random=True,
    libraries=libraries,
    extra="moe",
    mixture=True,
)
