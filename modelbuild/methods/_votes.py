"""What the methods that mask deltas and let models vote have in common: passes that decide, and one that votes.

The inputs of a node are the base and the models. A method chooses a mask for each model (kernels/mask.py), by exact
selection, by rank, or at random; the masked deltas may be rescaled to the size they had; then kernels/vote.py weighs
them, elects signs, adds what agrees, and divides. Random numbers come from a counter: each is a function of the seed,
the method, the output tensor's name, the input's name and the element's index, and of nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from modelbuild.digest import identity
from modelbuild.methods.base import Compute, Parameter, Pass, Refuse, Request, Step, Take
from modelbuild.methods.streamed import Streamed, nothing
from modelbuild.methods.weights import bad_divisor, divisor, nonzero, number_of, numbers_of, to_float32, weights_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.kernels.mask import Mask
    from modelbuild.kernels.select import Selection, Threshold
    from modelbuild.kernels.vote import Rule, Voter
    from modelbuild.methods.base import Kernel, Look, Survey
    from modelbuild.plan.node import Node, Params

    Passes: TypeAlias = Generator[Pass | str, None, Any]

TINY = 1e-8
"""A smaller sum of weights is refused: mergekit would then not divide."""

WEIGHT = Parameter("weight", "input", "number", None, "share of this model's difference from the base")
DENSITY = Parameter("density", "input", "number", 1.0, "share of the delta's elements that is kept", 0.0, 1.0)
LAMBDA = Parameter("lambda", "merge", "number", 1.0, "scale of the merged delta")
CONSENSUS = Parameter(
    "consensus", "merge", "string", "sum", "what elects signs: sum or count of the deltas", choices=("sum", "count")
)  # fmt: skip
GAMMA = Parameter("gamma", "input", "number", 0.01, "share of the largest elements that is dropped", 0.0, 1.0)
EPSILON = Parameter("epsilon", "input", "number", 0.15, "half the spread of the chance of being kept", 0.0, 1.0)
RESCALE_BY = Parameter(
    "rescale_by", "merge", "string", "norm", "rescale by the L1 norms before and after, or by 1/density as published",
    choices=("norm", "density"),
)  # fmt: skip


def flags(normalize: bool, rescale: bool, elected: bool = False) -> tuple[Parameter, ...]:
    """The switches that these methods share, with their defaults; `elected`: of a method that elects signs."""
    divides = "divide by the sum of the weights" + (" of the models that agree" if elected else "")
    return (
        Parameter("normalize", "merge", "boolean", normalize, divides),
        Parameter("rescale", "merge", "boolean", rescale, "scale what is kept back to the size of the whole delta"),
    )


# --- the plan ---------------------------------------------------------------------------------------------------------

Own: TypeAlias = "Callable[[Request, int], Params | Refuse]"
"""The parameters that a method adds for a model, by its index, each a number or text."""


def vote_step(request: Request, consensus: bool, own: Own = lambda request, index: ()) -> Step:
    """Drops the models at weight 0 or density 0; takes the base where nothing is added to it."""
    assert request.base is not None
    weights, shared = weights_of(request), request.shared
    scale = float(shared["lambda"] or 0.0)
    normalize = bool(shared["normalize"])
    weighed = nonzero(weights)
    kept = [index for index in weighed if density_of(request, index) > 0.0]
    if not kept or to_float32(scale) == 0.0:
        return Take(-1)
    whole = tuple(weights[index] for index in weighed)
    if normalize and not consensus and (reason := bad_divisor(whole, TINY)):
        return Refuse(reason)
    extra: dict[str, list[Any]] = {}
    for index in kept:
        found = own(request, index)
        if isinstance(found, Refuse):
            return found
        for name, value in found:
            extra.setdefault(name, []).append(value)
    rescale = str(shared.get("rescale_by") or "norm") if shared["rescale"] else "none"
    params: Params = (
        ("weights", tuple(weights[index] for index in kept)),
        ("densities", tuple(density_of(request, index) for index in kept)),
        *((name, tuple(values)) for name, values in extra.items()),
        ("consensus", str(shared["consensus"]) if consensus else "none"),
        ("divisor", divisor(whole) if normalize and not consensus else 1.0),
        ("normalize", normalize),
        ("lambda", scale),
        ("rescale", rescale),
    )
    return Compute(params, (request.base, *(request.inputs[index] for index in kept)))


def density_of(request: Request, index: int) -> float:
    """The share of a model's elements that is kept; at most all."""
    return min(1.0, float(request.per_input[index]["density"] or 0.0))


