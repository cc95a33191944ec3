"""A solve lowers for accelerators that this machine lacks: nothing in it is written for the CPU alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import pdopt


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("storage", ["dense", "sparse"])
def test_a_solve_lowers(platform, storage):
    A = sp.random(100, 120, 0.05, random_state=0, format="csr", dtype=np.float32)
    matrix = A.toarray() if storage == "dense" else A
    rows, columns = np.ones(100, np.float32), np.ones(120, np.float32)
    lp = pdopt.LinearProgram(columns, matrix, -rows, rows, -columns, columns, dtype=jnp.float32)
    lowered = jax.jit(pdopt.solve).trace(lp).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert "stablehlo.while" in text
    # A product must stay on the device: no callback to the host, no kernel of one backend.
    assert "custom_call" not in text.replace("custom_call @Sharding", "")
