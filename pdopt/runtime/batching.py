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

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from pdopt.runtime.apart import Batch, called, holds_apart, is_apart, one_kernel, traced, traced_for
from pdopt.runtime.batch_rules import RULES, spread, widen
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
COSTLY = 8  # operations of a branch from which it is skipped where no member takes it: a tenth of a batch's time


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
    given = [Last(jnp.moveaxis(v, 0, -1)) if b else v for v, b in zip(leaves, jax.tree.leaves(batched))]
    found = within(function, size, jax.tree.unflatten(tree, given))
    return jax.tree.map(lambda v: jnp.moveaxis(_last(v, size).value, -1, 0), found, is_leaf=is_last)


class Last(NamedTuple):
    """An array that has the batch along its last axis, in a tree of arrays that have none."""

    value: Any


def within(function: Callable[..., Any], size: int, arguments: Any, unsplit: bool = False) -> Any:
    """`function` of trees in which a batch of `size` is marked by `Last`; what depends on the batch comes back so.

    What does not is computed once and comes back as it is, so that several programs may hand a batch to each other.

    Args:
        function, size, arguments: as of `along_last`, but for the axis and the marks.
        unsplit: whether what this is traced into is compiled by `apart.UNSPLIT`.

    Example:
        >>> shared, own = within(lambda a, x: (2 * a, a * x), 2, (3.0, Last(jnp.array([1.0, 2.0]))))
        >>> print(shared, own.value)
        6.0 [3. 6.]
    """
    leaves, tree = jax.tree.flatten(arguments, is_leaf=is_last)
    marks = [isinstance(leaf, Last) for leaf in leaves]
    values = [leaf.value if b else leaf for leaf, b in zip(leaves, marks)]
    single = [_of_one(v, b) for v, b in zip(values, marks)]
    flat = lambda *flat: function(*jax.tree.unflatten(tree, flat))
    with traced_for(Batch(size * traced().members, unsplit or traced().unsplit, traced().looped)):
        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*single)
        found, flags = _evaluate(closed, size, values, marks)
    return jax.tree.unflatten(jax.tree.structure(shapes), [Last(v) if b else v for v, b in zip(found, flags)])


def all_last(tree: Any, size: int) -> Any:
    """The tree with a batch in every leaf.

    Example:
        >>> print(all_last((Last(jnp.ones(2)), jnp.zeros(())), 2)[1].value)
        [0. 0.]
    """
    return jax.tree.map(lambda v: _last(v, size), tree, is_leaf=is_last)


def _last(leaf: Any, size: int) -> Last:
    return leaf if isinstance(leaf, Last) else Last(spread(leaf, False, size))


def is_last(leaf: Any) -> bool:
    """Whether a leaf has the batch."""
    return isinstance(leaf, Last)


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


def _of_one(value: Any, batched: bool) -> Any:
    """What a member sees of a leaf; Python's numbers stay weak."""
    kind = jax.typeof(value)
    shape = kind.shape[:-1] if batched else kind.shape
    return jax.ShapeDtypeStruct(shape, kind.dtype, weak_type=kind.weak_type)


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
    if primitive.name == "cond":
        return _choice(params, size, values, marks, alive)
    rule = RULES.get(primitive.name)
    found = None
    if primitive.name in ELEMENTWISE:
        shape = equation.outvars[0].aval.shape
        found = primitive.bind(*(widen(v, b, shape, size) for v, b in zip(values, marks)), **params)
    elif primitive.name in ALONG_AXES:
        found = primitive.bind(*values, **params)
    elif rule is not None:
        found = rule(equation, size, values, marks)
    if found is None:
        axes = [-1 if b else None for b in marks]
        found = jax.vmap(partial(primitive.bind, **params), in_axes=axes, out_axes=-1)(*values)
    found = list(found) if primitive.multiple_results else [found]
    return found, [True] * len(found)


def _choice(
    params: dict[str, Any], size: int, values: list[Any], marks: list[bool], alive: Any
) -> tuple[list[Any], list[bool]]:
    """A `cond`: each member's own branch, of those that somebody takes (and the cheap ones), or one that all take."""
    which, operands = values[0], values[1:]

    def taken(branch: ClosedJaxpr, members: Any, *operands: Any) -> list[Any]:
        found, flags = _evaluate(branch, size, operands, marks[1:], members)
        return [spread(v, b, size) for v, b in zip(found, flags)]

    branches = params["branches"]
    if not marks[0]:
        found = lax.switch(which, [partial(taken, branch, alive) for branch in branches], *operands)
        return list(found), [True] * len(found)
    found: list[Any] = []
    for k, branch in enumerate(branches):
        mine = which == k if alive is None else (which == k) & alive
        each = partial(taken, branch, mine, *operands)
        if len(branch.jaxpr.eqns) > COSTLY:  # not computed where no member takes it
            blank = [jnp.zeros((*aval.shape, size), aval.dtype) for aval in branch.out_avals]
            new = lax.cond(jnp.any(mine), each, lambda blank=blank: blank)
        else:
            new = each()
        keep = lambda new, old, mine=mine: lax.select(widen(mine, True, np.shape(new)[:-1], size), new, old)
        found = [keep(a, b) for a, b in zip(new, found)] if k else new
    return found, [True] * len(found)


def _inlined(equation: Any, size: int, values: list[Any], marks: list[bool], alive: Any) -> tuple[list[Any], Any]:
    inner = equation.params[CALLS[equation.primitive.name]]
    closed = ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner
    if not is_apart(equation):
        return _evaluate(closed, size, values, marks, alive)
    flags = _reaches(closed.jaxpr, marks)

    def whole(*values: Any) -> list[Any]:
        found, own = _evaluate(closed, size, values, marks, alive)
        return [spread(v, b, size) if f else v for v, b, f in zip(found, own, flags)]

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
        spread(v, b, size) if c else v for v, b, c in zip(values[tests + bodies :], marks[tests + bodies :], carry)
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
        after = [spread(v, b, size) if c else v for v, b, c in zip(after, flags, carry)]
        if not batched:
            return after
        keep = lambda new, old: lax.select(widen(goes, True, np.shape(old)[:-1], size), new, old)
        return [keep(new, old) if c else new for new, old, c in zip(after, state, carry)]

    if traced().unsplit or not (one_kernel() and holds_apart(params["body_jaxpr"].jaxpr)):
        return lax.while_loop(going, body, start), carry

    # XLA would make one kernel of the loop and split a product in it between threads, which fails ("Symbols not found:
    # ParallelForkJoin", jaxlib 0.10.2). A loop with a scatter stays a loop.
    def pinned(both: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
        state, pin = both
        return body(state), pin.at[pin % 2].add(1)

    pin = jnp.zeros(2, jnp.int32)
    return lax.while_loop(lambda both: going(both[0]) & (both[1][1] >= 0), pinned, (start, pin))[0], carry
