"""The saddle-point step, written once for every method in this library.

    x'   = primal(x, y)                     advance: the primal half, against the present multipliers
    seen = x' + theta (x' - x)              respond: extrapolate,
    y'   = move(y, violation(seen), step)            and move the multipliers inside their set

Violations are positive when broken and `move` ascends (design: signs). What differs between methods is which
functions are passed in:

| method                        | primal                  | violation    | move            | theta            |
|-------------------------------|-------------------------|--------------|-----------------|------------------|
| dual ascent                   | argmin of the Lagrangian| v(x)         | projection      | 0                |
| mirror descent                | best response, mirror   | v(x)         | mirror step     | 0                |
| augmented Lagrangian          | inner minimiser         | v(x)         | cone, penalty   | 0                |
| gradient descent-ascent       | one gradient step       | v(x)         | projection      | -1 or 0          |
| PDHG (Chambolle, Pock 2011)   | prox of a gradient step | -K seen      | prox            | 1                |

A solver calls `saddle_step`. A trainer that can only measure its violation by sampling starts half a beat later:
`respond` with the batch just drawn, then `advance` on the same batch. Nothing else in the library moves a multiplier.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from pdopt.types import Memory, Pair

NO_MEMORY = Memory()


def raw(violation: Any, memory: Memory) -> tuple[Any, Memory]:
    """The signal that passes the violation on unchanged."""
    return violation, memory


def multiplier(y: Any, memory: Memory) -> Any:
    """The offer that hands the multiplier itself to the primal half."""
    return y


class Parts(NamedTuple):
    """The functions that make a method out of the step.

    `primal(x, y, memory) -> (x', memory)`, `violation(seen, memory.primal) -> v`, `move(y, u, step) -> y'`,
    `signal(v, memory) -> (u, memory)`, `offer(y, memory) -> multiplier shown to the primal`.
    `theta` >= -1: the Python constants 0 and -1 remove the extrapolation from the compiled code.
    """

    primal: Callable[[Any, Any, Memory], tuple[Any, Memory]]
    violation: Callable[[Any, Any], Any]
    move: Callable[[Any, Any, Any], Any]
    theta: Any = 0.0
    signal: Callable[[Any, Memory], tuple[Any, Memory]] = raw
    offer: Callable[[Any, Memory], Any] = multiplier


def row(
    primal: Callable[[Any, Any], Any],
    violation: Callable[[Any], Any],
    move: Callable[[Any, Any, Any], Any],
    theta: Any = 0.0,
    signal: Callable[[Any, Memory], tuple[Any, Memory]] = raw,
) -> Parts:
    """Parts of a memoryless method: `primal(x, y)` and `violation(seen)` see no memory."""
    return Parts(lambda x, y, memory: (primal(x, y), memory), lambda seen, _: violation(seen), move, theta, signal)


def advance(parts: Parts, pair: Pair, memory: Memory) -> tuple[Any, Memory]:
    """The primal half: `x' = primal(x, offer(y))`."""
    return parts.primal(pair.x, parts.offer(pair.y, memory), memory)


def extrapolate(theta: Any, before: Any, after: Any) -> Any:
    """`after + theta (after - before)`, leaf by leaf; nothing is computed for the constants 0 and -1."""
    if isinstance(theta, (int, float)) and theta == 0:
        return after
    if isinstance(theta, (int, float)) and theta == -1:
        return before
    return jax.tree.map(lambda old, new: new + theta * (new - old), before, after)


def respond(parts: Parts, y: Any, seen: Any, step: Any, memory: Memory) -> tuple[Any, Memory]:
    """The dual half: `y' = move(y, signal(violation(seen)), step)`."""
    signal, memory = parts.signal(parts.violation(seen, memory.primal), memory)
    return parts.move(y, signal, step), memory


def saddle_step(parts: Parts, step: Any, pair: Pair, memory: Memory = NO_MEMORY) -> tuple[Pair, Memory]:
    """One step: `advance`, extrapolate by theta, `respond`. `step` is the step size of the dual half.

    Example:
        min x^2/2 subject to x = 1, by dual ascent (argmin of x^2/2 + y (1 - x) is y; the violation is 1 - x):

        >>> parts = row(primal=lambda x, y: y, violation=lambda x: 1 - x, move=lambda y, v, step: y + step * v)
        >>> pair, _ = saddle_step(parts, 0.5, Pair(0.0, 0.0))
        >>> pair
        Pair(x=0.0, y=0.5)
    """
    x, memory = advance(parts, pair, memory)
    y, memory = respond(parts, pair.y, extrapolate(parts.theta, pair.x, x), step, memory)
    return Pair(x, y), memory
