"""Constraints: costs, violations and reports by hand; the dual half against the rules it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.geometry import Box, Euclidean
from pdopt.rules.saddle import Parts, multiplier, respond
from pdopt.rules.signals import PID, Chain, Clipped, Extrapolated, Offer, Raw
from pdopt.training.constraints import Constraint, Constraints, Held, planned_step
from pdopt.types import Memory

NAN = np.nan
ALL = (
    Constraint("cost", "mean", 0.5),
    Constraint("toxic", "rate", 0.25, threshold=0.7),
    Constraint("score", "at_least", 0.9),
    Constraint("balance", "equality", 0.1),
    Constraint("kl", "kl", 0.05),
    Constraint("length", "length", 200.0),
    Constraint("refusal", "rate", (0.1, 0.5), classes=2),
)
ROWS = ("cost", "toxic", "score", "balance", "kl", "length", "refusal[0]", "refusal[1]")


def values():
    return {
        "cost": np.array([[1.0, 0.0], [NAN, 2.0]]),
        "toxic": np.array([[0.9, 0.7], [0.1, NAN]]),
        "score": np.array([[1.0, 0.5], [0.9, 0.8]]),
        "balance": np.zeros((2, 2)),
        "kl": np.full((2, 2), 0.1),
        "length": np.array([[100, 300], [500, 300]]),
        "refusal": np.array([[1.0, 0.0], [1.0, 1.0]]),
    }


def table(constraints, mask=None):
    return constraints.costs(values(), (2, 2), {"refusal": np.array([0, 1])}, mask)


def follow(constraints, violations, idle=None):
    """All multipliers, by one compiled scan."""
    idle = np.zeros_like(violations) if idle is None else np.asarray(idle, np.float32)

    def body(held, given):
        held = constraints.update(held, *given)
        return held, (held.y, constraints.shown(held))

    run = jax.jit(lambda start, v, idle: jax.lax.scan(body, start, (v, idle)))
    held, (ys, shown) = run(constraints.init(), jnp.asarray(violations, jnp.float32), idle)
    return np.asarray(ys), np.asarray(shown), held


def one(kind="mean", limit=0.0, **settings):
    own = {k: settings.pop(k) for k in ("y_max", "y_min", "start", "unit") if k in settings}
    return Constraints((Constraint("c", kind, limit, **own),), **settings)


def test_costs_and_violations_by_hand():
    held_by = Constraints(ALL)
    assert held_by.rows == ROWS
    costs = table(held_by)
    assert costs.shape == (8, 2, 2)
    np.testing.assert_array_equal(costs[1], [[1, 0], [0, NAN]])  # above the threshold, NaN stays
    np.testing.assert_array_equal(costs[2], -values()["score"].astype(np.float32))
    np.testing.assert_array_equal(costs[6], [[1, 0], [NAN, NAN]])
    np.testing.assert_array_equal(costs[7], [[NAN, NAN], [1, 1]])
    expected = [1 - 0.5, 1 / 3 - 0.25, 0.9 - 0.8, -0.1, 0.05, 100.0, 0.5 - 0.1, 1 - 0.5]
    np.testing.assert_allclose(held_by.violations(costs), expected, rtol=1e-5, atol=1e-7)
    mask = np.array([[True, False], [False, False]])
    masked = held_by.violations(table(held_by, mask))
    np.testing.assert_allclose(masked, [0.5, 0.75, -0.1, -0.1, 0.05, -100, 0.9, NAN], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(held_by.violations(costs, mask), masked)


def test_the_default_is_pi_with_the_units_of_the_limit():
    """First step: y = step (1 + theta) v / unit = (step + 5) v / unit, clipped to the range."""
    held_by = Constraints(ALL, step=0.5)
    v = jnp.array([0.5, 0.1, -0.1, -0.1, 0.05, 100.0, 0.4, 0.5])
    held = held_by.update(held_by.init(), v)
    expected = 5.5 * np.array([0.5, 0.1, 0, -0.1, 0.05, 100 / 200, 0.4, 0.5])
    np.testing.assert_allclose(held.y, expected, rtol=1e-6)
    # The second step of an unchanged violation has no proportional part.
    later = held_by.update(held, v)
    np.testing.assert_allclose(later.y, np.maximum(expected + 0.5 * np.array(v) / [1, 1, 1, 1, 1, 200, 1, 1],
                                                  [0, 0, 0, -100, 0, 0, 0, 0]), rtol=1e-6)  # fmt: skip
    assert int(later.steps) == 2
    assert (planned_step(100), planned_step(200), planned_step(4000)) == (1.0, 1.0, 0.05)


@pytest.mark.parametrize(
    "signal",
    [Raw(), Extrapolated(2.0), PID(0.5, 0.1, 0.2, smoothing=0.3), Chain((Clipped(0.5), Extrapolated(3.0)))],
    ids=lambda signal: type(signal).__name__,
)
def test_update_is_respond_with_the_plain_parts_bit_for_bit(signal):
    """Each row's own history is the history of a signal that saw only it."""
    given = (Constraint("a", "mean", 0.0, y_max=3.0), Constraint("b", "equality", 0.0))
    held_by = Constraints(given, step=0.3, signal=signal)
    violations = np.random.default_rng(0).normal(0.2, 1, (6, 2)).astype(np.float32)
    move = Euclidean(Box(jnp.array([0.0, -100.0], jnp.float32), jnp.array([3.0, 100.0], jnp.float32)))
    parts = Parts(lambda x, y, memory: (x, memory), lambda v, _: v, move, 0.0, signal, multiplier)
    held, y = held_by.init(), jnp.zeros(2, jnp.float32)
    memory = Memory(dual=signal.init(y))
    # Operation by operation: inside a compiled loop XLA may round a product and a sum once or twice.
    for v in violations:
        held = held_by.update(held, jnp.asarray(v))
        y, memory = respond(parts, y, jnp.asarray(v), 0.3, memory)
        np.testing.assert_array_equal(held.y, y)
        np.testing.assert_array_equal(held_by.shown(held), y)


