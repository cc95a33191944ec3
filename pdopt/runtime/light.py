"""Programs of small loops compiled lightly: a third less to compile, a fifth to a third less an iteration.

Where XLA's CPU compiler makes one kernel of a loop (`set_cpu_flags`), what its newer emitters of fusions gain for each
kernel is lost again, and LLVM's last level of optimisation finds nothing. For a linear program of 1 700 nonzeros
compilation took 4.1 seconds of processor time and 2.9 so, an iteration 8.8 and 5.6 microseconds; at 15 000 nonzeros
both take a tenth less, at 140 000 an iteration takes a tenth more: hence the limit.

The two settings round otherwise than XLA's defaults. JAX takes them for a whole program only, so a solve inside
somebody's `jit` or `vmap` is compiled as that is.
"""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from pdopt.runtime.apart import ONE_KERNEL

SETTINGS: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 2}
MOST = 2**21  # bytes of a problem, about 50 000 nonzeros


class Compiled(NamedTuple):
    """A function jitted twice: by JAX's own settings, and lightly."""

    plain: Any
    light: Any

    def fitting(self, *arguments: Any) -> Any:
        """The one for these arguments (the first is the problem, whose size decides)."""
        return self.light if is_light(*arguments) else self.plain


def compiled(function: Any, **settings: Any) -> Compiled:
    """`function` as `jax.jit(function, **settings)` makes it, and lightly.

    Example:
        >>> double = compiled(lambda x: 2 * x)
        >>> print(double.fitting(1.0)(1.0))
        2.0
    """
    return Compiled(jax.jit(function, **settings), jax.jit(function, compiler_options=SETTINGS, **settings))


def is_light(problem: Any, *others: Any) -> bool:
    """Whether a program of these arguments is compiled lightly: small, on a CPU, on its own, one kernel a loop."""
    leaves = jax.tree.leaves((problem, *others))
    # Inside a `jit` even a constant is traced.
    if any(isinstance(leaf, Tracer) for leaf in (*leaves, jnp.zeros((), bool))):
        return False
    one_kernel = ONE_KERNEL in os.environ.get("XLA_FLAGS", "")
    size = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(problem))
    return one_kernel and size <= MOST and jax.default_backend() == "cpu" and knows(SETTINGS)


def knows(settings: dict[str, Any]) -> bool:
    """Whether this XLA still has the settings; without them everything works as by default.

    Example:
        >>> knows({"xla_no_such_setting": 1})
        False
    """
    return _known(tuple(sorted(settings.items())))


@functools.cache
def _known(settings: tuple[tuple[str, Any], ...]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=dict(settings)).lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
