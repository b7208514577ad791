"""A pass with probes: it counts what is above, what is common and where, keeps the rest, and finds ranks among them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import KINDS, magnitudes, numbers

from modelbuild.kernels.convert import address
from modelbuild.kernels.magnitude import NAN, SCRATCH
from modelbuild.kernels.probe import COMMON, Probe, Probing
from modelbuild.kernels.vectors import GRAIN

COUNT = 3 * GRAIN + 77


def see(probing, scores, start, stop):
    """Shows a stretch of float32 scores, as Selection does."""
    scratch = np.empty(SCRATCH, np.float32)
    probing.see(start, (0, 0, address(scores[start:stop]), 2), stop - start, address(scratch))


def probed(scores, probes, room=COUNT, step=2 * GRAIN):
    probing = Probing(len(scores), probes, room)
    for start in range(0, len(scores), step):
        see(probing, scores, start, min(start + step, len(scores)))
    return probing.results()


def expected(scores, rank):
    """By sorting: the magnitude of a rank, how many have it, how many of these are kept, and where the last stands."""
    keys = magnitudes(scores)
    magnitude = int(np.sort(keys)[::-1][rank - 1])
    equal = np.flatnonzero(keys == magnitude)
    keep = rank - int((keys > magnitude).sum())
    block = int(equal[keep - 1]) // GRAIN
    return magnitude, len(equal), keep, (block, keep - int((equal < block * GRAIN).sum()))


def told(edge):
    return edge.magnitude, edge.equal, edge.keep, edge.last


def some(scores, number):
    """The most frequent magnitudes, falling."""
    found, counts = np.unique(magnitudes(scores), return_counts=True)
    return tuple(sorted(found[np.argsort(-counts, kind="stable")[:number]].tolist(), reverse=True))


@pytest.mark.parametrize("number", range(COMMON + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_in_the_range_are_found_whatever_is_common(kind, number):
    scores = numbers(kind, COUNT)
    (found,) = probed(scores, [Probe(0, NAN, some(scores, number))])
    ranks = [1, 2, COUNT // 3, COUNT // 2, COUNT - 1, COUNT]
    assert {rank: told(edge) for rank, edge in found.edges(ranks).items()} == {
        rank: expected(scores, rank) for rank in ranks
    }


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, COUNT - 1), st.integers(0, COUNT - 1), st.integers(0, COMMON))
def test_ranks_outside_of_the_range_are_not_told(kind, one, other, number):
    scores = numbers(kind, COUNT)
    keys = np.sort(magnitudes(scores))
    first, last = int(keys[min(one, other)]), int(keys[max(one, other)])
    common = tuple(magnitude for magnitude in some(scores, number) if first <= magnitude <= last)
    (found,) = probed(scores, [Probe(first, last, common)])
    inside = [rank for rank in (1, 2, COUNT // 2, COUNT) if first <= expected(scores, rank)[0] <= last]
    edges = found.edges([1, 2, COUNT // 2, COUNT])
    assert list(edges) == inside
    assert all(told(edge) == expected(scores, rank) for rank, edge in edges.items())


def test_one_pass_does_for_several_probes():
    scores = np.arange(COUNT, dtype=np.float32)
    keys = magnitudes(scores).tolist()
    low, high = probed(scores, [Probe(keys[10], keys[20]), Probe(keys[3000], keys[3002], (keys[3001],))])
    assert list(low.edges(range(COUNT - 22, COUNT - 7))) == list(range(COUNT - 20, COUNT - 9))
    assert list(high.edges(range(COUNT - 3005, COUNT - 2995))) == [COUNT - 3002, COUNT - 3001, COUNT - 3000]
    assert (low.above, high.above) == (COUNT - 21, COUNT - 3003)


def test_a_probe_of_the_scores_that_are_zero_counts_the_others():
    scores = numbers("sparse", COUNT)
    (found,) = probed(scores, [Probe(0, 0, (0,))])
    assert found.above == np.count_nonzero(scores)
    assert found.pieces == {}


def test_where_there_is_no_room_nothing_is_told():
    scores = np.arange(COUNT, dtype=np.float32)
    (found,) = probed(scores, [Probe(0, NAN)], room=COUNT - 1)
    assert found.edges([1, 2]) == {}
    assert sum(len(piece.keys) for piece in found.pieces.values()) < COUNT
    (fits,) = probed(scores, [Probe(0, NAN)], room=COUNT)
    assert list(fits.edges([1, 2])) == [1, 2]


@pytest.mark.parametrize("kind", ["normal", "few", "odd"])
def test_threads_and_stretches_change_nothing(kind):
    scores = numbers(kind, 40 * GRAIN + 5)
    probe = Probe(0, NAN, some(scores, 2))
    probing = Probing(len(scores), [probe], len(scores))
    with ThreadPoolExecutor(4) as pool:
        starts = range(0, len(scores), GRAIN)
        list(pool.map(lambda start: see(probing, scores, start, min(start + GRAIN, len(scores))), starts))
    (one,), (other,) = probing.results(), probed(scores, [probe], len(scores), 7 * GRAIN)
    ranks = range(1, len(scores), 999)
    assert {rank: told(edge) for rank, edge in one.edges(ranks).items()} == {
        rank: told(edge) for rank, edge in other.edges(ranks).items()
    }