def test_settings_may_differ_between_rows():
    given = (Constraint("a", "mean", 0.0), Constraint("b", "mean", 0.0))
    v = np.array([[1.0, 1.0], [2.0, 2.0]], np.float32)
    both, _, _ = follow(Constraints(given, step=np.array([1.0, 0.1]), signal=Extrapolated(np.array([0.0, 4.0]))), v)
    np.testing.assert_allclose(both, [[1, 0.1], [3, 0.1 + 0.1 * (2 + 4)]], rtol=1e-6)


def test_the_moves_by_hand():
    v = [[1.0], [-2.0], [9.0]]
    e = np.exp
    plain = {"step": 0.5, "signal": Raw()}
    np.testing.assert_allclose(follow(one(y_max=4.0, **plain), v)[0][:, 0], [0.5, 0.0, 4.0])
    np.testing.assert_allclose(follow(one("equality", y_max=4.0, **plain), v)[0][:, 0], [0.5, -0.5, 4.0])
    entropic = follow(one(y_max=4.0, y_min=0.7, move="entropic", **plain), v)[0][:, 0]
    np.testing.assert_allclose(entropic, [e(0.5), 0.7, 4.0], rtol=1e-6)
    logarithmic = follow(one(y_max=4.0, y_min=0.1, move="logarithmic", **plain), v[:2])[0][:, 0]
    np.testing.assert_allclose(logarithmic, [e(0.5), e(0.5) * e(-e(0.5))], rtol=1e-5)
    assert one(start=2.0).init().y.tolist() == [2.0]
    assert one(move="entropic").init().y.tolist() == [1.0]


def test_a_row_without_a_measurement_and_a_delay_keep_everything():
    held_by = one(step=1.0, signal=Extrapolated(1.0, start="zero"), delay=2)
    found, _, held = follow(held_by, [[1.0], [1.0], [1.0], [NAN], [3.0]])
    # Two steps of delay; the kick 1 + (1 - 0); nothing; then 3 + (3 - 1): the earlier violation is the last one seen.
    np.testing.assert_allclose(found[:, 0], [0, 0, 2, 2, 7])
    assert int(held.steps) == 5


