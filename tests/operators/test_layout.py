"""Split sliced ELL: the widths are optimal, padding is bounded, long rows are cut and added up again."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdopt.operators.layout import (
    OPERANDS,
    SLICE_PRICE,
    WIDEST,
    _parts,
    _rows,
    choose_widths,
    make_plan,
    multiply,
    place,
)


def cost(lengths, widths):
    """Padded entries plus the price of the slices: every row goes to the narrowest slice that holds it."""
    widths = sorted(widths)
    return sum(next(w for w in widths if w >= k) for k in lengths) + SLICE_PRICE * len(widths)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(1, 16), st.integers(1, 400), min_size=1, max_size=7))
def test_widths_are_optimal(histogram):
    lengths = np.repeat(list(histogram), list(histogram.values()))
    chosen = choose_widths(lengths)
    assert chosen == sorted(chosen)
    assert chosen[-1] == lengths.max()
    others = [w for w in histogram if w != max(histogram)]
    subsets = (extra for size in range(len(others) + 1) for extra in itertools.combinations(others, size))
    best = min(cost(lengths, [max(histogram), *extra]) for extra in subsets)
    assert cost(lengths, chosen) == best


def test_no_rows_need_no_widths_and_many_lengths_need_few():
    assert choose_widths(np.zeros(0, int)) == []
    many = np.repeat(np.arange(1, 30), 100_000)  # so many rows a length that each length would like its own slice
    assert len(choose_widths(many)) == OPERANDS


def compressed(lengths, n, seed=0):
    rng = np.random.default_rng(seed)
    start = np.concatenate(([0], np.cumsum(lengths)))
    index = np.concatenate([rng.choice(n, k, replace=False) for k in lengths] or [np.zeros(0, int)])
    return start, index.astype(int), rng.normal(size=index.size)


LENGTHS = {
    "exactly the widest": [16, 16],
    "one more than the widest": [17],
    "two stages": [255, 256, 257],
    "three stages": [16 * 16 * 16 + 1, 4096, 1],
    "mixed": [0, 1, 5000, 16, 0, 300, 17, 2],
    "nothing": [],
    "only empty": [0, 0],
}


def depth(plan):
    """Stages of adding: 0 where no row is long."""
    return 1 + depth_of_fold(plan.long[1]) if plan.long else 0


def depth_of_fold(layout):
    return 1 + depth_of_fold(layout.long[1]) if layout.long else 0


@pytest.mark.parametrize("name", LENGTHS)
def test_plan_multiplies_and_emits_every_row_once(name):
    lengths = LENGTHS[name]
    start, index, values = compressed(lengths, 6000)
    x = np.random.default_rng(1).normal(size=6000)
    plan, order = make_plan(start, index, np.arange(index.size), index.size)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(lengths)))
    with jax.enable_x64(True):
        layout = place(plan, jnp.asarray(values))
        product = np.asarray(jax.jit(multiply)(layout, jnp.asarray(x)))
    expected = np.array([values[a:b] @ x[index[a:b]] for a, b in itertools.pairwise(start)])
    size = np.array([abs(values[a:b]) @ abs(x[index[a:b]]) for a, b in itertools.pairwise(start)])
    assert np.all(abs(product - expected[order]) <= 40 * np.finfo(float).eps * size[order] + 1e-300)


def test_the_number_of_stages_follows_the_longest_row():
    for longest, stages in ((16, 0), (17, 1), (256, 1), (257, 2), (4096, 2), (4097, 3)):
        start, index, _ = compressed([longest, 3], 6000)
        assert depth(make_plan(start, index, np.arange(index.size), index.size).plan) == stages, longest


def stored(plan):
    return sum(p.size for p in plan.position) + (stored(plan.long[0]) if plan.long else 0)


@pytest.mark.parametrize("seed", range(3))
def test_padding_is_bounded(seed):
    lengths = np.minimum(np.random.default_rng(seed).zipf(1.6, size=3000), 900)
    start, index, _ = compressed(lengths, 1000, seed)
    plan = make_plan(start, index, np.arange(index.size), index.size).plan
    # One slice a distinct length would cost no padding and at most 16 prices; the optimum of short rows and of pieces
    # (all of 1 to 16 entries) cannot cost more than that.
    assert stored(plan) <= index.size + 2 * WIDEST * SLICE_PRICE
    widths = [p.shape[0] for p in plan.position] + [p.shape[0] for p in (plan.long[0].position if plan.long else ())]
    assert max(widths) <= WIDEST


@pytest.mark.parametrize("seed", range(3))
def test_a_product_is_put_together_in_the_kernel_that_makes_its_parts(seed):
    """Of more parts XLA's CPU compiler makes each by a kernel of its own, and hands them to several threads."""
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([np.zeros(5, int), rng.integers(1, 17, 4000), rng.integers(17, 257, 300)])
    start, index, values = compressed(lengths, 500, seed)
    plan = make_plan(start, index, np.arange(index.size), index.size).plan
    with jax.enable_x64(True):
        layout = place(plan, jnp.asarray(values))
        unsplit = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
        program = jax.jit(_rows, compiler_options=unsplit).lower(layout, jnp.ones(500))
    assert _parts(layout) <= OPERANDS
    if jax.default_backend() == "cpu":  # the pieces of long rows are one more kernel
        main = (program.compile().as_text() or "").split("ENTRY")[1]
        assert main.count(" fusion(") == 2
        assert " concatenate(" not in main


def test_pieces_of_a_long_row_are_nearly_equal():
    start, index, _ = compressed([50], 60)
    pieces = make_plan(start, index, np.arange(50), 50).plan.long[0]
    sizes = [int(k) for p in pieces.position for k in (p != 50).sum(0)]
    assert sorted(sizes) == [12, 12, 13, 13]


def test_every_entry_is_placed_exactly_once():
    start, index, _ = compressed(LENGTHS["mixed"], 6000)

    def places(plan):
        own = [p[p != plan.padding] for p in plan.position]
        return own + (places(plan.long[0]) if plan.long else [])

    plan = make_plan(start, index, np.arange(index.size), index.size).plan
    np.testing.assert_array_equal(np.sort(np.concatenate(places(plan))), np.arange(index.size))
