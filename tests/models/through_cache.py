"""Logits as a rollout reads them: a prompt into a cache, then token by token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.models.decoding import extend, pack, read


@partial(jax.jit, static_argnames="prompt")
def logits_through_cache(model, tokens, valid, prompt):
    """Logits `(b, length - prompt + 1, vocabulary)` of the last column of the prompt and of all after it."""
    length = tokens.shape[1]
    packed = pack(model)
    hidden, cache = read(packed, tokens[:, :prompt], valid[:, :prompt], length)
    found = [hidden]
    positions = jnp.cumsum(valid, axis=1) - 1
    for at in range(prompt, length):
        cache = cache._replace(valid=cache.valid.at[:, at].set(True))
        hidden, cache = extend(packed, tokens[:, at], positions[:, at], cache, at)
        found.append(hidden)
    return packed.logits(jnp.stack(found, axis=1))


def assert_decoding_is_the_full_pass(model, tokens, valid, prompt, atol=1e-5):
    """Every column from the end of the prompt on; the logits of the full pass come back."""
    full = np.asarray(jax.jit(lambda model: model(tokens, valid=valid))(model))
    found = logits_through_cache(model, jnp.asarray(tokens), jnp.asarray(valid), prompt)
    np.testing.assert_allclose(found, full[:, prompt - 1 :], rtol=1e-5, atol=atol)
    return full
