"""`constrain` in training loops: three lines, every transform of JAX, devices, checkpoints, refusals and NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pdopt
from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.rules.signals import Offer
from pdopt.runtime.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compiles")

NAN = np.nan
SGD = optax.sgd(0.1)
# min |x|^2 subject to x_0 >= 1: x = (1, 0), multiplier 2.
floor = lambda x: (x @ x, {"floor": 1 - x[0]})


@jax.jit
def solve(optimiser, x):
    step = lambda carry, _: (optimiser.step(floor, *carry)[:2], None)
    return jax.lax.scan(step, (x, optimiser.init(x)), length=200)[0]


def by_hand(optimiser, x, state):
    """One step in the three lines of the README."""
    lagrangian = lambda x, state: optimiser.lagrangian(state, *floor(x))
    (_, seen), slope = jax.value_and_grad(lagrangian, has_aux=True)(x, state)
    updates, state = optimiser.update(slope, state, x, seen=seen)
    return optax.apply_updates(x, updates), state, seen


@pytest.mark.parametrize("order", ["simultaneous", "dual_first"])
def test_three_lines_are_the_step(order):
    optimiser = pdopt.constrain(optax.adam(0.1), {"floor": pdopt.Multiplier(0.5, penalty=1.0)}, order=order)
    one = other = (jnp.zeros(2), optimiser.init(jnp.zeros(2)))
    hand, whole = jax.jit(lambda *c: by_hand(optimiser, *c)), jax.jit(lambda *c: optimiser.step(floor, *c))
    for _ in range(3):
        *one, seen = hand(*one)
        *other, same = whole(*other)
    jax.tree.map(np.testing.assert_array_equal, (one, seen), (other, same))
    assert one[1].multipliers["floor"] > 0
    np.testing.assert_allclose(seen.loss, other[0] @ other[0], atol=0.2)


def test_a_sweep_is_a_vmap():
    """Settings are traced: one program, as many runs as steps, each as alone."""
    steps = np.array([0.1, 0.5, 1.0], np.float32)
    # Made inside the traced function, as a training script would.
    made = lambda step: {"floor": pdopt.Multiplier(step, signal=pdopt.PID(0.5, 1.0, smoothing=0.5))}
    sweep = lambda step: solve(pdopt.constrain(SGD, made(step)), jnp.zeros(2))
    x, state = jax.jit(jax.vmap(sweep))(steps)
    np.testing.assert_allclose(x, [[1, 0]] * 3, atol=0.02)
    np.testing.assert_allclose(state.multipliers["floor"], [2] * 3, atol=0.02)
    alone, _ = sweep(steps[1])
    np.testing.assert_allclose(x[1], alone, atol=1e-6)


def test_bfloat16_weights_keep_float32_multipliers():
    x, state = solve(pdopt.constrain(SGD, {"floor": pdopt.Multiplier(0.5)}), jnp.zeros(2, jnp.bfloat16))
    assert (x.dtype, state.multipliers["floor"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(x.astype(np.float32), [1, 0], atol=0.02)
    with jax.enable_x64(True):
        wide = pdopt.constrain(SGD, {"floor": pdopt.Multiplier(0.5)}).init(jnp.zeros(2, jnp.float64))
        assert wide.multipliers["floor"].dtype == jnp.float64
        narrow = pdopt.constrain(SGD, {"floor": pdopt.Multiplier(0.5)}).init(jnp.zeros(2, jnp.float32))
        assert narrow.multipliers["floor"].dtype == jnp.float32


def test_nnx_optimizer():
    """A flax model and its own optimiser: the same numbers as plain pytrees."""
    optimiser = pdopt.constrain(optax.adam(0.05), {"size": pdopt.Multiplier(0.5, signal=pdopt.PID(1.0, 1.0))})
    inputs, targets = jnp.ones((4, 2)), jnp.full((4, 1), 3.0)

    def loss_fn(model, state):
        out = model(inputs)
        return optimiser.lagrangian(state, jnp.mean((out - targets) ** 2), {"size": jnp.mean(out) - 1})

    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    graph, params = nnx.split(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
    held = nnx.Optimizer(model, optimiser, wrt=nnx.Param)

    @nnx.jit
    def train(model, held):
        (_, seen), slopes = nnx.value_and_grad(lambda m: loss_fn(m, held.opt_state), has_aux=True)(model)
        held.update(model, slopes, seen=seen)

    @jax.jit
    def plain(params, state):
        (_, seen), slopes = jax.value_and_grad(lambda p: loss_fn(nnx.merge(graph, p), state), has_aux=True)(params)
        updates, state = optimiser.update(slopes, state, params, seen=seen)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for _ in range(30):
        train(model, held)
        params, state = plain(params, state)
    np.testing.assert_allclose(model.kernel[...], params["kernel"][...], rtol=1e-5)
    np.testing.assert_allclose(held.opt_state.multipliers["size"][...], state.multipliers["size"], rtol=1e-5)
    assert state.multipliers["size"] > 0.5


def test_nothing_moves_for_what_is_absent_or_broken():
    """Entries outside the batch, names left out, NaN: multiplier, penalty and history stay, and NaN is counted."""
    held = {
        "each": pdopt.Multiplier(0.5, signal=pdopt.PID(2.0, 1.0), shape=(3,)),
        "other": pdopt.Multiplier(penalty=1.0, growth=pdopt.Growth(2.0)),
    }
    optimiser = pdopt.constrain(SGD, held)

    @jax.jit
    def train(x, state, v, index, rate):
        loss_fn = lambda x: (x @ x, {"each": pdopt.Violation(v + 0 * x[0], index=index), "other": rate + 0 * x[0]})
        return optimiser.step(loss_fn, x, state)[:2]

    x, state = jnp.ones(2), optimiser.init(jnp.ones(2))
    x, state = train(x, state, np.array([1.0, 1.0], np.float32), np.array([0, 2]), np.float32(1.0))
    np.testing.assert_allclose(state.multipliers["each"], [1.5, 0, 1.5])
    np.testing.assert_allclose([state.multipliers["other"], state.penalties["other"]], [1, 2])
    later = train(x, state, np.array([1.0, NAN], np.float32), np.array([0, 2]), np.float32(NAN))[1]
    np.testing.assert_allclose(later.multipliers["each"], [2.0, 0, 1.5])
    np.testing.assert_array_equal(later.history["each"].started, [True, True, True])
    np.testing.assert_array_equal(later.history["each"].one, [1, 0, 1])
    np.testing.assert_allclose([later.multipliers["other"], later.penalties["other"]], [1, 2])
    assert {name: int(count) for name, count in later.missed.items()} == {"each": 1, "other": 1}
    assert np.isfinite(train(x, later, np.ones(2, np.float32), np.array([0, 0]), np.float32(0))[0]).all()
    nothing = jax.jit(lambda x, state: optimiser.step(lambda x: (x @ x, {}), x, state)[1])(x, later)
    jax.tree.map(np.testing.assert_array_equal, nothing._replace(optimiser=()), later._replace(optimiser=()))


def test_a_step_may_be_replaced_between_steps():
    optimiser = pdopt.constrain(SGD, {"floor": pdopt.Multiplier(0.5)})
    state = optimiser.init(jnp.zeros(2))
    state = state._replace(steps={"floor": jnp.float32(0.25)})
    assert optimiser.step(floor, jnp.zeros(2), state)[1].multipliers["floor"] == 0.25


def test_an_offer_is_made_once_in_every_order():
    """With kp = 1 and one violation of 1 at y = 0, x is shown the proportional part of what has been seen."""
    for order, shown in (("simultaneous", 0.0), ("primal_first", 0.0), ("dual_first", 1.5), ("extragradient", 1.5)):
        optimiser = pdopt.constrain(SGD, {"c": pdopt.Multiplier(0.5, signal=Offer(1.0))}, order=order)
        loss_fn = lambda x: (0.0 * x, {"c": 1 + x - jax.lax.stop_gradient(x)})
        x, _, _ = optimiser.step(loss_fn, jnp.float32(0), optimiser.init(jnp.float32(0)))
        np.testing.assert_allclose(x, -0.1 * shown, rtol=1e-6, err_msg=order)


def test_optax_wrappers_take_the_transformation():
    optimiser = pdopt.constrain(SGD, {"floor": pdopt.Multiplier(0.5)})
    chained = optax.chain(optax.clip_by_global_norm(1e6), optimiser.transformation)
    state = chained.init(jnp.zeros(2))
    lagrangian = lambda x: optimiser.lagrangian(state[1], *floor(x))
    (_, seen), slope = jax.value_and_grad(lagrangian, has_aux=True)(jnp.zeros(2))
    updates, state = chained.update(slope, state, jnp.zeros(2), seen=seen)
    np.testing.assert_allclose(updates, [0.05, 0])
    assert state[1].multipliers["floor"] == 0.5


def test_the_state_goes_through_a_checkpoint(tmp_path):
    held = {"floor": pdopt.Multiplier(0.5, penalty=1.0, signal=pdopt.PID(1.0, 1.0), growth=pdopt.Growth())}
    optimiser = pdopt.constrain(optax.adam(0.1), held)
    _, state = solve(optimiser, jnp.zeros(2))
    with Checkpoints(tmp_path, identity={"run": "constrain"}) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        again = checkpoints.restore(optimiser.init(jnp.zeros(2))).state
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.fixture
def mesh():
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def test_eight_devices(mesh):
    """Under jit a sharded batch needs nothing; inside shard_map `axes` makes the same numbers of local ones."""
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((16, 3)).astype(np.float32)
    index = np.tile(np.array([0, 1], np.int32), 8)  # every device has rows of both entries
    held = {
        "mean": pdopt.Multiplier(0.5, penalty=2.0),
        "each": pdopt.Multiplier(0.3, shape=(3,)),
        "some": pdopt.Multiplier(0.3),
    }

    def loss_fn(x, batch, index):
        out = batch @ x
        some = jnp.where(batch[0, 0] > 0, out[0], jnp.nan) if batch.shape[0] == 2 else jnp.nan
        each = pdopt.Violation(out - 0.1, index=index)
        return jnp.mean((out - 1) ** 2), {"mean": jnp.mean(out) + 0.5, "each": each, "some": some}

    def step(optimiser, x, state, batch, index):
        lagrangian = lambda x: optimiser.lagrangian(state, *loss_fn(x, batch, index))
        (value, seen), slope = jax.value_and_grad(lagrangian, has_aux=True)(x)
        if optimiser.axes:
            value, slope = jax.lax.pmean((value, slope), optimiser.axes)
        updates, state = optimiser.update(slope, state, x, seen=seen)
        return optax.apply_updates(x, updates), state, value

    x = jnp.array([0.3, -0.2, 0.1])
    alone = pdopt.constrain(SGD, held)
    apart = pdopt.constrain(SGD, held, axes="data")
    expected = jax.jit(lambda *a: step(alone, *a))(x, alone.init(x), batch, index)
    spread = jax.device_put((batch, index), NamedSharding(mesh, P("data")))
    sharded = jax.jit(lambda *a: step(alone, *a))(x, alone.init(x), *spread)
    local = jax.shard_map(
        lambda *a: step(apart, *a), mesh=mesh, in_specs=(P(), P(), P("data"), P("data")), out_specs=P(),
        check_vma=False,
    )  # fmt: skip
    found = jax.jit(local)(x, apart.init(x), *spread)
    for other in (sharded, found):
        for name in ("mean", "each"):
            np.testing.assert_allclose(other[1].multipliers[name], expected[1].multipliers[name], rtol=1e-5)
    np.testing.assert_allclose(sharded[0], expected[0], rtol=1e-5)
    assert expected[1].multipliers["each"][2] == 0
    # Only devices that measured count: the mean of their values, and the others as missed.
    own = (batch @ np.asarray(x))[::2][batch[::2, 0] > 0]
    np.testing.assert_allclose(found[1].multipliers["some"], max(0, 0.3 * own.mean()), rtol=1e-4, atol=1e-7)
    assert found[1].missed["some"] == 8 - len(own)
    # Without the third constraint, which one device alone cannot see, the gradients agree as well.
    both = {name: held[name] for name in ("mean", "each")}
    alone, apart = pdopt.constrain(SGD, both), pdopt.constrain(SGD, both, axes="data")
    whole = loss_fn
    loss_fn = lambda *a: (whole(*a)[0], {name: whole(*a)[1][name] for name in both})
    expected = jax.jit(lambda *a: step(alone, *a))(x, alone.init(x), batch, index)
    found = jax.jit(local)(x, apart.init(x), *spread)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-5)


def once(**settings):
    return pdopt.constrain(SGD, {"floor": pdopt.Multiplier(0.5)}, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pdopt.constrain(0.1, {}), "optimiser is 0.1; expected an optax"),
        (lambda: pdopt.constrain(SGD, [pdopt.Multiplier(0.1)]), "expected a dict of Multiplier by name"),
        (lambda: pdopt.constrain(SGD, {"a": 0.1}), "expected a name and a Multiplier"),
        (lambda: once(order="dual-first"), "unknown order 'dual-first'; did you mean 'dual_first'"),
        (lambda: once(order="primal_first", theta=-2.0), "theta is -2.0"),
        (lambda: once(theta=1.0), "expected order 'primal_first'"),
        (lambda: once().update(0.0, once().init(0.0)), "seen is missing"),
        (lambda: once(order="extragradient").update(0.0, None, seen=1), "expected 'simultaneous' or 'dual_first'"),
        (lambda: once().lagrangian(once().init(0.0), 0.0, {"flor": 0.0}), "did you mean 'floor'"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(InvalidOption, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "violations", "message"),
    [
        (jnp.zeros(2), {}, r"loss has shape \(2,\)"),
        (0.0, [0.0], "violations is a list; expected a dict"),
        (0.0, {"floor": jnp.zeros(2)}, r"smooth violation of 'floor' has shape \(2,\)"),
    ],
)
def test_what_a_loss_returns_is_checked_while_tracing(loss, violations, message):
    optimiser = once()
    with pytest.raises(InvalidProblem, match=message):
        jax.eval_shape(lambda state: optimiser.lagrangian(state, loss, violations), optimiser.init(0.0))


def test_one_program_serves_every_step():
    optimiser, traces = once(), []

    def loss_fn(x):
        traces.append(1)
        return floor(x)

    step = jax.jit(lambda *carry: optimiser.step(loss_fn, *carry)[:2])
    carry = (jnp.zeros(2), optimiser.init(jnp.zeros(2)))
    for _ in range(3):
        carry = step(*carry)
    assert len(traces) == 1