def stream_key(request: Request, method: str, index: int) -> str:
    """The 64-bit key of a model's random numbers, in hexadecimal."""
    return identity("random/1", request.seed, method, request.tensor, request.names[index])[:16]


def gammas(request: Request, index: int) -> Params:
    """What breadcrumbs adds for a model: how many of its largest elements are dropped."""
    return (("gammas", float(request.per_input[index]["gamma"] or 0.0)),)


def chances(request: Request, index: int) -> Params | Refuse:
    """What della adds for a model: the key of its random numbers, and how far chances lie apart."""
    density, epsilon = density_of(request, index), float(request.per_input[index]["epsilon"] or 0.0)
    if density < 1.0 and not (density - epsilon > 0.0 and density + epsilon < 1.0):
        return Refuse(f"density {density:g} ± epsilon {epsilon:g} of `{request.names[index]}` is not between 0 and 1")
    return (("keys", stream_key(request, "della", index)), ("epsilons", epsilon))


# --- passes -----------------------------------------------------------------------------------------------------------

Shown: TypeAlias = "tuple[Selection, Look]"


def selected(shown: Sequence[Shown]) -> Passes:
    """Streams the inputs until every selection has its thresholds; each is shown what its own look gives it."""
    while left := [(wanted, *pair) for pair in shown if (wanted := pair[0].wanted())]:
        # Whoever wants to see the same is shown it together; the others have their turn.
        stretches = min(wanted for wanted, _, _ in left)
        together = [(selection, look) for wanted, selection, look in left if wanted == stretches]
        yield Pass(_all_of([look for _, look in together]), stretches)
        for selection, _ in together:
            selection.advance()


