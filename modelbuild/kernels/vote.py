"""Votes over the deltas of a tensor: masked, rescaled, weighted, elected, added to the base.

With dᵢ = xᵢ − B, mask Mᵢ, rescaling sᵢ, weight wᵢ and λ, in float32, every operation rounded, nothing fused, sums from
0 in the order of the models:

    vᵢ = dᵢ where Mᵢ keeps it, else 0;  vᵢ = vᵢ·sᵢ where sᵢ is not 1;  and, unless weights are late, vᵢ = vᵢ·wᵢ
    e = Σ vᵢ, or with consensus "count" the sum of their signs
    model i agrees where vᵢ > 0 and e ≥ 0, or vᵢ < 0 and not e ≥ 0; without consensus all do
    total = Σ of the vᵢ that agree, times wᵢ if weights are late;  share = Σ of their wᵢ
    total = total / divisor, with divide
        "agreeing"  share, or 1 where it is 0
        "floored"   share, or 1e-6 where it is less
        "all"       a number
    total = total·λ where λ is not 1;  y = B + total, one rounding to the output's dtype

So a sum of 0 elects the positive ones, and what is 0 never agrees. Where e is NaN, so is y.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from modelbuild.kernels.combine import BLOCK, places_of, table
from modelbuild.kernels.compile import inlined, kernel
from modelbuild.kernels.convert import CODES, address, shrink
from modelbuild.kernels.fma import Array, Pointer, floats
from modelbuild.kernels.mask import DRAWN, Mask, apply, mask_table
from modelbuild.kernels.vectors import codes_of, spread
from modelbuild.kernels.workspace import workspace

CONSENSUS = {"none": 0, "sum": 1, "count": 2}
DIVIDE = {"none": 0, "agreeing": 1, "floored": 2, "all": 3}
STEP = BLOCK // 2
"""Elements worked on at a time: with five models still in the first-level cache."""

FLOOR = 1e-6
FACTORS = 3
"""float32 values for each model: rescaling, weight, probability of a random mask."""


@inlined
def sign(value: float) -> float:
    """1 or -1; 0 and NaN are themselves."""
    positive: float = np.float32(1.0) if value > np.float32(0.0) else value  # type: ignore[assignment]
    return np.float32(-1.0) if value < np.float32(0.0) else positive  # type: ignore[return-value]


@inlined
def elect(rows: int, models: int, size: int, consensus: int, election: int) -> None:
    """The sums of the models' rows, or of their signs."""
    sums = floats(election)
    for i in range(size):
        sums[i] = np.float32(0.0)
    for model in range(models):
        values = floats(rows + 4 * size * model)
        if consensus == 2:
            for i in range(size):
                sums[i] = sums[i] + sign(values[i])
        else:
            for i in range(size):
                sums[i] = sums[i] + values[i]


@inlined
def gather(values: Pointer, size: int, weight: float, late: int, sums: Pointer, total: Pointer, share: Pointer) -> None:
    """Adds what of a model's values agrees with the election to the total, and its weight to the share."""
    factor = weight if late else np.float32(1.0)
    zero = np.float32(0.0)
    for i in range(size):
        value = values[i]
        agrees = value > zero if sums[i] >= zero else value < zero
        total[i] = total[i] + (value * factor if agrees else zero)
        share[i] = share[i] + (weight if agrees else zero)


@inlined
def divide_by(divide: int, size: int, divisor: float, total: Pointer, share: Pointer) -> None:
    """Divides the total by the share, or by a number."""
    if divide == 1:
        for i in range(size):
            total[i] = total[i] / (np.float32(1.0) if share[i] == np.float32(0.0) else share[i])
    elif divide == 2:
        for i in range(size):
            total[i] = total[i] / (np.float32(FLOOR) if share[i] < np.float32(FLOOR) else share[i])
    elif divide == 3:
        for i in range(size):
            total[i] = total[i] / divisor


@inlined
def prepare(
    rows: int, models: int, masks: int, factors: int, late: int, start: int, size: int, scores: int, scratch: int
) -> None:
    """Masks, rescales and, unless weights are late, weighs the rows of a block that begins at flat index `start`."""
    for model in range(models):
        place = rows + 4 * size * model
        numbers = floats(factors + 4 * FACTORS * model)
        apply(masks, model, numbers[2], start, size, scores, place, scratch)
        values, rescaling, weight = floats(place), numbers[0], numbers[1]
        if rescaling != np.float32(1.0):
            for i in range(size):
                values[i] = values[i] * rescaling
        if not late:
            for i in range(size):
                values[i] = values[i] * weight


