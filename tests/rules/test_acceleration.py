"""Each acceleration against a few lines of NumPy, and the refusal of too much relaxation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidOption
from pdopt.rules.acceleration import Averaged, Halpern, Plain, Relaxed, check_averaged
from pdopt.types import Memory, Pair

ROTATION = 0.95 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
SHIFT = np.array([0.3, -0.1])
START = Pair(np.array([1.0, -2.0]), np.array([0.5]))
COUNT = 12


def T(z):
    x, y = z[:2], z[2:]
    return np.concatenate([ROTATION @ x + SHIFT, 0.5 * y + 0.1])


def flat(pair):
    return np.concatenate([np.asarray(pair.x), np.asarray(pair.y)])


def run(acceleration, weights=None, count=COUNT):
    def step(pair, memory):
        new = T(flat(pair)) if not isinstance(pair.x, jax.Array) else None
        if new is None:
            x = jnp.asarray(ROTATION, pair.x.dtype) @ pair.x + jnp.asarray(SHIFT, pair.x.dtype)
            return Pair(x, 0.5 * pair.y + 0.1), memory._replace(dual=memory.dual + 1)
        return Pair(new[:2], new[2:]), memory

    track, memory = acceleration.init(jax.tree.map(jnp.asarray, START)), Memory(dual=0)
    for k in range(count):
        track, memory, visit = acceleration.apply(step, track, memory, 1.0 if weights is None else weights[k])
    assert memory.dual == count  # T is called exactly once a step
    return track, visit


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def check(acceleration, points, best, weights=None):
    track, visit = run(acceleration, weights)
    np.testing.assert_allclose(flat(track.point), points[-1], rtol=1e-12)
    np.testing.assert_allclose(flat(visit.before), points[-2], rtol=1e-12)
    np.testing.assert_allclose(flat(visit.after), T(points[-2]), rtol=1e-12)
    np.testing.assert_allclose(flat(acceleration.best(track, visit)), best, rtol=1e-12)


def test_plain():
    points = [flat(START)]
    for _ in range(COUNT):
        points.append(T(points[-1]))
    check(Plain(), points, points[-1])


@pytest.mark.parametrize("omega", [0.5, 1.0, 1.5])
def test_relaxed(omega):
    points = [flat(START)]
    for _ in range(COUNT):
        points.append((1 - omega) * points[-1] + omega * T(points[-1]))
    check(Relaxed(omega), points, T(points[-2]))


@pytest.mark.parametrize("even", [True, False])
def test_averaged_is_the_weighted_mean_of_the_images(even):
    weights = np.ones(COUNT) if even else np.random.default_rng(0).uniform(0.1, 2, COUNT)
    points = [flat(START)]
    for _ in range(COUNT):
        points.append(T(points[-1]))
    check(Averaged(), points, np.average(points[1:], axis=0, weights=weights), weights)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.85, 1.0])
def test_halpern(rho):
    points, anchor = [flat(START)], flat(START)
    for k in range(COUNT):
        w = (k + 1) / (k + 2)
        points.append(w * ((1 + rho) * T(points[-1]) - rho * points[-1]) + (1 - w) * anchor)
    check(Halpern(rho), points, T(points[-2]))


def test_halpern_solves_a_rotation_that_the_plain_map_circles():
    """A firmly nonexpansive map `(I + R)/2`, R a rotation: reflection 1 drives |z - Tz| to 0 at the rate 1/k."""
    R = np.array([[np.cos(2.0), -np.sin(2.0)], [np.sin(2.0), np.cos(2.0)]])
    half = jnp.asarray((np.eye(2) + R) / 2)
    step = lambda pair, memory: (Pair(half @ pair.x, pair.y), memory)
    track = Halpern(1.0).init(Pair(jnp.array([1.0, 0.0]), jnp.zeros(1)))
    for k in range(200):
        track, _, visit = Halpern(1.0).apply(step, track, Memory())
        # |z - Tz| <= |z0 - z*| / (k + 1) for the Halpern iteration of R (Lieder 2021); T z moves half as far as R z.
        assert float(jnp.linalg.norm(visit.after.x - visit.before.x)) <= 1.0 / (k + 1) + 1e-12


@pytest.mark.parametrize("acceleration", [Plain(), Relaxed(), Averaged(), Halpern()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_track_keeps_structure_and_dtype(acceleration, dtype):
    start = Pair(jnp.ones(2, dtype), {"a": jnp.zeros(3, dtype)})
    track = acceleration.init(start)
    step = lambda pair, memory: (jax.tree.map(lambda leaf: 0.5 * leaf, pair), memory)
    after, _, _ = jax.jit(lambda track: acceleration.apply(step, track, Memory(), jnp.ones((), dtype)))(track)
    assert jax.tree.structure(after) == jax.tree.structure(track)
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [np.dtype(dtype)] * len(jax.tree.leaves(track))
    for leaf, first in zip(jax.tree.leaves(track.anchor), jax.tree.leaves(start)):
        np.testing.assert_array_equal(leaf, first)


@pytest.mark.parametrize(
    ("acceleration", "averaged", "refused"),
    [
        (Halpern(1.0), 0.5, False),
        (Halpern(1.1), 0.5, True),
        (Halpern(0.5), 2 / 3, False),
        (Halpern(0.51), 2 / 3, True),
        (Relaxed(2.0), 0.5, False),
        (Relaxed(2.1), 0.5, True),
        (Plain(), 1.0, False),
        (Averaged(), 1.0, False),
        (Halpern(0.1), 1.0, True),
        (Halpern(np.nan), 0.5, True),
        (Relaxed(-0.1), 0.5, True),
    ],
)
def test_more_relaxation_than_the_map_allows_is_refused(acceleration, averaged, refused):
    if refused:
        with pytest.raises(InvalidOption, match=type(acceleration).__name__):
            check_averaged(acceleration, averaged, "a map")
    else:
        check_averaged(acceleration, averaged, "a map")


def test_a_traced_reflection_is_not_looked_at():
    jax.jit(lambda rho: (check_averaged(Halpern(rho), 0.5, "a map"), rho)[1])(3.0)


def test_too_much_reflection_does_diverge():
    """What the refusal protects from: reflection 1 around a map that is only nonexpansive (a rotation)."""
    R = jnp.asarray([[0.0, -1.0], [1.0, 0.0]])
    step = lambda pair, memory: (Pair(R @ pair.x, pair.y), memory)
    track = Halpern(1.0).init(Pair(jnp.array([1.0, 0.0]), jnp.zeros(1)))
    for _ in range(100):
        track, _, _ = Halpern(1.0).apply(step, track, Memory())
    assert float(jnp.linalg.norm(track.point.x)) > 1e6
