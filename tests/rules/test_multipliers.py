"""Multipliers measured a few at a time: each entry lives as if it were alone, and only when it is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.geometry import Box, Entropic, Euclidean, Interval, Orthant, Proximal, Sign
from pdopt.geometry.proximals import Quadratic
from pdopt.rules.multipliers import Entrywise, Measured
from pdopt.rules.saddle import row, saddle_step
from pdopt.rules.signals import PID, Averaged, Chain, Clipped, Extrapolated, Momentum, Offer
from pdopt.types import Memory, Pair

pytestmark = pytest.mark.usefixtures("quick_compiles")

NAN = np.nan
SIGNALS = {
    "theta": Extrapolated(2.0),
    "nuPI": PID(3.0, 1.0, 0.5, smoothing=0.4, start="first"),
    "chain": Chain((Clipped(0.8), Averaged(0.5), Momentum(0.3))),
    "offer": Offer(2.0, before=Averaged(0.5)),
}
# Rows are steps, columns entries; each entry is absent at steps of its own.
GIVEN = np.array([[0.5, NAN, -1.0], [NAN, 2.0, 0.3], [1.0, -0.4, NAN], [-0.2, NAN, 0.7], [0.9, 0.1, 0.2]], np.float32)


def follow(signal, given):
    """Signals and offers of every step for entries measured together."""
    each = Entrywise(signal)

    def body(memory, v):
        u, memory = each(v, memory)
        return memory, (u, each.offer(jnp.full(u.shape, 0.3), memory))

    def run(given):
        first = Memory(dual=each.init(jnp.zeros(given.shape[1:], given.dtype)))
        return jax.lax.scan(body, first, given)[1]

    return [np.asarray(part) for part in jax.jit(run)(given)]


@pytest.mark.parametrize("name", SIGNALS)
def test_an_entry_is_alone_and_skips_what_it_did_not_measure(name):
    u, shown = follow(SIGNALS[name], GIVEN)
    np.testing.assert_array_equal(np.isnan(u), np.isnan(GIVEN))
    for k in range(GIVEN.shape[1]):
        there = ~np.isnan(GIVEN[:, k])
        alone, own = follow(SIGNALS[name], GIVEN[there, k])
        np.testing.assert_allclose(u[there, k], alone, rtol=1e-6)
        np.testing.assert_allclose(shown[there, k], own, rtol=1e-6)
        absent = np.flatnonzero(~there)
        np.testing.assert_array_equal(shown[absent[absent > 0], k], shown[absent[absent > 0] - 1, k])


def test_settings_may_be_arrays_and_points_may_have_any_axes():
    gains = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    each = Entrywise(PID(gains, 1.0))
    u, _ = each(jnp.ones((2, 2)), Memory(dual=each.init(jnp.zeros((2, 2)))))
    np.testing.assert_allclose(u, 1 + gains)
    with pytest.raises(InvalidOption, match="signal is 3; expected a signal"):
        Entrywise(3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "move",
    [
        Euclidean(), Euclidean(Box(0.2, 5.0)), Entropic(Orthant()), Sign(), Interval(-1.0, 1.0),
        Proximal(Quadratic(1.0)),
    ],
    ids=lambda move: type(move).__name__,
)  # fmt: skip
def test_a_move_leaves_what_was_not_measured(move):
    """Interval and Proximal move even at a violation of 0, so that a 0 in its place would not do."""
    y, v = jnp.array([0.5, 0.5]), jnp.array([NAN, 0.4])
    moved = Measured(move)(y, v, 0.5)
    assert moved[0] == 0.5
    np.testing.assert_allclose(moved[1], move(y, jnp.array([0.0, 0.4]), 0.5)[1])


def test_the_step_is_the_step():
    """Through `saddle_step`: theta and the signal as ever, one entry without a measurement."""
    each = Entrywise(Extrapolated(1.0))
    parts = row(
        lambda x, y: x - y, lambda x: jnp.where(jnp.arange(2) == 0, NAN, x), Measured(Euclidean()), 0.0, each
    )  # fmt: skip
    pair, memory = Pair(jnp.ones(2), jnp.ones(2) / 2), Memory(dual=each.init(jnp.zeros(2)))
    pair, memory = saddle_step(parts, 0.1, pair, memory)
    np.testing.assert_allclose(pair.y, [0.5, 0.5 + 0.1 * 0.5])
    np.testing.assert_array_equal(memory.dual.started, [False, True])