@kernel(
    "void(int64, int64, int64, int64, int64, int64, int64, int64, float32, float32, "
    "int64, int64, int64, int64, int64, int64)"
)
def vote_loop(
    places: int,
    codes: int,
    models: int,
    masks: int,
    factors: int,
    consensus: int,
    late: int,
    divide: int,
    divisor: float,
    scale: float,
    scores: int,
    start: int,
    count: int,
    out: int,
    out_code: int,
    scratch: int,
) -> None:
    """Elements [start, start + count); the base is the first place. `scores` is 0 or a float32 for each element."""
    for begin in range(0, count, STEP):
        size = min(STEP, count - begin)
        vectors = scratch + 4 * DRAWN
        spread(places, codes, models + 1, begin, size, vectors)
        rows = vectors + 4 * size
        given = scores + 4 * begin if scores else 0
        prepare(rows, models, masks, factors, late, start + begin, size, given, scratch)
        election = rows + 4 * size * models
        base, sums = floats(vectors), floats(election)
        total, share = floats(election + 4 * size), floats(election + 8 * size)
        elect(rows, models, size, consensus, election)
        if consensus == 0:
            total = sums
        else:
            for i in range(size):
                # A sum that is NaN stays NaN whatever agrees.
                total[i] = np.float32(0.0) if sums[i] == sums[i] else sums[i]
                share[i] = np.float32(0.0)
            for model in range(models):
                weight = floats(factors + 4 * FACTORS * model)[1]
                gather(floats(rows + 4 * size * model), size, weight, late, sums, total, share)
        divide_by(divide, size, divisor, total, share)
        if scale != np.float32(1.0):
            for i in range(size):
                total[i] = total[i] * scale
        for i in range(size):
            base[i] = base[i] + total[i]
        shrink(base, out, out_code, begin, size)


@dataclass(frozen=True, slots=True)
class Rule:
    """How a vote is held; see the formulas of this file."""

    consensus: Literal["none", "sum", "count"] = "none"
    divide: Literal["none", "agreeing", "floored", "all"] = "none"
    divisor: float = 1.0
    scale: float = 1.0
    late: bool = False

    def __post_init__(self) -> None:
        """ValueError for a rule that makes no sense: without an election there are no shares, nor late weights."""
        if self.consensus == "none" and (self.late or self.divide in ("agreeing", "floored")):
            raise ValueError(f"without consensus there is no {'late weight' if self.late else self.divide + ' share'}")


@dataclass(frozen=True, slots=True)
class Voter:
    """How one model takes part: what of its delta, rescaled by how much, and its weight."""

    mask: Mask
    weight: float = 1.0
    rescaling: float = 1.0


def factor_table(voters: Sequence[Voter]) -> Array:
    """Rescaling, weight and probability of each model, float32."""
    rows = [(voter.rescaling, voter.weight, voter.mask.probability) for voter in voters]
    return np.array(rows, np.float32).reshape(-1, FACTORS)


class Vote:
    """Holds the vote of models over a tensor; `dtypes` are those of the base and of the models."""

    def __init__(self, dtypes: Sequence[str], dtype: str, voters: Sequence[Voter], rule: Rule) -> None:
        if len(dtypes) != len(voters) + 1:
            raise ValueError(f"{len(voters)} models and a base, but {len(dtypes)} dtypes")
        self._codes = codes_of(dtypes)
        self._out_code, self._rule, self._voters = CODES[dtype], rule, tuple(voters)
        self._masks = mask_table([voter.mask for voter in voters])
        self._factors = table(factor_table(voters))

    def run(self, start: int, stop: int, inputs: Sequence[Array], out: Array, scores: Array | None = None) -> None:
        """Fills `out` with elements [start, stop), of which `inputs` are the raw elements: any stretch will do."""
        *places, target = places_of((*inputs, out), stop - start)
        given = places_of((scores,), stop - start)[0] if scores is not None else 0
        tiles, models = array("q", places), len(self._voters)
        rule = self._rule
        vote_loop(
            tiles.buffer_info()[0],
            self._codes.place,
            models,
            self._masks.place,
            self._factors.place,
            CONSENSUS[rule.consensus],
            int(rule.late),
            DIVIDE[rule.divide],
            rule.divisor,
            rule.scale,
            given,
            start,
            stop - start,
            target,
            self._out_code,
            address(workspace(DRAWN + (models + 4) * STEP)),
        )
