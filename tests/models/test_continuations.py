"""A prompt read once for several continuations against each behind its own: states and gradients, in every family."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdopt.errors import InvalidProblem
from pdopt.models import kernels, lora
from pdopt.models.attention import attend, attend_causal
from pdopt.models.columns import attend_columns
from pdopt.models.config import DecoderConfig, Mixture, Rope
from pdopt.models.continuations import states_before
from pdopt.models.decoder import Decoder, Execution, initialise
from pdopt.models.decoding import repeated

pytestmark = pytest.mark.usefixtures("quick_compiles")

PLAIN = DecoderConfig(
    vocabulary=24, width=12, depth=2, heads=4, kv_heads=2, head_dim=6, hidden=16, qk_norm=True, tied=False
)
GEMMA2 = dataclasses.replace(
    PLAIN, activation="gelu_tanh", norm_offset=True, post_norms=True, embed_scaled=True, query_scalar=8,
    attention_cap=3.0, logit_cap=2.0, window=4, local=(True, False), tied=True,
)  # fmt: skip
GEMMA3 = dataclasses.replace(GEMMA2, attention_cap=None, logit_cap=None, rope=Rope(1e6), local_rope=Rope(1e4))
BIASED = dataclasses.replace(PLAIN, qk_norm=False, qkv_bias=True, window=5, local=(True, True))
EXPERTS = dataclasses.replace(PLAIN, experts=Mixture(count=4, top=2, hidden=8))
SLOW = {"gemma2": GEMMA2, "biased windows": BIASED}
CONFIGS = {"lora": PLAIN, "gemma3": GEMMA3, "experts": EXPERTS} | SLOW
RNG = np.random.default_rng(0)
# Two prompts with pads on the left, three continuations each, of one to five tokens.
PROMPTS, COUNT, COLUMNS = 2, 6, 5
VALID = jnp.arange(4) >= jnp.array([[2], [0]])
PRESENT = jnp.arange(COLUMNS) < jnp.array([5, 1, 3, 4, 5, 2])[:, None]
DRAW = lambda *shape: jnp.asarray(RNG.integers(2, 24, shape))
TEXTS = DRAW(PROMPTS, 4), VALID, DRAW(COUNT, COLUMNS), PRESENT
WEIGHTS = jnp.asarray(RNG.standard_normal((COUNT, COLUMNS, 12)), jnp.float32) * PRESENT[..., None]


def decoder(name, **execution):
    config = CONFIGS[name]
    shapes = jax.eval_shape(lambda: initialise(config, jax.random.key(0)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
    adapters = None
    if name == "lora":
        made = lora.init(config, jax.random.key(1), 2)
        adapters = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), made)
    return Decoder(params, config, Execution(**execution), adapters)


@partial(jax.jit, static_argnames="once")
def states_and_gradient(model, once):
    def total(model):
        prompts, valid, tokens, present = TEXTS
        before = (prompts, valid) if once else repeated((prompts, valid), COUNT // PROMPTS)
        found = states_before(model, *before, tokens, present)
        return jnp.vdot(WEIGHTS, found), found

    (_, found), gradient = jax.value_and_grad(total, has_aux=True, allow_int=True)(model)
    return found, gradient


def assert_same(mine, other, seen=PRESENT):
    (states, gradient), (plain, expected) = mine, other
    np.testing.assert_allclose(np.asarray(states)[seen], np.asarray(plain)[seen], atol=2e-5)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True)
    pairs = [(a, b) for a, b in pairs if jnp.issubdtype(jnp.asarray(b).dtype, jnp.floating)]
    assert max(float(jnp.abs(b).max()) for _, b in pairs) > 0.1
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, float(jnp.abs(b).max())))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CONFIGS])
def test_a_prompt_read_once_is_a_prompt_of_ones_own(name):
    assert_same(*(states_and_gradient(decoder(name, unroll=name == "lora"), once) for once in (True, False)))


@pytest.mark.slow
def test_blocks_may_be_made_again():
    found = states_and_gradient(decoder("lora", remat="full"), True)
    assert_same(found, states_and_gradient(decoder("lora"), True))


def test_a_fused_kernel_sees_whole_rows(monkeypatch):
    """The kernel itself needs a GPU; here its arguments, real tokens first, go to the dense form of the same call."""
    monkeypatch.setattr(kernels, "attend_causal", lambda q, k, v, n, kernel, scalar: attend_causal(q, k, v, n, "xla"))
    found = states_before(decoder("lora", kernel="cudnn"), *TEXTS)
    expected = states_before(decoder("lora"), *TEXTS)
    np.testing.assert_allclose(np.asarray(found)[PRESENT], np.asarray(expected)[PRESENT], atol=2e-5)


@pytest.mark.slow
def test_eight_devices_read_prompts_where_their_rows_lie():
    """Two prompts over eight devices do not divide: each continuation gets its own. Over two, they are read once."""
    from pdopt.models.sharding import make_mesh

    one = states_and_gradient(decoder("lora"), True)
    assert_same(states_and_gradient(decoder("lora", mesh=make_mesh(2, 1, 1, jax.devices()[:2])), True), one)
    assert_same(states_and_gradient(decoder("lora", mesh=make_mesh(2, 2, 2)), True), one)


def test_uneven_groups_are_refused():
    prompts, valid, tokens, present = TEXTS
    with pytest.raises(InvalidProblem, match=r"tokens has shape \(5, 5\); expected \(4, 5\)"):
        states_before(decoder("lora"), prompts, valid, tokens[:5], present[:5])


def test_attention_by_columns_is_attention():
    """Grouped heads, and a query that sees nothing: even weights, and no gradient through them."""
    q, k, v, pull = (
        jnp.asarray(RNG.standard_normal((2, t, heads, 6)), jnp.float32) for t, heads in ((3, 4), (5, 2), (5, 2), (3, 4))
    )
    mask = jnp.asarray(RNG.random((2, 3, 5)) < 0.6).at[0, 1].set(False).at[1, 2].set(True)
    mine = jax.vjp(lambda q, k, v: attend_columns(q, k, v, mask, 6**-0.5), q, k, v)
    other = jax.vjp(lambda q, k, v: attend(q, k, v, mask, scalar=6), q, k, v)
    for a, b in zip((mine[0], *mine[1](pull)), (other[0], *other[1](pull)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
