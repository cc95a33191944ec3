"""`vmap` with the batch along the *last* axis, so that a gather reads a row of the batch and not one number.

`jax.vmap` carries the batch of a loop in front: `x[index]` then reads `(B, n)` arrays one scattered number at a time,
as often as a loop over the members would. With `(n, B)` arrays each index is read once and brings B neighbours: the
product of a sparse matrix with one vector becomes its product with a matrix. Measured on `e226` (2 600 entries,
float64, one core, 64 members): 3.4 us a pair of products and member in front, 0.55 us at the end.

`minor(function)` is `function`; under `jax.vmap` its jaxpr is evaluated with every batched value kept batch-last.
A member rounds as it does alone wherever its function has no sum of two bare products (`operators/sums.py`), so that
whole runs of thousands of iterations are the same in a batch of any size.

Elementwise operations, reductions, gathers and loops have rules here, whatever else goes through its own `vmap` rule.
What is not batched is computed once (with `width`: once a group). Members of a loop whose own condition is false are
frozen, as in `jax.vmap`; and loops inside it do not go on for them, as they do there: what a frozen member would
compute is thrown away.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from pdopt.runtime.apart import called, holds_apart, is_apart, one_kernel
from pdopt.runtime.precision import precision_scope

_SAME_SHAPE = """abs add and atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf exp exp2 expm1 floor
ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow real reduce_precision rem
round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sqrt square stop_gradient sub tan
tanh xor"""
ELEMENTWISE = frozenset(_SAME_SHAPE.split())
_REDUCTIONS = ("sum", "max", "min", "prod", "and", "or")
ALONG_AXES = frozenset((*(f"reduce_{kind}" for kind in _REDUCTIONS), "argmax", "argmin"))
# A function with a rule of its own for batches (`custom_vmap`) is no mere call.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
         "remat": "jaxpr", "checkpoint": "jaxpr"}  # fmt: skip
PRODUCT = 4096  # multiplications of a member up to which a batch of products is written as a sum


def minor(function: Callable[..., Any], width: int | None = None) -> Callable[..., Any]:
    """`function` of pytrees of arrays, whose `vmap` carries the batch along the last axis inside.

    Args:
        function: traceable, arrays in and arrays out.
        width: members that a CPU takes at a time, one group after the other; None for all at once, as accelerators
            always do. See `in_turns`.

    Example:
        >>> total = minor(lambda A, x: jnp.sum(A @ x))
        >>> print(total(jnp.eye(2), jnp.ones(2)), jax.vmap(total, (None, 0))(jnp.eye(2), jnp.ones((3, 2))))
        2.0 [2. 2. 2.]
    """

    @custom_vmap
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    @call.def_vmap
    def rule(size: int, batched: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        with precision_scope(arguments):
            # Asked while tracing: groups are right anywhere, and a program that holds both ways is traced twice.
            if width is None or size <= width or jax.default_backend() != "cpu":
                out = along_last(function, size, batched, arguments)
            else:
                out = in_turns(function, size, batched, arguments, width=width)
        return out, jax.tree.map(lambda _: True, out)

    return call


def along_last(function: Callable[..., Any], size: int, batched: Any, arguments: Any) -> Any:
    """`vmap(function)` of arguments whose leaves marked in `batched` have the batch of `size` in front.

    Example:
        >>> print(along_last(lambda a, x: a * x, 2, (False, True), (3.0, jnp.array([1.0, 2.0]))))
        [3. 6.]
    """
    leaves, tree = jax.tree.flatten(arguments)
    marks = jax.tree.leaves(batched)
    single = [_of_one(v, int(b)) for v, b in zip(leaves, marks)]
    closed, shapes = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(tree, flat)), return_shape=True)(*single)
    values = [jnp.moveaxis(v, 0, -1) if b else v for v, b in zip(leaves, marks)]
    found, flags = _evaluate(closed, size, values, marks)
    out = [jnp.moveaxis(_spread(v, b, size), -1, 0) for v, b in zip(found, flags)]
    return jax.tree.unflatten(jax.tree.structure(shapes), out)


def in_turns(function: Callable[..., Any], size: int, batched: Any, arguments: Any, *, width: int) -> Any:
    """`along_last` of groups of at most `width` members, one group after the other, each as large as the others.

    The loops of a group go on until its own slowest member ends, not that of the whole batch, and its arrays stay in
    the cache nearest to a core. Groups overlap where `size` is no multiple of theirs.

    Example:
        >>> print(in_turns(lambda a, x: a * x, 3, (False, True), (3.0, jnp.array([1.0, 2.0, 4.0])), width=2))
        [ 3.  6. 12.]
    """
    groups = -(-size // width)
    each = -(-size // groups)
    whole = (groups - 1) * each
    leaves, tree = jax.tree.flatten(arguments)
    marks = jax.tree.leaves(batched)

    def split(v: Any) -> Any:
        return jnp.concatenate([v[:whole], v[size - each :]]).reshape(groups, each, *v.shape[1:])

    def join(v: Any) -> Any:
        return jnp.concatenate([v[:-1].reshape(whole, *v.shape[2:]), v[-1, each - (size - whole) :]])

    def run(group: list[Any]) -> Any:
        parts = iter(group)
        merged = [next(parts) if b else v for v, b in zip(leaves, marks)]
        return along_last(function, each, batched, jax.tree.unflatten(tree, merged))

    found = lax.map(run, [split(v) for v, b in zip(leaves, marks) if b])
    return jax.tree.map(join, found)


def _of_one(value: Any, batched: int) -> Any:
    """What a member sees of a leaf; Python's numbers stay weak."""
    kind = jax.typeof(value)
    return jax.ShapeDtypeStruct(kind.shape[batched:], kind.dtype, weak_type=kind.weak_type)


