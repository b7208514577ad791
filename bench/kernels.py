"""The loops that methods are made of, beside plain torch on the same data: elements a second, on one thread.

usage: python bench/kernels.py [--elements 4194304] [--times 5]

Ours go through the data by tiles of 256 Ki elements, as builds do; torch takes whole tensors. Both see float32, and
bfloat16 where the name says so. The best of some runs counts.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from timing import machine

from modelbuild.kernels.combination import Combination
from modelbuild.kernels.divergence import divergences
from modelbuild.kernels.gram import Gram
from modelbuild.kernels.mask import band, drawn, everything
from modelbuild.kernels.nearswap import nearswap
from modelbuild.kernels.norms import Norms
from modelbuild.kernels.ram import Ram
from modelbuild.kernels.random import uniform
from modelbuild.kernels.rank import ranks
from modelbuild.kernels.scores import variance
from modelbuild.kernels.select import Selection, kept
from modelbuild.kernels.vote import Rule, Vote, Voter

TILE = 256 * 1024
COLUMNS = 2048
Work = Callable[[], object]
Tile = Callable[[int, int, list, np.ndarray], object]


@dataclass(frozen=True)
class Data:
    """A base and two models that differ from it as fine-tunes do: raw, and as torch tensors."""

    dtype: str
    raw: list
    torch: list

    @property
    def count(self) -> int:
        """Elements of each."""
        return self.raw[0].size


def data(count: int, dtype: str) -> Data:
    """Three tensors of `count` elements."""
    torch.manual_seed(0)
    base = 0.02 * torch.randn(count)
    models = [base, *(base + 3e-4 * torch.randn(count) for _ in range(2))]
    if dtype == "F32":
        return Data(dtype, [model.numpy() for model in models], models)
    models = [model.bfloat16() for model in models]
    return Data(dtype, [model.view(torch.int16).numpy().view(np.uint16) for model in models], models)


def tiled(given: Data, tile: Tile) -> Work:
    """Runs `tile` over all tiles, into memory that is there."""
    out = np.empty_like(given.raw[0])

    def run() -> None:
        for start in range(0, given.count, TILE):
            stop = min(start + TILE, given.count)
            tile(start, stop, [array[start:stop] for array in given.raw], out[start:stop])

    return run


def threshold(given: Data, k: int) -> Work:
    """Finds what keeps the k largest differences."""

    def run() -> object:
        selection = Selection(given.count, [k], given.dtype, given.dtype)
        while wanted := selection.wanted():
            for first, last in wanted:
                for start in range(first, last, TILE):
                    stop = min(start + TILE, last)
                    selection.show(start, stop, given.raw[1][start:stop], given.raw[0][start:stop])
            selection.advance()
        return selection.thresholds

    return run


def ties(given: Data) -> Work:
    """The election of two whole deltas by torch."""
    base, one, two = given.torch

    def run() -> torch.Tensor:
        deltas = torch.stack([one - base, two - base]) * 0.4
        agrees = deltas.sign() == (deltas.sum(0) >= 0) * 2 - 1
        share = (agrees * 0.4).sum(0)
        return base + (deltas * agrees).sum(0) / torch.where(share == 0, 1, share)

    return run


def divergence(given: Data) -> Work:
    """The divergences of rows by torch."""
    base, one, _ = (tensor.float().view(-1, COLUMNS) for tensor in given.torch)

    def run() -> torch.Tensor:
        p, q = one.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
        return (p * (p / q).log()).sum(-1)

    return run


def measures(given: Data) -> Iterator[tuple[str, Work, Work]]:
    """What is measured: a name, ours, torch's."""
    base, one, two = given.torch
    dtypes, count = [given.dtype] * 3, given.count
    gram = Gram(dtypes, count, count, anchored=False)
    yield (
        "gram",
        tiled(given, lambda a, b, inputs, out: gram.measure(a, b, inputs)),
        lambda: [
            ((one - base).double() * (two - base).double()).sum(),
            (one - base).double().square().sum(),
            (two - base).double().square().sum(),
        ],
    )
    mix = Combination(dtypes, given.dtype, np.array([[0.3, 0.6]]), count, anchored=False, by_column=False)
    yield "combination", tiled(given, mix.run), lambda: base + (0.3 * (one - base) + 0.6 * (two - base))
    k = kept(0.3, count)
    yield "select", threshold(given, k), lambda: (one - base).abs().float().topk(k)
    rule, voters = Rule("sum", "agreeing"), [Voter(everything(), 0.4)] * 2
    yield "vote", tiled(given, Vote(dtypes, given.dtype, voters, rule).run), ties(given)
    found = threshold(given, k)()
    banded = Vote([given.dtype] * 2, given.dtype, [Voter(band(*found))], Rule())
    least = found[0].value
    yield (
        "vote, thresholds",
        tiled(given, lambda a, b, inputs, out: banded.run(a, b, inputs[:2], out)),
        lambda: base + (one - base) * ((one - base).abs() >= least),
    )
    random = Vote([given.dtype] * 2, given.dtype, [Voter(drawn(1, 0.3))], Rule())
    yield (
        "vote, random",
        tiled(given, lambda a, b, inputs, out: random.run(a, b, inputs[:2], out)),
        lambda: base + (one - base) * torch.bernoulli(torch.full_like(base, 0.3)),
    )
    norms = Norms(dtypes, count, [everything()] * 2)
    yield (
        "norms",
        tiled(given, lambda a, b, inputs, out: norms.measure(a, b, inputs)),
        lambda: [((x - base).abs().sum(), (x - base).square().sum()) for x in (one, two)],
    )
    yield (
        "variance",
        tiled(given, lambda a, b, inputs, out: variance(dtypes, inputs, scores[: b - a])),
        lambda: torch.stack([one - base, two - base]).float().var(0, unbiased=False),
    )
    yield (
        "ranks",
        tiled(given, lambda a, b, inputs, out: ranks(COLUMNS, given.dtype, inputs[1], given.dtype, inputs[0])),
        lambda: (one - base).abs().view(-1, COLUMNS).argsort(1).argsort(1),
    )
    pair = (given.dtype, given.dtype)
    yield (
        "divergence",
        tiled(given, lambda a, b, inputs, out: divergences(pair, COLUMNS, inputs[0], inputs[1])),
        divergence(given),
    )
    ram = Ram(dtypes, given.dtype, [1.0, 1.0], 1e-4)
    yield (
        "ram",
        tiled(given, lambda a, b, inputs, out: ram.run(inputs, out)),
        lambda: base + sum((x - base) * ((x - base).abs() > 1e-4) for x in (one, two)) / 2,
    )
    yield (
        "nearswap",
        tiled(given, lambda a, b, inputs, out: nearswap(pair, given.dtype, 1e-4, inputs[0], inputs[1], out)),
        lambda: torch.lerp(base, one, (1e-4 / (base - one).abs().clamp(min=1e-6)).clamp(0, 1)),
    )
    yield (
        "uniform",
        tiled(given, lambda a, b, inputs, out: uniform(1, a, b)),
        lambda: torch.rand(count),
    )


scores = np.empty(TILE, np.float32)


def best(work: Work, times: int) -> float:
    """Seconds of the quickest of some runs, after one that does not count."""
    work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=4 * 2**20)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    elements = given.elements - given.elements % COLUMNS
    print(f"{machine()}; {elements} elements, one thread\n")
    print("| | modelbuild, 10⁶ elements/s | torch, 10⁶ elements/s | × torch |\n|---|---|---|---|")
    for dtype in ("F32", "BF16"):
        for name, ours, theirs in measures(data(elements, dtype)):
            one, other = best(ours, given.times), best(theirs, given.times)
            rates = f"{elements / one / 1e6:.0f} | {elements / other / 1e6:.0f} | {other / one:.1f}"
            print(f"| {name}, {dtype} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
