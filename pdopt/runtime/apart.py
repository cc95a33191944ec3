"""A function that XLA compiles on its own, so that nothing around it is fused into it, nor it into anything.

XLA's CPU compiler fuses cheap producers into everything that reads them: a vector that a gather reads is then computed
again at every place gathered, and a chain of gathers falls apart into a kernel each. A call that is not inlined is a
boundary: its arguments and results are stored once, it compiles once however often it is called, and it rounds alike
wherever it stands. One iteration of PDHG on a batch of 64 programs of the size of `e226` took a third of the time.

With the flag that makes one kernel of a loop (README) XLA fails at a call that holds a kernel it would split between
threads ("Symbols not found: ParallelForkJoin", jaxlib 0.10.2): such a function stays where it is.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import jaxprs_in_params

MARK = "inlineable"  # the attribute of a call that XLA's inliner reads
LEAST = 2**13  # bytes of arguments below which a call costs more than it saves
SPLIT = 2**19  # bytes that a kernel moves from which XLA splits it between two threads
ONE_KERNEL = "small_while_loop_byte_threshold"  # of XLA_FLAGS


class Batch(NamedTuple):
    """What is known while a function is traced for one member of a batch.

    `members`: how many there are. `unsplit`: whether the program is compiled without kernels that are split between
    threads (`UNSPLIT`). `looped`: whether it is compiled without kernels of whole loops, whatever the flags say.
    """

    members: int = 1
    unsplit: bool = False
    looped: bool = False


UNSPLIT = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}  # options by which no kernel is split
ALONE = Batch()
_traced: ContextVar[Batch] = ContextVar("traced", default=ALONE)


@contextmanager
def traced_for(batch: Batch) -> Iterator[None]:
    """A scope in which functions are traced for one member of a batch: its arrays are so many times as large.

    Example:
        >>> with traced_for(Batch(8)):
        ...     print(traced().members)
        8
    """
    token = _traced.set(batch)
    try:
        yield
    finally:
        _traced.reset(token)


def traced() -> Batch:
    """The batch that is traced for, of one member outside every scope."""
    return _traced.get()


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of pytrees of arrays, kept apart from what calls it where the backend is a CPU and they are not small.

    Example:
        >>> import jax.numpy as jnp
        >>> print(apart(lambda x: 2 * x)(jnp.ones(2)))
        [2. 2.]
    """

    @cache
    def compiled(scope: Batch) -> Callable[..., Any]:
        return jax.jit(lambda *arguments: function(*arguments))  # what it traces to may depend on the scope

    @wraps(function)
    def call(*arguments: Any) -> Any:
        leaves = jax.tree.leaves(arguments)
        large = traced().members * sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves) >= LEAST
        if jax.default_backend() != "cpu" or not large:
            return function(*arguments)
        mine = compiled(traced())
        if not fits([*leaves, *jax.tree.leaves(jax.eval_shape(mine, *arguments))]):
            return function(*arguments)
        return called(mine, *arguments)

    return call


def called(compiled: Callable[..., Any], *arguments: Any) -> Any:
    """A call of a jitted function that is not inlined, whatever its size."""
    with set_xla_metadata(**{MARK: "false"}):
        return compiled(*arguments)


def holds_apart(jaxpr: Any) -> bool:
    """Whether a jaxpr has such a call, however deep."""
    inner = (sub for equation in jaxpr.eqns for sub in jaxprs_in_params(equation.params))
    return any(is_apart(equation) for equation in jaxpr.eqns) or any(holds_apart(sub) for sub in inner)


def one_kernel() -> bool:
    """Whether XLA was told to make one kernel of a small loop."""
    return not traced().looped and ONE_KERNEL in os.environ.get("XLA_FLAGS", "")


def is_apart(equation: Any) -> bool:
    """Whether an equation of a jaxpr is the call of such a function."""
    return equation.primitive.name in ("jit", "pjit") and MARK in (equation.ctx.xla_metadata or {})


def fits(values: Sequence[Any]) -> bool:
    """Whether XLA does not split the kernel of a function with these arguments and results: it is small.

    It counts what a kernel reads and writes. (Where more is computed than moved, as in products with a batch, it
    splits much smaller ones; `runtime/batching.py` keeps those out of the kernels of loops.)
    """
    return not one_kernel() or traced().unsplit or sum(v.size * np.dtype(v.dtype).itemsize for v in values) < SPLIT