def _all_of(looks: Sequence[Look]) -> Look:
    def look(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
        for one in looks:
            one(start, stop, inputs, scratch)

    return look


def by_magnitude(node: Node, ranks: Sequence[Sequence[int]]) -> Generator[Pass | str, None, list[Sequence[Threshold]]]:
    """For each model the thresholds of ranks among the magnitudes of its differences from the base."""
    from modelbuild.kernels.select import Selection

    base, *models = (used.dtype for used in node.inputs)

    def pair(index: int, wanted: Sequence[int]) -> Shown:
        selection = Selection(node.count, wanted, models[index], base)

        def look(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
            selection.show(start, stop, inputs[index + 1], inputs[0])

        return selection, look

    pairs = [pair(index, wanted) for index, wanted in enumerate(ranks)]
    yield from selected(pairs)
    return [selection.thresholds for selection, _ in pairs]


def kept_while_selecting(node: Node, ranks: int) -> int:
    """The most bytes that finding the thresholds of so many ranks takes: what is near each, and two copies of one's."""
    from modelbuild.kernels.select import room

    return 4 * (ranks + 2) * room(node.count)


def norms_of(node: Node, masks: Sequence[Mask], scores: Scores | None = None) -> Generator[Pass | str, None, Any]:
    """Σ |d|, Σ |Md| and Σ (Md)² of each model, [models, 3]."""
    from modelbuild.kernels.norms import Norms

    norms = Norms([used.dtype for used in node.inputs], node.count, masks)

    def look(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
        given = scores(start, stop, inputs, scratch) if scores is not None else None
        norms.measure(start, stop, inputs, given)

    yield Pass(look)
    return norms.result()


Scores: TypeAlias = "Callable[[int, int, Sequence[NDArray[Any]], NDArray[Any]], NDArray[Any]]"
"""The scores of elements [start, stop), written into scratch memory, by which masks choose."""


def held(node: Node, voters: Sequence[Voter], rule: Rule, scores: Scores | None = None) -> Kernel:
    """The kernel of a vote."""
    from modelbuild.kernels.vote import Vote

    vote = Vote([used.dtype for used in node.inputs], node.dtype, voters, rule)

    def run(start: int, stop: int, inputs: Sequence[NDArray[Any]], out: NDArray[Any], scratch: NDArray[Any]) -> None:
        vote.run(start, stop, inputs, out, scores(start, stop, inputs, scratch) if scores is not None else None)

    return run


class Voted(Streamed):
    """The operation of the methods that weigh masked deltas; a method adds `masks`."""

    floats = 0

    def surveys(self, node: Node) -> bool:
        """Something is to be decided first."""
        return True

    @abstractmethod
    def masks(self, node: Node) -> Generator[Pass | str, None, list[Mask]]:
        """Each model's mask."""

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Survey:
        """Chooses masks, measures what they leave, and gives the kernel that votes."""
        from modelbuild.kernels.vote import Rule, Voter

        if node.count == 0:
            return nothing
        masks = yield from self.masks(node)
        factors = yield from _rescalings(node, masks)
        consensus = _consensus(node)
        divide: Literal["none", "agreeing", "all"] = "none"
        if node.param("normalize"):
            divide = "all" if consensus == "none" else "agreeing"
        rule = Rule(consensus, divide, number_of(node, "divisor"), number_of(node, "lambda"))
        weights = numbers_of(node, "weights")
        voters = [Voter(*each) for each in zip(masks, weights, factors, strict=True)]
        return held(node, voters, rule)


def _consensus(node: Node) -> Literal["none", "sum", "count"]:
    found = node.param("consensus")
    return "sum" if found == "sum" else "count" if found == "count" else "none"


def _rescalings(node: Node, masks: Sequence[Mask]) -> Generator[Pass | str, None, list[float]]:
    from modelbuild.kernels.norms import rescaling

    how = node.param("rescale")
    if how == "density":
        return [1.0 / density for density in numbers_of(node, "densities")]
    if how == "none" or all(density >= 1.0 for density in numbers_of(node, "densities")):
        return [1.0] * len(masks)
    found = yield from norms_of(node, masks)
    return [rescaling(before, after) for before, after, _ in found.tolist()]


class Drawn(Voted):
    """The operation of dare: each element of a delta is kept with the probability `density`."""

    def masks(self, node: Node) -> Generator[Pass | str, None, list[Mask]]:
        """Random masks; nothing has to be looked at."""
        from modelbuild.kernels.mask import drawn, everything

        yield from ()
        keys = node.param("keys")
        assert isinstance(keys, tuple)
        densities = numbers_of(node, "densities")
        return [
            everything() if density >= 1.0 else drawn(int(str(key), 16), density)
            for key, density in zip(keys, densities, strict=True)
        ]


class Crumbs(Voted):
    """The operation of breadcrumbs: the largest and the smallest elements of a delta are dropped."""

    def memory(self, node: Node) -> int:
        """What is near two thresholds for each model."""
        return kept_while_selecting(node, 2 * (len(node.inputs) - 1))

    def masks(self, node: Node) -> Generator[Pass | str, None, list[Mask]]:
        """What lies between two ranks."""
        from modelbuild.kernels.mask import band
        from modelbuild.kernels.select import crumbs

        shares = zip(numbers_of(node, "densities"), numbers_of(node, "gammas"), strict=True)
        found = yield from by_magnitude(node, [crumbs(density, gamma, node.count) for density, gamma in shares])
        return [band(low, high) for low, high in found]


class Ranked(Voted):
    """The operation of della: an element's chance to be kept rises with its rank in its row."""

    def room(self, node: Node) -> int:
        """A whole number of rows that is a whole number of words of 64 marks."""
        return _rows(node)

    def masks(self, node: Node) -> Generator[Pass | str, None, list[Mask]]:
        """Random masks of the ranks' probabilities, drawn row by row."""
        from modelbuild.kernels.mask import everything, marked
        from modelbuild.kernels.rank import Marks

        keys = node.param("keys")
        assert isinstance(keys, tuple)
        base, *models = (used.dtype for used in node.inputs)
        columns = node.shape[-1] if len(node.shape) > 1 else node.count
        chosen = zip(keys, numbers_of(node, "densities"), numbers_of(node, "epsilons"), models, strict=True)
        marks = [
            None if density >= 1.0 else Marks(node.count, columns, (base, dtype), int(str(key), 16), density, epsilon)
            for key, density, epsilon, dtype in chosen
        ]

        def look(start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
            for index, own in enumerate(marks):
                if own is not None:
                    own.draw(start, stop, inputs[0], inputs[index + 1])

        yield Pass(look, unit=_rows(node))
        return [everything() if own is None else marked(own.words) for own in marks]


def _rows(node: Node) -> int:
    from math import lcm

    columns = node.shape[-1] if len(node.shape) > 1 else node.count
    return max(1, min(lcm(max(1, columns), 64), node.count))
