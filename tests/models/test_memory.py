"""The memory of a device from shapes, against what the compiler says, and for models no test could allocate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

from pdopt.errors import InvalidOption
from pdopt.models.config import DecoderConfig, Rope
from pdopt.models.decoder import REMATS, Decoder, Execution, head
from pdopt.models.log_probs import token_log_probs
from pdopt.models.memory import inference_memory, training_memory
from pdopt.models.sharding import AXES, abstract_parameters, batch_sharding, make_mesh, tree_shardings
from pdopt.training.rollout import _generate
from pdopt.training.sampling import Sampling

SMALL = DecoderConfig(vocabulary=256, width=64, depth=4, heads=4, kv_heads=2, head_dim=16, hidden=128, tied=False)
LLAMA = DecoderConfig(
    vocabulary=128_256, width=8192, depth=80, heads=64, kv_heads=8, head_dim=128, hidden=28_672, tied=False,
    rope=Rope(theta=500_000.0),
)  # fmt: skip
FAST = {"xla_backend_optimization_level": 0}
TX = optax.adamw(1e-3)
EVEN = {"data": 2, "fsdp": 2, "tensor": 2}
ALONE = {"data": 1, "fsdp": 1, "tensor": 1}


def mesh_of(sizes):
    count = int(np.prod(list(sizes.values())))
    if jax.device_count() < count:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    return make_mesh(**sizes, devices=jax.devices()[:count])


def training_step(config, mesh, rows, length, remat="full", compute=None):
    """A lowered step of AdamW on log-probabilities, from shapes: nothing is allocated."""
    execution = Execution(remat=remat, mesh=mesh, compute=compute, kernel="xla")
    params = abstract_parameters(mesh, config)
    shapes = jax.eval_shape(TX.init, params)
    place = lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
    moments = jax.tree.map(place, shapes, tree_shardings(mesh, config, shapes))
    batch = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=batch_sharding(mesh))

    def loss(params, batch):
        hidden = Decoder(params, config, execution).hidden(batch)
        return -jnp.mean(token_log_probs(hidden, head(config, params), batch, chunk=64, mesh=mesh).log_probs)

    def step(params, moments, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        change, moments = TX.update(gradient, moments, params)
        return optax.apply_updates(params, change), moments, value

    return jax.jit(step, donate_argnums=(0, 1)).trace(params, moments, batch)


@pytest.mark.parametrize(
    ("sizes", "rows", "length", "remat", "compute"),
    [
        (EVEN, 16, 64, "full", None),
        pytest.param(ALONE, 8, 64, "none", None, marks=pytest.mark.slow),
        pytest.param(ALONE, 8, 64, "dots", None, marks=pytest.mark.slow),
        pytest.param(ALONE, 32, 128, "full", None, marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 8, "tensor": 1}, 16, 64, "full", None, marks=pytest.mark.slow),
        pytest.param({"data": 1, "fsdp": 2, "tensor": 4}, 16, 64, "dots", None, marks=pytest.mark.slow),
    ],
)
def test_a_training_step_needs_what_the_plan_says(sizes, rows, length, remat, compute):
    """Arguments to the byte; what is made on the way within a factor of two, whatever the compiler shares."""
    mesh = mesh_of(sizes)
    memory = training_step(SMALL, mesh, rows, length, remat, compute).lower().compile(FAST).memory_analysis()
    plan = training_memory(SMALL, mesh, rows=rows, length=length, remat=remat, compute=compute, chunk=64)
    assert plan.kept_bytes == memory.argument_size_in_bytes
    assert memory.temp_size_in_bytes / 2 < plan.made_bytes < memory.temp_size_in_bytes * 2
    assert plan.total == plan.kept_bytes + plan.made_bytes == plan.rows()[-1][1]


@pytest.mark.parametrize(
    ("sizes", "prompt", "new"),
    [(EVEN, 32, 32), pytest.param(ALONE, 32, 64, marks=pytest.mark.slow),
     pytest.param(ALONE, 4, 100, marks=pytest.mark.slow)],
)  # fmt: skip
def test_sampling_needs_what_the_plan_says(sizes, prompt, new):
    mesh = mesh_of(sizes)
    rows = lambda *shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
    model = Decoder(abstract_parameters(mesh, SMALL), SMALL, Execution(mesh=mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = _generate.lower(
        model, rows(8, prompt, dtype=jnp.int32), rows(8, prompt, dtype=bool), key, Sampling(new),
        rows(8, dtype=jnp.int32), rows(8, dtype=jnp.int32), pad=0, group=1,
    )  # fmt: skip
    memory = lowered.compile(FAST).memory_analysis()
    plan = inference_memory(SMALL, mesh, rows=8, length=prompt + new, prompt=prompt)
    assert plan.kept_bytes == memory.argument_size_in_bytes
    assert memory.temp_size_in_bytes / 2 < plan.made_bytes < memory.temp_size_in_bytes * 2


def test_seventy_billion_parameters_on_five_hundred_devices_without_one():
    """The whole training step is traced and lowered for a mesh that is not there; each device's part is known."""
    mesh = AbstractMesh((1, 64, 8), AXES, axis_types=(AxisType.Auto,) * 3)
    assert LLAMA.parameters == 70_553_706_496
    traced = training_step(LLAMA, mesh, rows=64, length=4096, compute=jnp.bfloat16)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tensor<80x8192x28672xf32>" in text
    assert len(text) < 500_000  # one block for eighty layers
    plan = training_memory(LLAMA, mesh, rows=64, length=4096, compute=jnp.bfloat16)
    held = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(abstract_parameters(mesh, LLAMA))
    )
    assert plan.kept[0].bytes == 4 * held
    # 70.6e9 / 512 numbers of 4 bytes, norms whole: 0.55 GB, and twice that for the moments.
    assert 0.551e9 < plan.kept[0].bytes < 0.56e9
    assert plan.kept[1].bytes == 8 * held + 4
    assert dict(plan.sizes) == {"data": 1, "fsdp": 64, "tensor": 8}


