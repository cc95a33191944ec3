"""Programs compiled as their size wants it."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdopt
from pdopt.runtime.apart import ONE_KERNEL, traced
from pdopt.runtime.fitted import LARGE, LIGHT, SMALL, SPLIT, WHOLE, _known, compiled, way
from pdopt.solve import _solve

FLAGS = f"--xla_backend_extra_options=xla_cpu_{ONE_KERNEL}=1"
TINY, MIDDLE, HUGE = np.zeros(4), np.zeros(SMALL // 8 + 1), np.zeros(LARGE // 8 + 1)


def test_the_size_of_the_problem_decides_and_the_flag_for_what_is_small(monkeypatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert [way(v) for v in (TINY, MIDDLE, HUGE)] == ["plain", "whole", "split"]
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    assert [way(v) for v in (TINY, MIDDLE, HUGE)] == ["light", "whole", "split"]
    assert way(TINY, HUGE) == "light"


def test_what_does_not_stand_alone_is_compiled_as_what_it_stands_in(monkeypatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    seen = []
    jax.jit(lambda x: seen.extend([way(TINY), way(MIDDLE)]) or x)(1.0)
    jax.vmap(lambda x: seen.append(way(TINY, x)) or x)(jnp.ones(2))
    assert seen == ["plain"] * 3


def test_settings_that_xla_does_not_know_are_left_out(monkeypatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    for settings, problem in ((LIGHT, TINY), (WHOLE, MIDDLE), (SPLIT, HUGE)):
        monkeypatch.setitem(settings, "xla_cpu_no_such_setting", True)
        _known.cache_clear()
        assert way(problem) == "plain"
    _known.cache_clear()


def test_both_solve_and_run_reach_the_optimum_by_the_light_program(monkeypatch) -> None:
    lp = pdopt.LinearProgram([-1.0, -1.0], [[1.0, 2.0]], [-jnp.inf], [4.0], [0.0, 0.0], [3.0, 3.0], dtype=jnp.float32)
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    before = _solve.light._cache_size()
    light = pdopt.solve(lp, tolerance=1e-5)
    assert _solve.light._cache_size() == before + 1
    np.testing.assert_allclose(light.x, [3.0, 0.5], atol=1e-4)
    np.testing.assert_array_equal(pdopt.run(lp, tolerance=1e-5).x, light.x)


@pytest.mark.parametrize("flags", ["", FLAGS])
@pytest.mark.parametrize("name", ["whole", "split"])
def test_every_way_ends_where_the_plain_one_does(name, flags, monkeypatch) -> None:
    """The bounds are moved: a small program goes the way of a large one, with its calls kept apart."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    rng = np.random.default_rng(0)
    n = 91 if flags else 90  # nothing compiled before
    A, x = rng.normal(size=(60, n)), rng.uniform(0.2, 0.8, n)
    with jax.enable_x64(True):
        lp = pdopt.LinearProgram(rng.normal(size=n), A, A @ x, A @ x, np.zeros(n), np.ones(n))
        plain = jax.jit(lambda lp: pdopt.solve(lp, tolerance=1e-6))(lp)
        monkeypatch.setattr("pdopt.runtime.fitted.SMALL", 0)
        monkeypatch.setattr("pdopt.runtime.fitted.LARGE", 0 if name == "split" else LARGE)
        before = getattr(_solve, name)._cache_size()
        found = pdopt.solve(lp, tolerance=1e-6)
        assert getattr(_solve, name)._cache_size() == before + 1
        ran = pdopt.run(lp, tolerance=1e-6)
    for solution in (found, ran):
        assert str(solution.reason) == str(plain.reason) == "optimal"
        np.testing.assert_allclose(solution.objective, plain.objective, rtol=1e-5)


def test_a_program_is_traced_knowing_how_it_is_compiled() -> None:
    scopes = {}
    for name in ("plain", "light", "whole", "split"):
        getattr(compiled(lambda x, name=name: scopes.setdefault(name, traced()) and x), name)(1.0)
    assert {name: (s.looped, s.unsplit) for name, s in scopes.items()} == {
        "plain": (False, False), "light": (False, False), "whole": (True, True), "split": (True, False)
    }  # fmt: skip


@pytest.mark.parametrize("settings", [LIGHT, WHOLE, SPLIT])
def test_this_xla_knows_each_setting(settings) -> None:
    for name, value in settings.items():
        assert jax.jit(lambda x: x, compiler_options={name: value})(1.0) == 1.0


def test_no_loop_of_a_program_beyond_the_small_is_one_kernel() -> None:
    """In a process that has the flag, as XLA reads it once: the pass that makes a call of a loop is left out."""
    script = """
import jax, jax.numpy as jnp
from pdopt.runtime.fitted import compiled
double = compiled(lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1])
texts = [getattr(double, name).lower(jnp.ones(8)).compile().as_text() for name in ("light", "whole", "split")]
print(["xla_cpu_small_call" in text for text in texts])
"""
    flags = f"--xla_backend_extra_options=xla_cpu_{ONE_KERNEL}=20000000"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[True, False, False]"
