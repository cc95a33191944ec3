"""A nonlinear program as the method of multipliers sees it: flat, scaled, with a penalised Lagrangian to minimise.

    z = x / d,   f_s = s_f f,   v_s = s v,   y_s = s_f y / s

d, s_f and s are chosen once, at the start (`Rescaling`). The penalised Lagrangian is that of Powell, Hestenes and
Rockafellar, without slacks (constrained spec, section 2):

    A(z; y, rho) = f_s + sum over active i of v_i (y_i + rho v_i / 2)  -  sum over the others of y_i^2 / (2 rho)

with i active where it is an equality or `y_i + rho v_i > 0`. Its gradient is that of the Lagrangian at the multipliers
that the move makes next, `y + rho v` and `max(0, y + rho v)`; the form above loses no digits where two squares cancel.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pdopt.geometry.moves import Euclidean
from pdopt.geometry.sets import Box
from pdopt.problems.nonlinear import Multipliers, NonlinearProgram
from pdopt.types import Pair, record

SAFE = 1e20  # multipliers stay within these bounds (ALGENCAN: Andreani, Birgin, Martinez, Schuverdt 2007)
STEEP = 100.0  # gradients are scaled down to this size (Ipopt: Waechter, Biegler 2006, section 3.8)


class Look(NamedTuple):
    """What a model is made of at x.

    Attributes:
        value, gradient: of the whole function; `(n,)`.
        curvature: `(n, n)`, B. jacobian: `(m, n)`, of the rows under the penalty. rows: `(m,)`, v(x).
    """

    value: Any
    gradient: Any
    curvature: Any
    jacobian: Any
    rows: Any


class Bent(NamedTuple):
    """The penalty of each row, with its slope and its second derivative (that of the side where it stands)."""

    value: Any
    slope: Any
    bend: Any


@record
class Rescaling:
    """Units of a run, from the gradients at its start.

    Attributes:
        variables: `(n,)`, d; objective: s_f; rows: `(m,)`, s.
    """

    variables: Any
    objective: Any
    rows: Any


@record
class NonlinearView:
    """Flat and scaled; see the head of this file.

    Attributes:
        program: the user's problem.
        like: a tree of zeros like the violation.
        lower, upper: `(n,)`, bounds of z.
        units: the scaling.
    """

    program: NonlinearProgram
    like: Multipliers
    lower: Any
    upper: Any
    units: Rescaling

    rests = True  # a step whose multipliers wait for a larger penalty may leave a pair where it is

    @staticmethod
    def make(program: NonlinearProgram, variables: bool = True, rows: bool = True) -> "NonlinearView":
        """The view of a program, scaled by its gradients at `program.start` (moved between its bounds)."""
        shapes = program.pair_shapes().y
        like = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        low, high = (ravel_pytree(b)[0] for b in (program.lower, program.upper))
        units = _rescaling(program, jnp.clip(ravel_pytree(program.start)[0], low, high), variables, rows)
        d = units.variables
        return NonlinearView(program, like, low / d, high / d, units)

    @property
    def equalities(self) -> Any:
        """`(m,)`: which rows are equalities."""
        flags = Multipliers(*(jax.tree.map(lambda leaf, k=k: np.full(leaf.shape, k == 0), part)
                              for k, part in enumerate(self.like)))  # fmt: skip
        return np.concatenate([np.zeros(0, bool), *(leaf.ravel() for leaf in jax.tree.leaves(flags))])

    def start(self) -> Pair:
        """The user's start, and no multipliers."""
        return self.into(Pair(self.program.start, self.like))

    def into(self, pair: Pair) -> Pair:
        """A pair in the user's units, flat, scaled and moved into its sets."""
        x, y = ravel_pytree(pair.x)[0], ravel_pytree(pair.y)[0].astype(self.lower.dtype)
        scaled = y * self.units.objective / self.units.rows
        return Pair(jnp.clip(x / self.units.variables, self.lower, self.upper), self._set().project(scaled))

    def back(self, pair: Pair) -> Pair:
        """A pair of this view in the user's units and shapes; x exactly between its bounds."""
        program = self.program
        x = ravel_pytree(program.start)[1](pair.x * self.units.variables)
        y = ravel_pytree(self.like)[1]((pair.y * self.units.rows / self.units.objective).astype(self._kind()))
        return Pair(jax.tree.map(jnp.clip, x, program.lower, program.upper), y)

    def measured(self, z: Any) -> tuple[Any, Any]:
        """`(f_s, v_s)` at z: a scalar and `(m,)`."""
        x = ravel_pytree(self.program.start)[1](z * self.units.variables)
        v = ravel_pytree(self.program.violation(x))[0].astype(z.dtype)
        return self.units.objective * self.program.objective(x), self.units.rows * v

    def violation(self, z: Any) -> Any:
        """`v_s`, positive when broken."""
        return self.measured(z)[1]

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """`y + step v`, kept `>= 0` for inequalities and within the safeguard for all."""
        return Euclidean(self._set())(y, v, step)

    def _set(self) -> Box:
        zero = jnp.zeros(self.units.rows.shape, self.lower.dtype)
        return Box(jnp.where(self.equalities, -SAFE, zero), zero + SAFE)

    def _kind(self) -> Any:
        return ravel_pytree(self.like)[0].dtype

    def model(self, y: Any, rho: Any, hold: Any) -> "Penalised":
        """The penalised Lagrangian at y, for an inner minimiser; `hold`: rows are curved by y as it is."""
        return Penalised(self, y, rho, hold)

    def stiffness(self, z: Any) -> Any:
        """ALGENCAN's first penalty, `10 max(1, |f|) / max(1, |broken|^2 / 2)` within [1e-8, 1e8], at z."""
        f, v = self.measured(z)
        broken = jnp.where(self.equalities, v, jnp.maximum(v, 0))
        first = 10 * jnp.maximum(1, jnp.abs(f)) / jnp.maximum(1, jnp.sum(broken**2) / 2)
        return jnp.where(jnp.isfinite(first), jnp.clip(first, 1e-8, 1e8), 1.0)


