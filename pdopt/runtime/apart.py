"""A function that XLA compiles on its own, so that nothing around it is fused into it, nor it into anything.

XLA's CPU compiler fuses cheap producers into everything that reads them: a vector that a gather reads is then computed
again at every place gathered, and a chain of gathers falls apart into a kernel each. A call that is not inlined is a
boundary: its arguments and results are stored once, it compiles once however often it is called, and it rounds alike
wherever it stands. One iteration of PDHG on a batch of 64 programs of the size of `e226` took a third of the time.

With the flag that makes one kernel of a loop (README) XLA fails at a call that holds a kernel it would split between
threads ("Symbols not found: ParallelForkJoin", jaxlib 0.10.2): such a function stays where it is.
"""

import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

MARK = "inlineable"  # the attribute of a call that XLA's inliner reads
LEAST = 2**13  # bytes of arguments below which a call costs more than it saves
SPLIT = 2**19  # bytes that a kernel moves from which XLA splits it between two threads
ONE_KERNEL = "small_while_loop_byte_threshold"  # of XLA_FLAGS


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of pytrees of arrays, kept apart from what calls it where the backend is a CPU and they are not small.

    Example:
        >>> import jax.numpy as jnp
        >>> print(apart(lambda x: 2 * x)(jnp.ones(2)))
        [2. 2.]
    """
    compiled = jax.jit(function)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        leaves = jax.tree.leaves(arguments)
        large = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves) >= LEAST
        if jax.default_backend() != "cpu" or not large:
            return function(*arguments)
        if not fits([*leaves, *jax.tree.leaves(jax.eval_shape(compiled, *arguments))]):
            return function(*arguments)
        with set_xla_metadata(**{MARK: "false"}):
            return compiled(*arguments)

    return call


def is_apart(equation: Any) -> bool:
    """Whether an equation of a jaxpr is the call of such a function."""
    return equation.primitive.name in ("jit", "pjit") and MARK in (equation.ctx.xla_metadata or {})


def fits(values: Sequence[Any], batched: Sequence[Any] | None = None, size: int = 1) -> bool:
    """Whether no kernel of a function of these arrays is split: a pass over the batched ones, or a gather by others.

    Args:
        values: its arguments and results, with an axis of the batch where they are `batched` (None: no batch).
        size: members of the batch.
    """
    if ONE_KERNEL not in os.environ.get("XLA_FLAGS", ""):
        return True
    item = max((np.dtype(v.dtype).itemsize for v in values), default=0)
    marks = [True] * len(values) if batched is None else batched
    passed = sum(v.size * np.dtype(v.dtype).itemsize for v, mark in zip(values, marks) if mark)
    gathered = max((v.size for v in values if v.ndim > 1 and np.issubdtype(v.dtype, np.integer)), default=0)
    return max(passed, gathered * (2 * item * size + item + 4)) < SPLIT
