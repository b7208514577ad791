"""lora: adapters folded into a model (https://arxiv.org/abs/2106.09685).

    Y = W + Σ wᵢ·deltaᵢ        delta = s·B·A for a LoRA, R − W for a replacement R, s·X for a bias X

Exact arithmetic, in float32, W and all factors widened first:

    low rank     P[r, c] = Σₖ left[r, k]·right[k, c], the chain of kernels/lowrank.py;  term = P·c, c = float32(w·s)
    replacement  term = (R − W)·w
    bias of B    term = X·c, c = float32(w·s)
    acc = term₁;  acc = acc + termᵢ in order;  Y = W + acc, one rounding to the output's dtype

Identities: an adapter at weight 0 is not read; where none is left, or no adapter touches the tensor, the base's is
taken as it is; a replacement that is alone and at weight 1 is taken as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from modelbuild.methods.base import Compute, Kernel, Method, Parameter, Request, Step, Take
from modelbuild.methods.streamed import Streamed
from modelbuild.methods.weights import to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.digest import Field
    from modelbuild.plan.node import Node


PANEL = 64
"""No layout of a factor is filled up with more columns than this."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The delta `scale`·left·right; `scale` is weight times scaling.

    `left` is [rows, K] and `right` [K, columns] after a transposition where flagged: as stored they may be
    [K, rows] and [columns, K].
    """

    left: Node
    right: Node
    scale: float
    transpose_left: bool = False
    transpose_right: bool = False


@dataclass(frozen=True, slots=True)
class Replace:
    """The delta `weight`·(node − base): a tensor that was trained whole."""

    node: Node
    weight: float


@dataclass(frozen=True, slots=True)
class Add:
    """The delta `scale`·node: the trained bias of a LoRA layer; `scale` is weight times scaling."""

    node: Node
    scale: float


Term: TypeAlias = "LowRank | Replace | Add"


def strength(term: Term) -> float:
    """The factor on the term's delta, as float32 has it."""
    return to_float32(term.weight if isinstance(term, Replace) else term.scale)


def lora_step(base: Node, terms: Sequence[Term]) -> Take | Compute:
    """What becomes of one base tensor under `terms`, in order.

    `Take(-1)` is the base, `Take(i)` the replacement `terms[i]`; the inputs of `Compute` are the base and then each
    remaining term's nodes.
    """
    kept = [index for index, term in enumerate(terms) if strength(term) != 0.0]
    if not kept:
        return Take(-1)
    first = terms[kept[0]]
    if len(kept) == 1 and isinstance(first, Replace) and strength(first) == 1.0:
        return Take(kept[0])
    fields: list[Field] = []
    inputs: list[Node] = [base]
    for term in (terms[index] for index in kept):
        if isinstance(term, LowRank):
            fields.append(("lowrank", float(term.scale), term.transpose_left, term.transpose_right))
            inputs += [term.left, term.right]
        elif isinstance(term, Replace):
            fields.append(("replace", float(term.weight)))
            inputs.append(term.node)
        else:
            fields.append(("add", float(term.scale)))
            inputs.append(term.node)
    return Compute((("terms", tuple(fields)),), tuple(inputs))


def step(request: Request) -> Step:
    """Takes the base: this decides a tensor that no adapter touches; `lora_step` decides the others."""
    return Take(-1)


class Lora(Streamed):
    """The operation: inputs are the base, then each term's left and right factor, replacement or addition."""

    floats = 3

    def whole(self, node: Node) -> tuple[int, ...]:
        """The factors of the low-rank terms; base and replacements are streamed."""
        return tuple(index for pair in factor_indexes(node) for index in pair)

    def memory(self, node: Node) -> int:
        """The factors as they are stored, their float32 values, and the layout that is made from those."""
        factors = [node.inputs[index] for index in self.whole(node)]
        ranks = [min(factor.shape, default=0) for factor in factors]
        return sum(
            factor.nbytes + 8 * factor.count + 4 * PANEL * rank for factor, rank in zip(factors, ranks, strict=True)
        )

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel:
        """The kernel for one tensor; the factors are converted to float32 and laid out for it once."""
        from modelbuild.kernels.lowrank import lora

        return lora(node, whole)


def factor_indexes(node: Node) -> tuple[tuple[int, int], ...]:
    """For each low-rank term of a lora node, the indexes of its left and right factor among the inputs."""
    found: list[tuple[int, int]] = []
    index = 1
    for term in terms_of(node):
        if term[0] == "lowrank":
            found.append((index, index + 1))
        index += 2 if term[0] == "lowrank" else 1
    return tuple(found)


def terms_of(node: Node) -> tuple[tuple[Field, ...], ...]:
    """The terms of a lora node, as they stand in its parameters."""
    terms = node.param("terms")
    assert isinstance(terms, tuple)
    return tuple(term for term in terms if isinstance(term, tuple))


METHOD = Method(
    name="lora",
    summary="adapters folded into the base, each at its weight",
    paper="https://arxiv.org/abs/2106.09685",
    version=1,
    base="required",
    inputs=(1, None),
    parameters=(Parameter("weight", "input", "number", 1.0, "factor on this adapter's delta"),),
    takes="adapters",
    step=step,
    operation=Lora,
)