def test_idle_groups_freeze_growth_and_nothing_else():
    v, idle = [[1.0], [1.0], [1.0], [-0.5]], [[0.95], [0.95], [0.9], [0.95]]
    held_by = one(step=1.0, signal=Extrapolated(5.0, start="zero"))
    # Frozen twice, then the whole kick 1 + 5 (1 - 0), then it may fall: -0.5 + 5 (-0.5 - 1).
    np.testing.assert_allclose(follow(held_by, v, idle)[0][:, 0], [0, 0, 6, 0])
    free = one("equality", step=1.0, signal=Raw())
    np.testing.assert_allclose(follow(free, [[-1.0], [-1.0], [0.5]], [[0.0], [1.0], [1.0]])[0][:, 0], [-1, -1, -0.5])
    positional = one(step=1.0, signal=Offer(5.0))
    y, shown, _ = follow(positional, v, idle)
    np.testing.assert_allclose(y[:, 0], [0, 0, 1, 0.5])  # the integral waits, and falls by itself
    np.testing.assert_allclose(shown[:, 0], [5, 5, 6, 0])  # what is shown does not


def test_positional_pi_and_the_velocity_form_agree_until_a_clip_binds():
    v = np.random.default_rng(1).normal(1.0, 0.3, (15, 1))
    positional = follow(one(step=0.5, signal=Offer(5.0)), v)[1]
    np.testing.assert_allclose(follow(one(step=0.5), v)[0], positional, rtol=1e-4)
    capped = follow(one(step=0.5, signal=Offer(5.0), y_max=3.0), v)[1]
    assert capped.max() == 3.0


def test_the_report_is_in_the_users_units():
    held_by = Constraints(ALL, step=1.0)
    costs = table(held_by)
    held = held_by.update(held_by.init()._replace(y=jnp.full(8, 99.9)), held_by.violations(costs))
    report = held_by.report(held, costs, effective=2 * held.y)
    assert tuple(report) == ROWS
    score, length = report["score"], report["length"]
    assert (float(score.value), float(score.limit)) == pytest.approx((0.8, 0.9))
    assert float(score.violation) == pytest.approx(0.1)
    assert (float(length.value), float(length.limit), float(length.violation)) == (300, 200, 100)
    assert (float(length.multiplier), bool(length.capped), float(length.effective)) == (100, True, 200)
    assert not report["balance"].capped
    assert float(report["cost"].idle) == 0.5  # one group is a lone value
    assert float(report["refusal[1]"].idle) == 1.0
    assert float(held_by.report(held, costs)["score"].effective) == float(score.multiplier)


def test_no_constraints_at_all():
    none = Constraints()
    costs = none.costs({}, (2, 3))
    assert costs.shape == (0, 2, 3)
    held = none.update(none.init(), none.violations(costs))
    assert held.y.shape == (0,)
    assert none.report(held, costs) == {}


def test_devices_average_before_the_move():
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(2, 8, 3)).astype(np.float32)
    costs[0, 3:6] = NAN  # devices without any: sums and counts are added up, not means
    held_by = Constraints((Constraint("a", "mean", -1.0), Constraint("b", "mean", -0.5)))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def step(costs, axes=()):
        return held_by.update(held_by.init(), held_by.violations(costs, axes=axes)).y

    split = jax.shard_map(
        lambda costs: step(costs, ("data",)), mesh=mesh, in_specs=PartitionSpec(None, "data"), out_specs=PartitionSpec()
    )
    np.testing.assert_allclose(jax.jit(split)(costs), jax.jit(step)(costs), rtol=1e-5)