def _spread(value: Any, batched: Any, size: int) -> Any:
    """The value with a last axis of the batch."""
    if batched:
        return value
    shape = np.shape(value)
    return lax.broadcast_in_dim(value, (*shape, size), tuple(range(len(shape))))


def _widen(value: Any, batched: Any, shape: tuple[int, ...], size: int) -> Any:
    """An operand of an elementwise operation, of shape `shape` or scalar, as `(*shape, size)`."""
    rank = np.ndim(value) - int(batched)
    if rank == len(shape):
        return _spread(value, batched, size)
    return lax.broadcast_in_dim(value, (*shape, size), (len(shape),) if batched else ())


def _evaluate(
    closed: ClosedJaxpr, size: int, values: Sequence[Any], marks: Sequence[Any], alive: Any = None
) -> tuple[list[Any], Any]:
    """Results and which of them are batched; `alive`: the members whose results are read, `(size,)`, None for all."""
    jaxpr = closed.jaxpr
    held: dict[Any, tuple[Any, bool]] = {}
    held.update({var: (value, False) for var, value in zip(jaxpr.constvars, closed.consts)})
    held.update({var: (value, bool(mark)) for var, value, mark in zip(jaxpr.invars, values, marks)})

    def read(var: Any) -> tuple[Any, bool]:
        return (np.asarray(var.val, getattr(var.aval, "dtype", None)), False) if isinstance(var, Literal) else held[var]

    last = {var: place for place, equation in enumerate(jaxpr.eqns) for var in equation.invars if _is_var(var)}
    kept = {var for var in jaxpr.outvars if _is_var(var)}
    for place, equation in enumerate(jaxpr.eqns):
        pairs = [read(var) for var in equation.invars]
        found, flags = _apply(equation, size, [v for v, _ in pairs], [b for _, b in pairs], alive)
        held.update({var: (value, flag) for var, value, flag in zip(equation.outvars, found, flags)})
        for var in equation.invars:
            if _is_var(var) and last[var] == place and var not in kept:
                held.pop(var, None)
    pairs = [read(var) for var in jaxpr.outvars]
    return [v for v, _ in pairs], [b for _, b in pairs]


def _is_var(var: Any) -> bool:
    return not isinstance(var, Literal)


def _apply(equation: Any, size: int, values: list[Any], marks: list[bool], alive: Any) -> tuple[list[Any], list[bool]]:
    """One operation: its results, and which of them are batched."""
    primitive, params = equation.primitive, equation.params
    if not any(marks):
        found = (
            primitive.bind(*values, **params)
            if primitive.name not in CALLS
            else _inlined(equation, size, values, marks, alive)
        )
        found = found[0] if primitive.name in CALLS else found
        found = list(found) if primitive.multiple_results else [found]
        return found, [False] * len(found)
    if primitive.name in CALLS:
        return _inlined(equation, size, values, marks, alive)
    if primitive.name == "while":
        return _loop(params, size, values, marks, alive)
    rule = RULES.get(primitive.name)
    found = None
    if primitive.name in ELEMENTWISE:
        shape = equation.outvars[0].aval.shape
        found = primitive.bind(*(_widen(v, b, shape, size) for v, b in zip(values, marks)), **params)
    elif primitive.name in ALONG_AXES:
        found = primitive.bind(*values, **params)
    elif rule is not None:
        found = rule(equation, size, values, marks)
    if found is None:
        axes = [-1 if b else None for b in marks]
        found = jax.vmap(partial(primitive.bind, **params), in_axes=axes, out_axes=-1)(*values)
    found = list(found) if primitive.multiple_results else [found]
    return found, [True] * len(found)