@record
class Penalised:
    """The penalised Lagrangian of a view at fixed multipliers, in the form that inner minimisers consume.

    Attributes:
        view: the scaled program; y: `(m,)`; rho: the penalty.
        hold: whether rows are curved by y as it is, and not by what it moves to (a polishing step).
    """

    view: NonlinearView
    y: Any
    rho: Any
    hold: Any

    @property
    def lower(self) -> Any:
        """`(n,)`."""
        return self.view.lower

    @property
    def upper(self) -> Any:
        """`(n,)`."""
        return self.view.upper

    def value(self, z: Any) -> Any:
        """`A(z; y, rho)`."""
        f, v = self.view.measured(z)
        return f + jnp.sum(self.bent(v).value)

    def bent(self, rows: Any) -> Bent:
        """The penalty of each row at `rows`, with its slope (the moved multiplier) and second derivative."""
        moved = self.y + self.rho * rows
        active = self.view.equalities | (moved > 0)
        value = jnp.where(active, rows * (self.y + moved) / 2, -(self.y**2) / (2 * self.rho))
        return Bent(value, jnp.where(active, moved, 0), jnp.where(active, self.rho, 0).astype(rows.dtype))

    def expansion(self, z: Any) -> Look:
        """Value and gradient of A at z; `H(y + rho v)`, J and v, dense, of which a model of A is made.

        With `hold` the curvature is that of the optimality conditions, `H(y)`.
        """
        view = self.view

        def stacked(z: Any) -> Any:
            f, v = view.measured(z)
            return jnp.concatenate([f[None], v])

        rows = jax.jacfwd if z.size <= self.y.size + 1 else jax.jacrev
        both, slopes = stacked(z), rows(stacked)(z)
        bent = self.bent(both[1:])
        curved = jnp.where(self.hold, self.y, bent.slope)
        hessian = jax.hessian(lambda z: stacked(z) @ jnp.concatenate([jnp.ones(1, z.dtype), curved]))(z)
        return Look(both[0] + jnp.sum(bent.value), slopes[0] + bent.slope @ slopes[1:], hessian, slopes[1:], both[1:])


def _rescaling(program: NonlinearProgram, flat: Any, variables: bool, rows: bool) -> Rescaling:
    """d from the start, s_f and s from the gradients there: each is made at most `STEEP`; 1 where it is not finite."""
    unravel = ravel_pytree(program.start)[1]
    size = jnp.clip(jnp.abs(flat), 1, 1e8)
    d = jnp.where(jnp.isfinite(size), size, 1) if variables else jnp.ones_like(flat)

    def both(z: Any) -> Any:
        x = unravel(z * d)
        v = ravel_pytree(program.violation(x))[0].astype(z.dtype)
        return jnp.concatenate([program.objective(x)[None], v])

    values, pull = jax.vjp(both, flat / d)
    if not rows:
        return Rescaling(d, jnp.ones((), flat.dtype), jnp.ones_like(values[1:]))
    slopes = jax.vmap(lambda w: jnp.max(jnp.abs(pull(w)[0])))(jnp.eye(values.size, dtype=values.dtype))
    scale = jnp.minimum(1, STEEP / jnp.where(slopes > 0, slopes, STEEP))
    scale = jnp.where(jnp.isfinite(slopes), jnp.maximum(scale, 1e-8), 1)
    return Rescaling(d, scale[0], scale[1:])
