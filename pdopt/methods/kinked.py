"""A Newton step that keeps the kinks: the model of a penalised function in a box, minimised to its own precision.

    m(d) = <b, d> + <d, B d> / 2 + sum_i psi_i(v_i + <j_i, d>),      lower - x <= d <= upper - x

psi is the penalty, whose slope bends where a row becomes active: a piecewise quadratic, like the box. One Newton step
with the rows and bounds that are active at x ends at the first bend; where the valley runs along bends (HS106, HS116)
hundreds of such steps zigzag, each of which looks at f and v. Here the bends are crossed in the model, which costs
products with b, B and J alone. Without a bend on the way it is the usual step: one factorisation, then a look.

A piece tries the Newton point of what is active, moved into the box, and the minimiser of m along the straight way to
it as far as the box allows; the lower of both is the next point. A variable at a bound that the way crosses is held.

Where `B + J' psi'' J` is not positive definite on the free variables at d = 0, B gives way to a matrix with its
diagonal raised until it dominates each row, which makes m convex.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.methods.small_factors import cholesky, cholesky_solve
from pdopt.problems.nonlinear_view import Bent, Look

# Pieces of one model; a batch waits for its member with the most, and what is left is found by the next Newton step.
BENDS = 4
SHARES = 0.5 ** np.arange(24)  # of the way along a piece at which its slope is looked at


class Walk(NamedTuple):
    """A point of the model: the step, m, its gradient, rows and penalty there; `blocked`: variables held at bounds.

    `count`: pieces so far; `over`: whether the walk ends.
    """

    step: Any
    value: Any
    gradient: Any
    rows: Any
    bent: Bent
    blocked: Any
    count: Any
    over: Any


def outward(model: Any, x: Any, g: Any, error: Any) -> Any:
    """Variables that stay at (or go to) a bound: within `min(error, 1e-3)` of it, with the gradient pointing out.

    `error`: how far the point is from stationary, `|x - clip(x - M g, lower, upper)|_inf` for a positive diagonal M.
    """
    near = jnp.minimum(error, 1e-3)
    return ((x <= model.lower + near) & (g > 0)) | ((x >= model.upper - near) & (g < 0))


def settle(model: Any, x: Any, g: Any, direction: Any, held: Any) -> Any:
    """The direction with the held variables sent to their bounds."""
    bound = jnp.where(g > 0, model.lower, model.upper)
    return jnp.where(held, jnp.where(jnp.isfinite(bound), bound, x) - x, direction)


def newton_step(model: Any, x: Any, look: Look, error: Any, skip: Any = False, bends: int = BENDS) -> tuple[Any, Any]:
    """The minimiser of the model around x, and whether it lacked curvature: how far to go is then for the search.

    Args:
        model: `lower`, `upper`, and `bent(rows) -> Bent`.
        x: `(n,)`. skip: take no step. look: what `model.expansion(x)` found. error: the projected gradient at x.
        bends: pieces that are looked at; with enough of them the minimum is exact.
    """
    tidy = lambda part: jnp.where(jnp.isfinite(part), part, 0)
    look = Look(*map(tidy, look))
    eps = jnp.finfo(x.dtype).eps
    box = _Box(model.lower - x, model.upper - x)
    bent = model.bent(look.rows)
    base = look.gradient - look.jacobian.T @ bent.slope

    def hessian(curvature: Any, bent: Bent, held: Any) -> Any:
        """Of one piece, on the free variables; the identity, times its size, on the others."""
        whole = curvature + look.jacobian.T @ (bent.bend[:, None] * look.jacobian)
        whole = jnp.where(held[:, None] | held[None, :], 0, whole)
        size = jnp.max(jnp.abs(whole), initial=0)
        return whole + jnp.diag(jnp.where(held, jnp.where(size > 0, size, 1), 0)), size

    # Without curvature a Newton step has no length: one of 1e3 times x then, so that an unbounded ray is soon seen.
    far = jnp.maximum(1, jnp.max(jnp.abs(x), initial=0))
    least = 1e-3 * jnp.max(jnp.abs(look.gradient), initial=0) / far
    first, size = hessian(look.curvature, bent, outward(model, x, look.gradient, error))
    shift = jnp.where(size < least, least, 0)
    convex = _sound(_factor(first, shift), size)
    curvature = jnp.where(convex, look.curvature, _dominant(look.curvature))

    def at(step: Any) -> Walk:
        rows = look.rows + look.jacobian @ step
        bent = model.bent(rows)
        pull = curvature @ step
        value = base @ step + step @ pull / 2 + jnp.sum(bent.value)
        gradient = base + pull + look.jacobian.T @ bent.slope
        return Walk(step, value, gradient, rows, bent, jnp.zeros(x.shape, bool), jnp.int32(0), jnp.asarray(False))

    def scaled(walk: Walk) -> Any:
        """The gradient over the diagonal of the Hessian: how far each variable alone would go."""
        diagonal = jnp.diagonal(curvature) + walk.bent.bend @ look.jacobian**2
        return walk.gradient / jnp.where(diagonal > 0, diagonal, 1)

    # Newton steps in x converge fast only where those in d are better than they; what cancels in the gradient rounds.
    terms = jnp.abs(base) + jnp.abs(look.jacobian.T) @ jnp.abs(bent.slope)
    goal = jnp.maximum(jnp.minimum(0.01, error) * error, 10 * eps * jnp.max(terms, initial=0))

    def piece(walk: Walk) -> Walk:
        held = outward(box, walk.step, walk.gradient, _residual(box, walk.step, scaled(walk)))
        still = held | walk.blocked
        matrix, size = hessian(curvature, walk.bent, still)
        factor = _definite(matrix, ~still, size, shift, least)
        way = cholesky_solve(factor, -jnp.where(still, 0, walk.gradient))
        way = jnp.where(jnp.all(jnp.isfinite(way)), way, -walk.gradient)
        way = jnp.where(walk.blocked, 0, settle(box, walk.step, walk.gradient, way, held))
        # How far each variable may go along the way; one at its bound that would leave it is held from now on.
        room = jnp.where(way == 0, jnp.inf, (jnp.where(way < 0, box.lower, box.upper) - walk.step) / way)
        stuck = ~still & (room <= 100 * eps)
        clipped = at(jnp.clip(walk.step + way, box.lower, box.upper))
        straight = at(along(walk, way, jnp.clip(jnp.min(room, initial=1), 0, 1)))
        found = jax.tree.map(lambda a, b: jnp.where(straight.value < clipped.value, a, b), straight, clipped)
        rounding = 10 * eps * jnp.abs(walk.value)
        lower = found.value < walk.value - rounding
        found = jax.tree.map(lambda a, b: jnp.where(lower, a, b), found, walk)
        blocked = walk.blocked | stuck
        rest = jnp.abs(found.step - jnp.clip(found.step - found.gradient, box.lower, box.upper))
        # Where only variables that were held move the gradient, they are let go.
        free = jnp.max(jnp.where(blocked, 0, rest), initial=0) > goal
        over = (jnp.max(rest, initial=0) <= goal) | ~(lower | jnp.any(stuck))
        return found._replace(blocked=blocked & free, count=walk.count + 1, over=over)

    def along(walk: Walk, way: Any, far: Any) -> Any:
        """`step + t way` with the least m, 0 <= t <= far: where the slope of m, which increases, changes its sign."""
        across, pull = look.jacobian @ way, curvature @ way
        smooth, bend = (walk.gradient - look.jacobian.T @ walk.bent.slope) @ way, way @ pull

        def looks(t: Any) -> tuple[Any, Any, Any]:
            """m, its slope and its bend at a length."""
            bent = model.bent(walk.rows + t * across)
            value = t * smooth + t**2 * bend / 2 + jnp.sum(bent.value)
            return value, smooth + t * bend + bent.slope @ across, bend + bent.bend @ across**2

        lengths = far * jnp.asarray(SHARES, x.dtype)
        slopes = jax.vmap(looks)(lengths)[1]
        ends = jnp.stack([jnp.max(jnp.where(slopes <= 0, lengths, 0)), jnp.min(jnp.where(slopes > 0, lengths, far))])
        _, slope, steep = jax.vmap(looks)(ends)
        # Of Newton's steps from both ends one is exact where at most one bend lies between; the nearer end goes down.
        steps = jnp.clip(ends - slope / jnp.where(steep > 0, steep, 1), ends[0], ends[1])
        lengths = jnp.concatenate([jnp.where(steep > 0, steps, ends), ends[:1]])
        t = lengths[jnp.argmin(jax.vmap(looks)(lengths)[0])]
        return jnp.clip(walk.step + t * way, box.lower, box.upper)

    begin = at(jnp.zeros_like(x))._replace(over=jnp.asarray(skip))
    walk = lax.while_loop(lambda w: ~w.over & (w.count < bends), piece, begin)
    return walk.step, ~convex | (shift > 0)


class _Box(NamedTuple):
    lower: Any
    upper: Any


def _residual(box: Any, x: Any, g: Any) -> Any:
    return jnp.max(jnp.abs(x - jnp.clip(x - g, box.lower, box.upper)), initial=0)


def _factor(matrix: Any, tau: Any) -> Any:
    return cholesky(matrix + tau * jnp.eye(matrix.shape[0], dtype=matrix.dtype))


def _sound(factor: Any, size: Any) -> Any:
    # A pivot of the size of its rounding is a direction without curvature, along which a step would be noise.
    floor = factor.shape[0] * jnp.finfo(factor.dtype).eps * size
    return jnp.all(jnp.isfinite(factor)) & (jnp.min(jnp.diagonal(factor)) ** 2 > floor)


def _dominant(matrix: Any) -> Any:
    """With each diagonal entry raised to the sum of the others' sizes, where it is less: no eigenvalue is negative."""
    diagonal = jnp.diagonal(matrix)
    others = jnp.sum(jnp.abs(matrix), axis=1) - jnp.abs(diagonal)
    return matrix + jnp.diag(jnp.maximum(others - diagonal, 0))


def _definite(matrix: Any, free: Any, size: Any, shift: Any, least: Any) -> Any:
    """The factor of `matrix + tau I`, tau >= shift the first of a growing row that makes it positive definite."""
    tiny = jnp.finfo(matrix.dtype)
    whole = _factor(matrix, shift)
    # A factor that exists is flat in some direction; one that does not met negative curvature.
    share = jnp.where(jnp.all(jnp.isfinite(whole)), tiny.eps**0.75, 1e-6)
    bump = jnp.maximum(jnp.maximum(least, share * size), tiny.tiny).astype(matrix.dtype)

    def again(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        tau = jnp.maximum(10 * carry[0], bump)
        return tau, _factor(matrix, tau)

    running = lambda c: ~_sound(c[1], size) & (c[0] <= 1e8 * (size + least))
    return lax.while_loop(running, again, (jnp.asarray(shift, matrix.dtype), whole))[1]