def _inlined(equation: Any, size: int, values: list[Any], marks: list[bool], alive: Any) -> tuple[list[Any], Any]:
    inner = equation.params[CALLS[equation.primitive.name]]
    closed = ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner
    if not is_apart(equation):
        return _evaluate(closed, size, values, marks, alive)
    flags = _reaches(closed.jaxpr, marks)

    def whole(*values: Any) -> list[Any]:
        found, own = _evaluate(closed, size, values, marks, alive)
        return [_spread(v, b, size) if f else v for v, b, f in zip(found, own, flags)]

    return called(jax.jit(whole), *values), flags


def _reaches(jaxpr: Any, marks: Sequence[Any]) -> list[bool]:
    """Which outputs of a jaxpr depend on a marked input."""
    seen = {var for var, mark in zip(jaxpr.invars, marks) if mark}
    for equation in jaxpr.eqns:
        flags = [_is_var(var) and var in seen for var in equation.invars]
        if not any(flags):
            continue
        if equation.primitive.name in CALLS:
            inner = equation.params[CALLS[equation.primitive.name]]
            outs = _reaches(inner if isinstance(inner, Jaxpr) else inner.jaxpr, flags)
        elif equation.primitive.name == "while":
            outs = _carried(equation.params, flags)
        else:
            outs = [True] * len(equation.outvars)
        seen.update(var for var, flag in zip(equation.outvars, outs) if flag)
    return [_is_var(var) and var in seen for var in jaxpr.outvars]


def _carried(params: dict[str, Any], marks: Sequence[Any]) -> list[bool]:
    """Which parts of a loop's carry are batched: all that ever depend on the batch, or all if the condition does."""
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body, carry = marks[:tests], marks[tests : tests + bodies], list(marks[tests + bodies :])
    while True:
        test = _reaches(params["cond_jaxpr"].jaxpr, [*of_test, *carry])[0]
        after = _reaches(params["body_jaxpr"].jaxpr, [*of_body, *carry])
        grown = [test or before or now for before, now in zip(carry, after)]
        if grown == carry:
            return carry
        carry = grown


