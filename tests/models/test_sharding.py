"""A model on eight devices: the same numbers as on one, parameters and moments in parts, and nothing sent in vain."""

import dataclasses
import logging
import math
import re
from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pdopt.errors import InvalidOption, InvalidProblem
from pdopt.models import lora, sharding
from pdopt.models.config import DecoderConfig, Mixture
from pdopt.models.decoder import Decoder, Execution, head, put
from pdopt.models.log_probs import token_log_probs
from pdopt.models.sharding import batch_sharding, make_mesh, parameter_sharding, parameter_specs, tree_shardings
from tests.test_sharding import collectives

V, W, L, H, K, E, F = 64, 32, 2, 8, 4, 4, 48
CONFIG = DecoderConfig(V, W, L, H, K, E, F, qkv_bias=True, tied=False)
ROWS, LENGTH = 16, 12
LAYOUTS = {
    "data 8": {"data": 8, "fsdp": 1}, "fsdp 8": {"fsdp": 8}, "fsdp 4 tensor 2": {"fsdp": 4, "tensor": 2},
    "2 2 2": {"data": 2, "fsdp": 2, "tensor": 2},
}  # fmt: skip
SLOW = ("data 8", "fsdp 8", "fsdp 4 tensor 2")
ON_LAYOUTS = pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in LAYOUTS]
)
# Code of the CPU is not optimised: what is tested is what the partitioner made.
FAST = {"xla_backend_optimization_level": 0}
TX = optax.adamw(1e-2)


@pytest.fixture(autouse=True)
def _eight_devices():
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")


def sent(compiled):
    """What a compiled program sends, without what it sends to itself: groups of one device."""
    alone = re.compile(r"replica_groups=(\{\{\d+\}(,|\})|\[8,1\])")
    return collectives("\n".join(line for line in compiled.as_text().splitlines() if not alone.search(line)))


