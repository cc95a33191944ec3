"""Programs compiled lightly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.runtime.apart import ONE_KERNEL
from pdopt.runtime.light import MOST, SETTINGS, _known, compiled, is_light
from pdopt.solve import _solve

FLAGS = f"--xla_backend_extra_options=xla_cpu_{ONE_KERNEL}=1"


def test_light_is_what_is_small_and_stands_alone_under_the_flag(monkeypatch) -> None:
    small, large = np.zeros(4), np.zeros(MOST // 8 + 1)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert not is_light(small)
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    assert is_light(small)
    assert is_light(small, large)
    assert not is_light(large)
    seen = []
    jax.jit(lambda x: seen.append(is_light(small)) or x)(1.0)
    jax.vmap(lambda x: seen.append(is_light(small, x)) or x)(jnp.ones(2))
    assert seen == [False, False]


def test_settings_that_xla_does_not_know_are_left_out(monkeypatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    monkeypatch.setitem(SETTINGS, "xla_cpu_no_such_setting", True)
    _known.cache_clear()
    assert not is_light(np.zeros(4))
    _known.cache_clear()


def test_both_solve_and_run_reach_the_optimum_by_the_light_program(monkeypatch) -> None:
    lp = pdopt.LinearProgram([-1.0, -1.0], [[1.0, 2.0]], [-jnp.inf], [4.0], [0.0, 0.0], [3.0, 3.0], dtype=jnp.float32)
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    before = _solve.light._cache_size()
    light = pdopt.solve(lp, tolerance=1e-5)
    assert _solve.light._cache_size() == before + 1
    np.testing.assert_allclose(light.x, [3.0, 0.5], atol=1e-4)
    np.testing.assert_array_equal(pdopt.run(lp, tolerance=1e-5).x, light.x)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_this_xla_knows_each_setting(name) -> None:
    function = compiled(lambda x: 2 * x).light
    assert float(function(3.0)) == 6.0
    assert jax.jit(lambda x: x, compiler_options={name: SETTINGS[name]})(1.0) == 1.0
