"""Fixtures of the tests of training."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compiles():
    """Programs of tiny models run in no time, and compiling them is all they cost: half of it without optimisation."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