def sharp(config, seed=0):
    """Parameters far from flat, on the host."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in config.shapes.items():
        draw = rng.normal(size=shape).astype(np.float32)
        put(params, path, 1 + 0.1 * draw if path.endswith("norm") else 0.1 * draw)
    return params


def placed(mesh, config, tree):
    """A tree where it belongs."""
    return jax.device_put(tree, tree_shardings(mesh, config, tree))


def tokens(rows=ROWS):
    return np.random.default_rng(7).integers(0, V, (rows, LENGTH), np.int32)


@cache
def trained(layout, constrained=True):
    """Three steps of AdamW on a layout (None: one device): the compiled step, the state and the losses."""
    mesh = make_mesh(devices=jax.devices()[:1]) if layout is None else make_mesh(**LAYOUTS[layout])
    execution = Execution(remat="full", mesh=mesh if constrained else None)
    params = placed(mesh, CONFIG, sharp(CONFIG))
    moments = jax.jit(TX.init, out_shardings=tree_shardings(mesh, CONFIG, jax.eval_shape(TX.init, params)))(params)
    batch = jax.device_put(tokens(), batch_sharding(mesh))

    def loss(params, batch):
        hidden = Decoder(params, CONFIG, execution).hidden(batch)[:, :-1]
        scores = token_log_probs(hidden, head(CONFIG, params), batch[:, 1:], chunk=11, mesh=execution.mesh)
        return -jnp.mean(scores.log_probs) - 0.01 * jnp.mean(scores.entropy)

    def step(state, batch):
        value, gradient = jax.value_and_grad(loss)(state[0], batch)
        change, moments = TX.update(gradient, state[1], state[0])
        return (optax.apply_updates(state[0], change), moments), value

    state, losses = (params, moments), []
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile(FAST)
    for _ in range(3):
        state, value = compiled(state, batch)
        losses.append(float(value))
    kept = jax.tree.map(lambda leaf, place: place.is_equivalent_to(leaf.sharding, leaf.ndim), state, places)
    return compiled, state, losses, all(jax.tree.leaves(kept))


@ON_LAYOUTS
def test_training_on_eight_devices_is_that_on_one(layout):
    """Losses agree closely; parameters to what Adam makes of rounding where a gradient is near zero."""
    _, one, expected, _ = trained(None)
    _, eight, losses, stayed = trained(layout)
    np.testing.assert_allclose(losses, expected, atol=2e-5)
    assert stayed
    for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(eight[0])):
        np.testing.assert_allclose(a, b, atol=2e-3)
        assert np.quantile(np.abs(np.asarray(a) - np.asarray(b)), 0.99) < 2e-5


@ON_LAYOUTS
def test_no_moment_stays_whole(layout):
    """And no parameter: all but vectors are split as many ways as the mesh has devices that hold parts."""
    _, (params, moments), _, _ = trained(layout)
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, **LAYOUTS[layout]}
    for tree in (params, moments[0].mu, moments[0].nu):
        for leaf in jax.tree.leaves(tree):
            ways = leaf.size // leaf.addressable_shards[0].data.size
            matrix = leaf.shape[-1:] != (W,) or leaf.ndim > 2 or leaf.shape == (V, W)
            bias = leaf.shape in ((L, H, E), (L, K, E))
            assert ways == (sizes["tensor"] if bias else sizes["fsdp"] * sizes["tensor"] if matrix else 1)
    assert moments[0].count.sharding.is_fully_replicated


@ON_LAYOUTS
def test_a_training_step_sends_what_it_must(layout):
    """Counts and bytes by kind, an op in the loop over layers once.

    Weights of a layer are gathered for the forward pass and for its recomputation, the head once; the two exchanges
    are those of the embedding's width for rows, there and back; gradients are summed once a layer. With `tensor`,
    activations (a, on one device) are summed: two going forward, one recomputed, two and three going back (inputs of
    gate and up, of q, k and v), one for the head, and those of the embedding.
    """
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, **LAYOUTS[layout]}
    d, f, t = sizes["data"], sizes["fsdp"], sizes["tensor"]
    found, size = Counter(), Counter()
    for kind, count in sent(trained(layout)[0]):
        found[kind] += 1
        size[kind] += count
    weights = (W * (H + 2 * K) * E + H * E * W + 3 * W * F) // t
    vectors = (H + 2 * K) * E // t + 2 * W
    a = ROWS // (d * f) * LENGTH * W
    split = f > 1
    gathered = 4 * (2 * weights + W * V // t + ROWS // d * LENGTH) if split else 0
    assert (found["all-gather"], size["all-gather"]) == (16 if split else 0, gathered)
    assert (found["all-to-all"], size["all-to-all"]) == (2 if split else 0, 2 * 4 * a if split else 0)
    assert (found["reduce-scatter"], size["reduce-scatter"]) == (1 if split else 0, 4 * W * V // (t * f) * split)
    assert found["collective-permute"] == 0
    # Over data after fsdp the sum is of the part that is kept; the tables are V W / (t f) each.
    gradients = (
        weights + vectors + W + (weights // f if split and d > 1 else 0) + (2 * V * W // (t * f) if d > 1 else 0)
    )
    activations = (9 * a + ROWS // d * LENGTH * W // f) if t > 1 else 0
    few = 8 * (ROWS // (d * f) * LENGTH) + 128
    assert gradients * 4 - 4 * W <= size["all-reduce"] <= 4 * (gradients + activations + few)


@ON_LAYOUTS
def test_each_device_holds_its_part_and_the_state_is_updated_in_place(layout):
    compiled, state, _, _ = trained(layout)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes == held + tokens().nbytes // (8 // LAYOUTS[layout].get("tensor", 1))
    assert memory.alias_size_in_bytes == held
    parts = LAYOUTS[layout]["fsdp"] * LAYOUTS[layout].get("tensor", 1)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    vectors = 3 * 4 * ((2 * L + 1) * W + L * (H + 2 * K) * E) + 4
    assert held - vectors <= whole / parts <= held


@pytest.mark.slow
def test_without_the_constraints_rows_are_copied():
    """The counts can fail: without `Execution(mesh=)` the compiler sends several times the bytes, without a word."""
    size = lambda compiled: sum(count for _, count in sent(compiled))
    assert size(trained("fsdp 8", constrained=False)[0]) > 2.5 * size(trained("fsdp 8")[0])


@jax.jit
def logits(model, batch):
    return model(batch)


@cache
def adapted():
    """A model with adapters that change it, on one device, and its logits."""
    adapters = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.02, np.float32) + np.arange(leaf.shape[-1]) / 100,
                            jax.eval_shape(lambda: lora.init(CONFIG, jax.random.key(1), 4)))  # fmt: skip
    model = Decoder(sharp(CONFIG), CONFIG, adapters=adapters)
    return model, np.asarray(logits(model, tokens(8)))


def test_logits_with_adapters_equal_those_of_one_device_and_rows_stay_split():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model, expected = adapted()
    assert np.abs(expected).max() > 1
    places = tree_shardings(mesh, CONFIG, model)
    assert places.adapters.layers["attention"]["o"].a.spec == P(None, "tensor", None, None)
    assert places.adapters.layers["attention"]["o"].b.spec == P(None, None, "fsdp")
    spread = jax.device_put(model, places).replace(execution=Execution(mesh=mesh))
    found = logits(spread, jax.device_put(tokens(8), batch_sharding(mesh)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), None, "tensor")), 3)


def test_rows_that_do_not_divide_are_computed_all_the_same(caplog):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model, expected = adapted()
    spread = jax.device_put(model, tree_shardings(mesh, CONFIG, model)).replace(execution=Execution(mesh=mesh))
    with caplog.at_level(logging.WARNING):
        found = logits(spread, tokens(8)[:3])
    np.testing.assert_allclose(found, expected[:3], atol=1e-5)
    assert "3 rows are not divisible over data 2 x fsdp 2" in caplog.text


def test_scores_with_a_cap_and_a_temperature_equal_those_of_one_device():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    rng = np.random.default_rng(3)
    hidden, matrix = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 5, W), (W, V)))
    targets = rng.integers(0, V, (8, 5), np.int32)
    run = jax.jit(lambda *args, mesh=None: token_log_probs(*args, 0.7, 3, mesh, 5.0), static_argnames="mesh")
    one, eight = run(hidden, matrix, targets), run(hidden, matrix, targets, mesh=mesh)
    np.testing.assert_allclose(eight.log_probs, one.log_probs, atol=1e-5)
    np.testing.assert_allclose(eight.entropy, one.entropy, atol=1e-5)
    capped = 5 * np.tanh(hidden @ matrix / 5) / 0.7
    exact = np.take_along_axis(capped, targets[..., None], 2)[..., 0] - np.log(np.exp(capped).sum(-1))
    np.testing.assert_allclose(eight.log_probs, exact, atol=1e-5)


MIXED = dataclasses.replace(CONFIG, experts=Mixture(count=4, top=2, hidden=16))


def test_experts_sort_the_rows_of_their_own_device():
    """The same hidden states and the same tallies; of the tokens only what `tensor` splits is sent."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    run = jax.jit(lambda model, batch: model.hidden_and_tallies(batch))
    expected, tally = run(Decoder(sharp(MIXED), MIXED), tokens(8))
    spread = Decoder(placed(mesh, MIXED, sharp(MIXED)), MIXED, Execution(mesh=mesh))
    compiled = run.lower(spread, jax.device_put(tokens(8), batch_sharding(mesh))).compile(FAST)
    found, counts = compiled(spread, jax.device_put(tokens(8), batch_sharding(mesh)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, counts, tally)
    a = 2 * LENGTH * W * 4
    # Sums of attention's and the experts' outputs and of the embedding, its exchange; eight weights and the ids.
    large = sorted(kind for kind, size in sent(compiled) if size >= a and kind != "all-gather")
    assert large == ["all-reduce", "all-reduce", "all-reduce", "all-to-all"]
    assert Counter(kind for kind, _ in sent(compiled))["all-gather"] == 9


@pytest.mark.slow
def test_gradients_of_experts_are_those_of_one_device():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    loss = lambda params, execution, batch: jnp.mean(Decoder(params, MIXED, execution).hidden(batch) ** 3)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    one = gradient(sharp(MIXED), Execution(), tokens(8))
    eight = gradient(
        placed(mesh, MIXED, sharp(MIXED)), Execution(mesh=mesh), jax.device_put(tokens(8), batch_sharding(mesh))
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight)):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(a).max()) + 1e-7)


