"""A solve lowers for accelerators that this machine lacks: nothing in it is written for the CPU alone."""

import re

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


def test_a_sparse_solve_over_a_mesh_exports_for_gpus():
    if jax.device_count() < 8:
        pytest.skip("eight devices are needed; XLA_FLAGS was set by the caller to fewer")
    matrix = sp.random(30, 40, 0.1, random_state=0, format="coo")
    A = pdopt.Sparse.from_entries(matrix.row, matrix.col, matrix.data, (30, 40), jnp.float32)
    rows, columns = np.ones(30, np.float32), np.ones(40, np.float32)
    spread = pdopt.shard(pdopt.LinearProgram(columns, A, -rows, rows, -columns, columns))
    solve = lambda problem: pdopt.solve(problem, pdopt.PDHG.constant(), gradient="none")
    program = jax.export.export(jax.jit(solve), platforms=["cuda"])(spread)
    assert (program.platforms, program.nr_devices) == (("cuda",), 8)
    text = program.mlir_module()
    # What the products sum over is written out, a group of devices for every row or column of the mesh.
    groups = re.findall(r"stablehlo.all_reduce.*replica_groups = dense<.*> : tensor<(\d)x(\d)xi64>", text)
    assert set(groups) == {("2", "4"), ("4", "2")}
    assert "custom_call" not in text.replace("custom_call @Sharding", "")