def _loop(
    params: dict[str, Any], size: int, values: list[Any], marks: list[bool], alive: Any
) -> tuple[list[Any], list[bool]]:
    """A while loop that runs until no member that is alive goes on; members that have ended keep what they had."""
    tests, bodies = params["cond_nconsts"], params["body_nconsts"]
    carry = _carried(params, marks)
    of_test, of_body = values[:tests], values[tests : tests + bodies]
    start = [
        _spread(v, b, size) if c else v for v, b, c in zip(values[tests + bodies :], marks[tests + bodies :], carry)
    ]

    def test(state: list[Any]) -> tuple[Any, bool]:
        found, flags = _evaluate(params["cond_jaxpr"], size, [*of_test, *state], [*marks[:tests], *carry], alive)
        if flags[0] and alive is not None:
            return found[0] & alive, True
        return found[0], flags[0]

    def going(state: list[Any]) -> Any:
        value, batched = test(state)
        return jnp.any(value) if batched else value

    def body(state: list[Any]) -> list[Any]:
        goes, batched = test(state)
        body_marks = [*marks[tests : tests + bodies], *carry]
        inner = goes if batched else alive
        after, flags = _evaluate(params["body_jaxpr"], size, [*of_body, *state], body_marks, inner)
        after = [_spread(v, b, size) if c else v for v, b, c in zip(after, flags, carry)]
        if not batched:
            return after
        keep = lambda new, old: lax.select(_widen(goes, True, np.shape(old)[:-1], size), new, old)
        return [keep(new, old) if c else new for new, old, c in zip(after, state, carry)]

    if not (one_kernel() and holds_apart(params["body_jaxpr"].jaxpr)):
        return lax.while_loop(going, body, start), carry

    # XLA would make one kernel of the loop and split a product in it between threads, which fails ("Symbols not found:
    # ParallelForkJoin", jaxlib 0.10.2). A loop with a scatter stays a loop.
    def pinned(both: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
        state, pin = both
        return body(state), pin.at[pin % 2].add(1)

    pin = jnp.zeros(2, jnp.int32)
    return lax.while_loop(lambda both: going(both[0]) & (both[1][1] >= 0), pinned, (start, pin))[0], carry


def _broadcast(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    shape, dims = equation.params["shape"], equation.params["broadcast_dimensions"]
    return lax.broadcast_in_dim(values[0], (*shape, size), (*dims, len(shape))) if len(values) == 1 else None


def _reshape(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    if equation.params.get("dimensions") is not None or len(values) > 1:
        return None
    return lax.reshape(values[0], (*equation.outvars[0].aval.shape, size))


def _reduce(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    """A reduction of several arrays at once; they begin with numbers that all members share."""
    half = len(values) // 2
    if any(marks[half:]):
        return None
    arrays = [_spread(v, b, size) for v, b in zip(values[:half], marks[:half])]
    return equation.primitive.bind(*arrays, *values[half:], **equation.params)


def _transpose(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    order = equation.params["permutation"]
    return lax.transpose(values[0], (*order, len(order)))


def _concatenate(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    return lax.concatenate([_spread(v, b, size) for v, b in zip(values, marks)], equation.params["dimension"])


def _slice(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    p = equation.params
    strides = None if p["strides"] is None else (*p["strides"], 1)
    return lax.slice(values[0], (*p["start_indices"], 0), (*p["limit_indices"], size), strides)


def _pad(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    if marks[1]:
        return None
    return lax.pad(values[0], values[1], (*equation.params["padding_config"], (0, 0, 0)))


def _gather(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    p = equation.params
    if marks[1]:
        return None
    dims, rank = p["dimension_numbers"], len(equation.outvars[0].aval.shape)
    dims = dims._replace(offset_dims=(*dims.offset_dims, rank))
    return equation.primitive.bind(
        *values, **{**p, "dimension_numbers": dims, "slice_sizes": (*p["slice_sizes"], size)}
    )


def _scatter(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    operand, index, update = values
    if marks[1]:
        return None
    p, rank = equation.params, np.ndim(update) - int(marks[2])
    dims = p["dimension_numbers"]
    dims = dims._replace(update_window_dims=(*dims.update_window_dims, rank))
    both = (_spread(operand, marks[0], size), index, _spread(update, marks[2], size))
    return equation.primitive.bind(*both, **{**p, "dimension_numbers": dims})


def _dot(equation: Any, size: int, values: list[Any], marks: list[bool]) -> Any:
    """Inner products member by member; a matrix times a batch of vectors is one product of matrices."""
    p = equation.params
    (left, right), alone = p["dimension_numbers"][0], p["dimension_numbers"][1] == ((), ())
    ranks = [np.ndim(v) - int(b) for v, b in zip(values, marks)]
    kinds = {jnp.result_type(v) for v in values}
    if not alone or len(kinds) > 1 or p["preferred_element_type"] not in (None, *kinds):
        return None
    if ranks == [1, 1] and left == right == (0,):
        a, b = (_spread(v, m, size) for v, m in zip(values, marks))
        return jnp.sum(a * b, axis=0)
    if all(marks):
        return _products(values, left, right, p["preferred_element_type"])
    if marks[0]:
        if ranks[0] > 1 and ranks[1] > len(right) and ranks[0] > len(left):
            return None
        values, left, right = values[::-1], right, left
    return lax.dot_general(values[0], values[1], ((left, right), ((), ())), p["precision"], p["preferred_element_type"])


def _products(values: list[Any], left: Sequence[int], right: Sequence[int], kind: Any) -> Any:
    """Small matrices times small matrices, all of them batched: one fused sum, where a product takes each by itself."""
    a, b = values
    rest = [d for d in range(a.ndim - 1) if d not in left], [d for d in range(b.ndim - 1) if d not in right]
    a = a.transpose(*left, *rest[0], a.ndim - 1)
    b = b.transpose(*right, *rest[1], b.ndim - 1)
    inner, outer, own = a.shape[: len(left)], a.shape[len(left) : -1], b.shape[len(right) : -1]
    if math.prod((*inner, *outer, *own)) > PRODUCT or not inner:
        return None
    a = a.reshape(*inner, *outer, *(1 for _ in own), a.shape[-1])
    b = b.reshape(*inner, *(1 for _ in outer), *own, b.shape[-1])
    return jnp.sum(a * b, axis=tuple(range(len(inner)))).astype(kind or a.dtype)


RULES = {
    "broadcast_in_dim": _broadcast, "reshape": _reshape, "squeeze": _reshape, "expand_dims": _reshape,
    "transpose": _transpose, "concatenate": _concatenate, "slice": _slice, "pad": _pad, "gather": _gather,
    "scatter": _scatter, "scatter-add": _scatter, "scatter_add": _scatter, "dot_general": _dot, "reduce": _reduce,
}  # fmt: skip