def test_key_and_value_heads_stay_whole_where_tensor_does_not_divide_them(caplog):
    sharding._say_whole.cache_clear()
    with caplog.at_level(logging.WARNING):
        specs = [parameter_specs({"fsdp": 1, "tensor": 8}, CONFIG), parameter_specs({"fsdp": 4, "tensor": 8}, CONFIG)]
    assert len(caplog.records) == 1
    assert "kv_heads 4 is not divisible by mesh axis tensor, 8" in caplog.text
    assert specs[1]["layers/attention/k"] == P(None, "fsdp", None, None)
    assert specs[1]["layers/attention/k_bias"] == P(None, None, None)
    assert specs[1]["layers/attention/q"] == P(None, "fsdp", "tensor", None)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 3}, "parameter embed has vocab 64, which mesh axis tensor of size 3 does not divide"),
        ({"fsdp": 5}, "parameter embed has embed 32, which mesh axis fsdp of size 5 does not divide"),
        ({"tensor": 32}, "parameter layers/attention/q has heads 8, which mesh axis tensor of size 32"),
    ],
)
def test_an_axis_that_does_not_divide_is_named(sizes, message):
    with pytest.raises(InvalidOption, match=message):
        parameter_specs(sizes, CONFIG)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, r"the mesh \(data 3, tensor 1\) needs 3 devices, which does not divide the number there is, 8"),
        ({"fsdp": 4}, r"the mesh \(data 1, fsdp 4, tensor 1\) needs 4 devices, which is not the number there is, 8"),
        ({"data": -1}, "mesh axes data and fsdp are both -1"),
        ({"tensor": 0}, "mesh axis tensor is 0; expected an integer >= 1, or -1"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, message):
    with pytest.raises(InvalidOption, match=message):
        make_mesh(**sizes)


