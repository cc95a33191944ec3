"""The layer: what the optimiser sees, accumulation, devices, checkpoints, precision, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.methods.balancing import Balancer
from pdopt.models.experts import Experts, ExpertsConfig, RouterBias, RouterState, add_tallies
from pdopt.models.routers import ROUTERS
from pdopt.problems.balancing import max_violation
from pdopt.runtime.checkpoints import Checkpoints

WIDTH = 8
SMALL = {"width": WIDTH, "hidden": 8, "experts": 4, "top": 2}


def layer(**settings):
    return Experts(ExpertsConfig(**(SMALL | settings)), rngs=nnx.Rngs(0))


def tokens(count=64, seed=1):
    return jax.random.normal(jax.random.key(seed), (count, WIDTH)) + 0.5


def square(model, x):
    out, report = model(x)
    return jnp.mean(out**2) + 1e-2 * report.loss, report


@pytest.mark.parametrize("factor", [None, pytest.param(1.25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_trains(router, factor):
    model, x = layer(router=router, capacity_factor=factor), tokens()
    (loss, report), grads = nnx.value_and_grad(square, has_aux=True)(model, x.reshape(4, 16, WIDTH))
    assert np.isfinite(loss)
    leaves = jax.tree.leaves(grads)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert len(leaves) == 4  # router, gate, up, down; no bias
    assert max(float(jnp.abs(grads.router[...]).max()), 0) > 0
    assert (float(report.loss) > 0) == (router == "aux_loss")
    assert 0 <= int(report.dropped) <= 2 * 64
    if factor is None and router not in ("expert_choice", "ksparse_ot"):
        assert int(report.dropped) == 0


def test_no_gradient_flows_into_the_bias_and_no_optimiser_sees_it():
    model = layer()
    model.bias[...] = jnp.array([0.3, -0.1, -0.1, -0.1])
    graph, bias, rest = nnx.split(model, RouterBias, ...)
    slope = jax.grad(lambda bias: square(nnx.merge(graph, bias, rest), tokens())[0])(bias)
    np.testing.assert_array_equal(jax.tree.leaves(slope)[0], np.zeros(4))
    before = np.asarray(model.bias[...])
    optimiser = nnx.Optimizer(model, optax.adamw(0.1, weight_decay=0.5), wrt=nnx.Param)
    optimiser.update(model, nnx.grad(square, has_aux=True)(model, tokens())[0])
    np.testing.assert_array_equal(model.bias[...], before)
    assert not isinstance(model.bias, nnx.Param)
    assert len(jax.tree.leaves(nnx.state(model, RouterState))) == 3


@pytest.mark.slow
def test_training_with_the_bias_balances_and_the_forward_pass_changes_nothing():
    model, x = layer(), tokens(256)
    frozen = jax.tree.map(np.asarray, nnx.state(model))
    first = float(max_violation(model(x)[1].tally.loads))
    jax.tree.map(np.testing.assert_array_equal, frozen, nnx.state(model))
    forward = nnx.jit(lambda model, x: model(x)[1].tally)
    for _ in range(30):
        model.rebalance(forward(model, x))
    assert float(max_violation(forward(model, x).loads)) < min(0.05, first / 3)
    assert int(model.moves[...]) == 30
    other = layer(router="aux_loss")
    other.rebalance(other(x)[1].tally)
    np.testing.assert_array_equal(other.bias[...], np.zeros(4))


def test_the_output_depends_on_the_bias_only_through_the_selection():
    model, x = layer(top=4), tokens()  # all experts are selected, whatever the bias
    plain = model(x)[0]
    model.bias[...] = jnp.array([0.4, -0.2, 0.0, -0.2])
    np.testing.assert_allclose(model(x)[0], plain, atol=1e-6)  # the sum over experts runs in another order


def test_accumulated_microbatches_equal_one_batch():
    whole, parts, x = layer(), layer(), tokens()
    pieces = [parts(piece)[1].tally for piece in x.reshape(4, 16, WIDTH)]
    together = whole(x)[1].tally
    jax.tree.map(np.testing.assert_array_equal, add_tallies(*pieces), together)
    whole.rebalance(together)
    parts.rebalance(add_tallies(*pieces))
    np.testing.assert_array_equal(whole.bias[...], parts.bias[...])
    mean = lambda grads: jax.tree.map(lambda *g: sum(g) / len(g), *grads)
    of = lambda piece: nnx.grad(lambda model: square(model, piece)[0])(layer())
    for a, b in zip(jax.tree.leaves(mean([of(p) for p in x.reshape(4, 16, WIDTH)])), jax.tree.leaves(of(x))):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.fixture
def mesh():
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("manual", [True, False])
def test_eight_devices_give_the_bits_of_one(mesh, manual):
    graph, _ = nnx.split(layer())

    def tally(state, x, axes=()):
        return nnx.merge(graph, state)(x, axes=axes)[1].tally

    if manual:
        many = jax.shard_map(partial(tally, axes=("data",)), mesh=mesh, in_specs=(P(), P("data")), out_specs=P(),
                             check_vma=False)  # fmt: skip
    else:
        many = tally
    place = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))
    one, eight = nnx.clone(layer()), nnx.clone(layer())
    single, split = jax.jit(tally), jax.jit(many)
    for seed in range(5):
        x = tokens(128, seed)
        a, b = single(nnx.state(one), x), split(nnx.state(eight), place(x))
        jax.tree.map(np.testing.assert_array_equal, a, b)
        one.rebalance(a)
        eight.rebalance(jax.tree.map(np.asarray, b))
    assert np.asarray(one.bias[...]).any()
    np.testing.assert_array_equal(
        np.asarray(one.bias[...]).view(np.uint32), np.asarray(eight.bias[...]).view(np.uint32)
    )


def test_loads_that_are_not_summed_differ(mesh):
    """The check can fail: without `axes` each device reports its own tokens."""
    graph, state = nnx.split(layer())
    own = jax.shard_map(lambda s, x: nnx.merge(graph, s)(x)[1].tally.loads[None], mesh=mesh, in_specs=(P(), P("data")),
                        out_specs=P("data"), check_vma=False)  # fmt: skip
    loads = np.asarray(jax.jit(own)(state, tokens(128)))
    assert len({tuple(row) for row in loads}) > 1
    np.testing.assert_array_equal(loads.sum(0), layer()(tokens(128))[1].tally.loads)


def test_a_checkpoint_brings_the_bias_back(tmp_path):
    model, x = layer(), tokens()
    for _ in range(3):
        model.rebalance(model(x)[1].tally)
    state = nnx.to_pure_dict(nnx.state(model))
    with Checkpoints(tmp_path, identity={"layer": "test"}) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.wait()
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
        found = checkpoints.restore(like)
    fresh = layer()
    target = nnx.state(fresh)
    nnx.replace_by_pure_dict(target, found.state)
    nnx.update(fresh, target)
    for model_ in (model, fresh):
        model_.rebalance(model_(x)[1].tally)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(fresh), nnx.state(model))
    assert int(fresh.moves[...]) == 4


def test_bfloat16_experts_keep_a_float32_router():
    model = layer(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    out, report = model(tokens().astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert model.up[...].dtype == jnp.bfloat16
    assert model.router[...].dtype == model.bias[...].dtype == jnp.float32
    model.rebalance(report.tally)
    assert model.bias[...].dtype == jnp.float32
    full = layer()(tokens().astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(report.tally.loads, full[1].tally.loads)


def test_jit_equals_no_jit():
    model, x = layer(), tokens(16)
    out, report = nnx.jit(lambda model, x: model(x))(model, x)
    plain, other = model(x)
    np.testing.assert_allclose(out, plain, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, report.tally, other.tally)


def test_wrong_settings_and_inputs_are_refused():
    for settings, message in (
        ({"router": "bais"}, "did you mean 'bias'"), ({"scores": "relu"}, "unknown scores"), ({"top": 5}, "top is 5"),
        ({"layout": "dense"}, "unknown layout"), ({"width": 0}, "width is 0"), ({"hidden": 1.5}, "hidden is 1.5"),
        ({"capacity_factor": 0.0}, "capacity_factor is 0"), ({"iterations": 0}, "iterations is 0"),
    ):  # fmt: skip
        with pytest.raises(InvalidOption, match=message):
            ExpertsConfig(**(SMALL | settings))
    with pytest.raises(InvalidProblem, match=r"expected \(T, 8\)"):
        layer()(jnp.zeros((3, 5)))
    with pytest.raises(InvalidProblem, match="at least one token"):
        layer()(jnp.zeros((0, WIDTH)))
    assert ExpertsConfig(**SMALL, balancer=Balancer.signs()).balancer.stepsize == 1e-3