def test_limits_steps_and_seeds_are_swept_by_vmap_and_nothing_recompiles():
    traces = []
    v = jnp.array([[0.3], [0.1]])

    @jax.jit
    def last(limit, step):
        traces.append(1)
        held_by = Constraints((Constraint("c", "mean", limit),), step=step)
        held = held_by.init()
        for e in v:
            held = held_by.update(held, e - limit)
        return held.y[0]

    limits, steps = jnp.array([0.0, 0.2]), jnp.array([1.0, 0.5])
    swept = jax.jit(jax.vmap(last))(limits, steps)
    by_hand = [0.3 + 0.1 + 5 * 0.1, max(0, 5.5 * 0.1 + 0.5 * (-0.1) + 5 * (-0.2))]
    np.testing.assert_allclose(swept, by_hand, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1
    slope = jax.jit(jax.grad(last))(jnp.array(0.05), 1.0)  # y = 2 (v - limit) + 5 (0.1 - limit) while nothing clips
    assert float(slope) == pytest.approx(-7.0, rel=1e-5)


def test_what_is_held_is_a_tree_of_arrays_and_its_dtypes_stay():
    for x64 in (False, True):
        with jax.enable_x64(x64):
            held_by = Constraints(ALL, signal=PID(1.0, 0.5))
            held = held_by.init()
            later = jax.eval_shape(held_by.update, held, jnp.zeros(8), jnp.zeros(8))
            same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
            assert isinstance(held, Held)
            assert jax.tree.all(jax.tree.map(same, held, later))
            assert {str(leaf.dtype) for leaf in jax.tree.leaves(held)} == {"float32", "bool", "int32"}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Constraint("", "mean", 0.0), InvalidOption, "name is ''"),
        (lambda: Constraint("a", "maen", 0.0), InvalidOption, "did you mean 'mean'"),
        (lambda: Constraint("a", "rate", 1.5), InvalidOption, "limit of a is 1.5"),
        (lambda: Constraint("a", "mean", NAN), InvalidOption, "limit of a is nan"),
        (lambda: Constraint("a", "mean", np.inf), InvalidOption, "limit of a is inf"),
        (lambda: Constraint("a", "kl", -1.0), InvalidOption, "limit of a is -1"),
        (lambda: Constraint("a", "mean", (0.1, 0.2)), InvalidOption, r"limit of a has shape \(2,\); expected a number"),
        (lambda: Constraint("a", "mean", (0.1, 0.2), classes=3), InvalidOption, "a number, or 3 of them"),
        (lambda: Constraint("a", "mean", 0.0, classes=-1), InvalidOption, "classes of a is -1"),
        (lambda: Constraint("a", "mean", 0.0, threshold=1.0), InvalidOption, "threshold of a is 1.0"),
        (lambda: Constraint("a", "mean", 0.0, y_max=0.0), InvalidOption, "y_max of a is 0.0"),
        (lambda: one(start=200.0), InvalidOption, "start of c is 200"),
        (lambda: one(move="entropic", start=0.0), InvalidOption, "start of c is 0"),
        (lambda: one("equality", move="entropic"), InvalidOption, "c is an equality"),
        (lambda: one(move="adam"), InvalidOption, "unknown move 'adam'"),
        (lambda: one(step=0.0), InvalidOption, "step is 0.0"),
        (lambda: one(delay=-1), InvalidOption, "delay is -1"),
        (lambda: one(idle=1.5), InvalidOption, "idle is 1.5"),
        (lambda: one(signal=3.0), InvalidOption, "signal is 3.0"),
        (lambda: Constraints((ALL[0], ALL[0])), InvalidOption, "expected names that differ"),
        (lambda: planned_step(0), InvalidOption, "steps is 0"),
        (lambda: one().costs({"other": np.ones((1, 2))}, (1, 2)), InvalidProblem, "no entry for constraint 'c'"),
        (lambda: one().costs({"c": np.ones(2)}, (1, 2)), InvalidProblem, r"values\['c'\] has shape"),
        (lambda: Constraints(ALL[6:]).costs(values(), (2, 2)), InvalidProblem, "classes has no entry"),
        (lambda: one().update(one().init(), np.zeros(2)), InvalidProblem, r"v has shape \(2,\)"),
    ],
)  # fmt: skip
def test_errors_name_what_was_seen(make, error, words):
    with pytest.raises(error, match=words):
        make()