def test_every_parameter_of_every_switch_has_its_axes():
    config = DecoderConfig(
        V, W, L, H, K, E, F, qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm=True, tied=False
    )
    mesh = AbstractMesh((2, 2, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    place = parameter_sharding(mesh, config)
    for path, shape in config.shapes.items():
        spec = place(path, shape).spec
        assert len(spec) == len(shape)
        # A matrix is split by both axes; norms and what is added to the residual stream are not.
        matrix = math.prod(shape[1:] if path.startswith("layers/") else shape) > W * E
        assert {axis for axis in spec if axis} == ({"fsdp", "tensor"} if matrix else set(spec) - {None, "fsdp"})
    with pytest.raises(InvalidOption, match="unknown parameter 'layers/mlp/gat'; did you mean 'layers/mlp/gate'"):
        place("layers/mlp/gat", (1,))
    with pytest.raises(InvalidProblem, match="embed"):
        place("embed", (W, V))


def test_states_of_other_optimisers_are_split():
    """Momentum in another place of the state, factored moments, and what is no moment."""
    mesh = AbstractMesh((2, 2, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    params = jax.eval_shape(lambda: sharp(CONFIG))
    chained = optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale_by_schedule(lambda n: 1.0))
    places = tree_shardings(mesh, CONFIG, {"state": jax.eval_shape(chained.init, params), "y": jnp.ones(3)})
    assert places["state"][1].trace["layers"]["mlp"]["down"].spec == P(None, "tensor", "fsdp")
    assert places["state"][2].count.spec == P()
    assert places["y"].spec == P()
    factored = jax.eval_shape(optax.scale_by_factored_rms(min_dim_size_to_factor=4).init, params)
    places = tree_shardings(mesh, CONFIG, factored)
    assert factored.v_row["head"].shape == (W,)
    assert places.v_row["head"].spec == P("fsdp")
    assert places.v_col["head"].spec == P("tensor")
