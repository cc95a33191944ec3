"""Programs compiled as their size wants it, on a CPU.

    up to SMALL bytes of a problem     light    each loop one kernel, LLVM's second level (under `set_cpu_flags` only)
    up to LARGE                        whole    loops stay loops, and no kernel is split between threads
    beyond                             split    loops stay loops, kernels are split

One kernel for a loop saves the microsecond that a dozen calls of kernels cost, and compiles in two thirds of the time:
a linear program of 2 600 nonzeros took 3.9 microseconds an iteration in place of 4.4, one of 300 took 0.5 in place of
1.6. From about 6 000 nonzeros on such a kernel is slower than those that it is made of (of 60 000: 1.8 times).

A kernel that moves half a megabyte is split between threads, which costs more than it gains until it is much larger:
`ken-13`, of 97 000 nonzeros and 71 000 rows and columns, took 204 microseconds an iteration unsplit and 450 split on
two cores, `osa-07`, of 144 000 and 25 000, 236 and 195.

The settings round otherwise than XLA's defaults. JAX takes them for a whole program only, so a solve inside somebody's
`jit` or `vmap` is compiled as that is.
"""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from pdopt.runtime.apart import ONE_KERNEL, traced, traced_for

LIGHT: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 2}
WHOLE: dict[str, Any] = {
    "xla_disable_hlo_passes": "cpu-parallel-task-assigner,small-while-loop-hoisting",
    "xla_backend_optimization_level": 2,  # the third finds nothing more, and compiles a tenth longer
}
SPLIT: dict[str, Any] = {**WHOLE, "xla_disable_hlo_passes": "small-while-loop-hoisting"}
SMALL = 2**18 + 2**17  # bytes of a problem, about 10 000 nonzeros: below, compilation is what counts
LARGE = 5 * 2**20  # about 120 000 nonzeros


class Compiled(NamedTuple):
    """A function jitted for every size: by JAX's own settings (`plain`), and by those above."""

    plain: Any
    light: Any
    whole: Any
    split: Any

    def fitting(self, *arguments: Any) -> Any:
        """The one for these arguments (the first is the problem, whose size decides)."""
        return getattr(self, way(*arguments))


def compiled(function: Any, **settings: Any) -> Compiled:
    """`function` as `jax.jit(function, **settings)` makes it, and for every size.

    Example:
        >>> double = compiled(lambda x: 2 * x)
        >>> print(double.fitting(1.0)(1.0))
        2.0
    """
    loops = lambda options, **scope: jax.jit(_scoped(function, scope), compiler_options=options, **settings)
    return Compiled(
        jax.jit(function, **settings),
        jax.jit(function, compiler_options=LIGHT, **settings),
        loops(WHOLE, looped=True, unsplit=True),
        loops(SPLIT, looped=True),
    )


def _scoped(function: Any, scope: dict[str, Any]) -> Any:
    """The function, traced knowing how it is compiled."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with traced_for(traced()._replace(**scope)):
            return function(*arguments, **named)

    return call


def way(problem: Any, *others: Any) -> str:
    """How a program of these arguments is compiled: "plain", "light", "whole" or "split".

    Plain is what does not stand alone, what is not for a CPU, and what is small where loops are no kernels.
    """
    leaves = jax.tree.leaves((problem, *others))
    # Inside a `jit` even a constant is traced.
    if any(isinstance(leaf, Tracer) for leaf in (*leaves, jnp.zeros((), bool))) or jax.default_backend() != "cpu":
        return "plain"
    size = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(problem))
    if size > SMALL:
        name, options = ("whole", WHOLE) if size <= LARGE else ("split", SPLIT)
    elif ONE_KERNEL in os.environ.get("XLA_FLAGS", ""):
        name, options = "light", LIGHT
    else:
        return "plain"
    return name if knows(options) else "plain"


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