def test_parts_grow_and_shrink_as_they_should():
    """The arithmetic, part by part, of a model nobody builds here."""
    plan = lambda **changes: training_memory(
        LLAMA, {"data": 2, "fsdp": 32, "tensor": 8},
        **{"rows": 64, "length": 4096, "compute": jnp.bfloat16, **changes},
    )  # fmt: skip
    part = lambda plan, name: next(p.bytes for p in (*plan.kept, *plan.made) if p.name == name)
    base = plan()
    # One row a device: 80 block inputs of 4096 x 8192 numbers of 2 bytes.
    assert part(base, "saved activations") == 80 * 4096 * 8192 * 2
    assert part(plan(rows=128), "saved activations") == 2 * part(base, "saved activations")
    assert part(base, "gradients") == part(base, "parameters")
    assert part(plan(dtype=jnp.bfloat16), "parameters") * 2 == part(base, "parameters")
    assert part(plan(moments=1), "moments") * 2 == part(base, "moments") + 4
    light = plan(adapters=100_000_000)
    assert part(light, "gradients") == 400_000_000
    assert part(light, "moments") == 800_000_004
    order = [part(plan(remat=remat), "saved activations") for remat in ("offload", "full", "dots", "none")]
    assert order == sorted(order)
    assert len(set(order)) == len(REMATS)
    # 8 key heads over 8 devices: one each; 80 layers x 2 x 128 numbers of 2 bytes a token.
    cache = inference_memory(LLAMA, {"data": 1, "fsdp": 1, "tensor": 8}, rows=4, length=1000, compute=jnp.bfloat16)
    assert part(cache, "cache") == 4 * 1000 * 80 * 2 * 128 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows is 0"), ({"length": 0}, "length is 0"), ({"chunk": 0}, "chunk is 0"),
        ({"moments": -1}, "moments is -1"), ({"remat": "some"}, "remat is 'some'; expected one of"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused(changes, message):
    with pytest.raises(InvalidOption, match=message):
        training_memory(SMALL, ALONE, **{"rows": 1, "length": 1, **changes})
    with pytest.raises(InvalidOption, match="parameter embed has vocab 256, which mesh axis tensor of size 3"):
        inference_memory(SMALL, {"tensor": 3}, rows=1, length=1)
