"""A bilevel program as LV-HBA sees it: the proximal Lagrangian value function and the set C, with rows equilibrated.

    v(x, y, z) = min_{theta in Y} max_{lam in Z}  f(x, theta) + <lam, c(x, theta)> + |theta - y|^2 / (2 gamma1)
                                                  - |lam - z|^2 / (2 gamma2)

with c = (h, g) flattened and equilibrated: every row of g is divided by the norm of its gradient in y (in (x, y) where
y does not enter), and the rows of h are replaced by a basis that is orthonormal in y, `L^-1 h` with `h_y h_y' = LL'`
(their multipliers are free, so any basis will do; a step then meets singular values that are all 1, where scaled rows
would leave it their condition number). Z is the reals for h and the orthant for g, both cut at `largest`. `f - v >= 0`
on C = { x in X, y in Y, h = 0, g <= 0 }, and 0 exactly where (y, z) solves the lower level with its multipliers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from pdopt.errors import InvalidProblem
from pdopt.geometry.moves import climb
from pdopt.geometry.points import inner
from pdopt.geometry.proximals import Quadratic
from pdopt.geometry.sets import ConvexSet, Reals
from pdopt.problems.bilevel import BilevelProgram, Levels, Multipliers
from pdopt.problems.polyhedron import Polyhedron, shifted, uses
from pdopt.types import Pair, record

STEPS = 40  # power iterations for the first norms


class Norms(NamedTuple):
    """Vectors of running power iterations and what they found: of `L_yy`, c's Jacobian in y, F and f in (x, y)."""

    vectors: Any
    curvature: Any
    rows: Any
    upper: Any
    lower: Any


@record
class Flat(ConvexSet):
    """A set for a flat vector, from a set for a pytree of the shape of `like`."""

    set: ConvexSet
    like: Any

    def project(self, x: Any) -> Any:
        """The nearest point."""
        return ravel_pytree(self.set.project(ravel_pytree(self.like)[1](x)))[0]

    def support(self, y: Any, tolerance: Any = 0.0) -> Any:
        """The support function of the set."""
        return self.set.support(ravel_pytree(self.like)[1](y), tolerance)


@record
class Both(ConvexSet):
    """X x Y for `Levels`."""

    X: ConvexSet
    Y: ConvexSet

    def project(self, x: Any) -> Any:
        """The nearest point, level by level."""
        return Levels(self.X.project(x.upper), self.Y.project(x.lower))

    def support(self, y: Any, tolerance: Any = 0.0) -> Any:
        """The sum of the two support functions."""
        return self.X.support(y.upper, tolerance) + self.Y.support(y.lower, tolerance)


@record(static=("kind", "coupled"))
class BilevelView:
    """What `LVHBA` works on; multipliers are flat and belong to the scaled rows.

    Attributes:
        program: the program; equality: `(m,)` bool.
        basis: L, lower triangular, of the equalities; scale: what the inequalities are divided by.
        lowest, highest: `(m,)`, the box Z.
        rows: the `Polyhedron` of the affine rows in flat `(x, y)`, or in flat y where x does not enter; or ().
        kind: "free" (no rows), "user" (the program's own `project`) or "polyhedron".
        coupled: x enters the rows.
    """

    program: BilevelProgram
    basis: Any
    scale: Any
    equality: Any
    lowest: Any
    highest: Any
    rows: Any
    kind: str
    coupled: bool

    @staticmethod
    def make(program: BilevelProgram, largest: Any) -> "BilevelView":
        """Look at the rows at the program's start and scale them."""
        x, y = program.start
        dtype = jnp.result_type(*jax.tree.leaves(program.start))
        found = program.constraints(x, y)
        plain = lambda x, y: ravel_pytree(program.constraints(x, y))[0].astype(dtype)
        sizes = [len(ravel_pytree(part)[0]) for part in found]
        equality = jnp.arange(sum(sizes)) < sizes[0]
        coupled = uses(program.constraints, 0, x, y)
        bound = jnp.full(sum(sizes), largest, dtype)
        box = (jnp.where(equality, -bound, 0), bound)
        if not sum(sizes):
            none = jnp.ones((0, 0), dtype)
            return BilevelView(program, none, jnp.ones(0, dtype), equality, *box, (), "free", coupled)
        flat_y, shaped_y = ravel_pytree(y)
        by_y = jax.jacrev(lambda v: plain(x, shaped_y(v)))(flat_y)
        flat, shaped = ravel_pytree(program.start)
        whole = jax.jacrev(lambda u: plain(*shaped(u)))(flat) if coupled else by_y
        size = jnp.linalg.norm(by_y, axis=1)
        absent = jnp.where(size > 0, 0, jnp.linalg.norm(whole, axis=1))
        scale = jnp.where(size + absent > 0, size + absent, 1)
        m = sizes[0]
        ours = by_y[:m]
        basis = jnp.linalg.cholesky(shifted(ours @ ours.T + jnp.diag(absent[:m] ** 2)))
        if program.project is not None:
            return BilevelView(program, basis, scale[m:], equality, *box, (), "user", coupled)
        mixed = lambda rows: jnp.concatenate(
            [solve_triangular(basis, rows[:m], lower=True), rows[m:] / scale[m:, None]]
        )
        A = mixed(whole)
        b = mixed(plain(x, y)[:, None])[:, 0] - A @ (flat if coupled else flat_y)
        free = isinstance(program.Y, Reals) and (isinstance(program.X, Reals) or not coupled)
        own = Flat(Both(program.X, program.Y), program.start) if coupled else Flat(program.Y, y)
        rows = Polyhedron.make(A, b, equality, set=Reals() if free else own, planes=sizes[1] == 0)
        return BilevelView(program, basis, scale[m:], equality, *box, rows, "polyhedron", coupled)

    def start(self) -> Pair:
        """The program's start, multipliers 0."""
        return self.into(self.program.first())

    def into(self, pair: Pair) -> Pair:
        """A pair of the program in this view's units."""
        lam, m = jnp.asarray(ravel_pytree(pair.y)[0], self.scale.dtype), len(self.basis)
        return Pair(Levels(*pair.x), jnp.concatenate([lam[:m] @ self.basis, lam[m:] * self.scale]))

    def back(self, pair: Pair) -> Pair:
        """A pair of this view in the program's units."""
        shaped = ravel_pytree(self.program.first().y)[1]
        lam, m = pair.y, len(self.basis)
        ours = solve_triangular(self.basis, lam[:m], lower=True, trans=1)
        return Pair(pair.x, Multipliers(*shaped(jnp.concatenate([ours, lam[m:] / self.scale]))))

    def violation(self, x: Any, y: Any) -> Any:
        """The scaled rows at a point, flat."""
        rows, m = ravel_pytree(self.program.constraints(x, y))[0].astype(self.scale.dtype), len(self.basis)
        parts = [rows[m:] / self.scale]
        if m:
            parts.insert(0, solve_triangular(self.basis, rows[:m], lower=True))
        return jnp.concatenate(parts)

    def lagrangian(self, x: Any, y: Any, lam: Any) -> Any:
        """`f(x, y) + <lam, c(x, y)>`."""
        return self.program.lower(x, y, *self.program.args) + lam @ self.violation(x, y)

    def penalised(self, point: Levels, penalty: Any) -> Any:
        """`F / penalty + f`."""
        args = self.program.args
        return self.program.upper(*point, *args) / penalty + self.program.lower(*point, *args)

    def slopes(self, point: Levels, inner_pair: Pair, penalty: Any, gamma: Any) -> Levels:
        """`grad F / penalty + grad f - grad v` in (x, y), with v at its saddle point theta, lam (envelope theorem)."""
        theta, lam = inner_pair
        outer = jax.grad(self.penalised)(point, penalty)
        value_x = jax.grad(self.lagrangian)(point.upper, theta, lam)
        value_y = jax.tree.map(lambda y, th: (y - th) / gamma, point.lower, theta)
        less = lambda a, b: jax.tree.map(jnp.subtract, a, b)
        return Levels(less(outer.upper, value_x), less(outer.lower, value_y))

    def value(self, point: Levels, z: Any, inner_pair: Pair, gammas: tuple[Any, Any]) -> Any:
        """The proximal Lagrangian at (theta, lam): v(x, y, z) where that is its saddle point."""
        theta, lam = inner_pair
        away = jax.tree.map(jnp.subtract, theta, point.lower)
        near = inner(away, away) / (2 * gammas[0]) - (lam - z) @ (lam - z) / (2 * gammas[1])
        return self.lagrangian(point.upper, theta, lam) + near

    def gap(self, point: Levels, z: Any, inner_pair: Pair, gammas: tuple[Any, Any]) -> Any:
        """`f(x, y) - v(x, y, z)`."""
        return self.program.lower(*point, *self.program.args) - self.value(point, z, inner_pair, gammas)

    def anchored(self, lam: Any, v: Any, step: Any, centre: Any, gamma: Any) -> Any:
        """The inner multipliers' move: `P_Z((lam + step v + step z / gamma) / (1 + step / gamma))`, z the centre."""
        pulled = Quadratic(1 / gamma, -centre / gamma).prox(climb(lam, v, step), step)
        return jnp.clip(pulled, self.lowest, self.highest)

    def hold(self, z: Any, v: Any, step: Any) -> Any:
        """The centre's move: `P_Z(z + step v)`."""
        return jnp.clip(climb(z, v, step), self.lowest, self.highest)

    def inside(self, pair: Pair) -> Pair:
        """The pair with its multipliers put back into Z."""
        return Pair(pair.x, jnp.clip(pair.y, self.lowest, self.highest))

    def norms(self, pair: Pair, before: Norms | None = None, steps: Any = STEPS) -> Norms:
        """Power iterations at a pair, from the vectors of the ones before."""
        (x, y), lam = pair
        program, args = self.program, self.program.args
        if before is None:
            key, start = jax.random.key(0), Levels(x, y)
            draws = [_like(key, y), _like(key, y), _like(key, start), _like(key, start)]
        else:
            draws = before.vectors
        by_y = jax.grad(lambda y: self.lagrangian(x, y, lam))
        _, pull = jax.vjp(lambda y: self.violation(x, y), y)
        square = lambda d: pull(jax.jvp(lambda y: self.violation(x, y), (y,), (d,))[1])[0]
        curves = lambda function: lambda d: jax.jvp(jax.grad(function), (Levels(x, y),), (d,))[1]
        products = [
            lambda d: jax.jvp(by_y, (y,), (d,))[1],
            square,
            curves(lambda u: program.upper(*u, *args)),
            curves(lambda u: program.lower(*u, *args)),
        ]
        vectors, (curvature, rows, upper, lower) = _power(products, draws, steps)
        return Norms(vectors, curvature, jnp.sqrt(rows), upper, lower)


def require_affine(problem: BilevelProgram) -> None:
    """Raise `InvalidProblem` where rows bend and the program brings no projection of its own."""
    if problem.project is not None:
        return
    bend = np.asarray(_bend(problem))
    if bend.size and bend.max() > 1e3 * float(jnp.finfo(bend.dtype).eps):
        raise InvalidProblem(
            f"row {int(bend.argmax())} of the lower level's constraints is not affine in (x, y) (second difference "
            f"{bend.max():.3g}); pass project=, the projection on {{x in X, y in Y, h = 0, g <= 0}}"
        )


@jax.jit
def _bend(problem: BilevelProgram) -> Any:
    """Second differences of the rows over their size, along fixed directions."""
    flat, shaped = ravel_pytree(problem.start)
    rows = lambda u: ravel_pytree(problem.constraints(*shaped(u)))[0].astype(flat.dtype)
    found = [jnp.zeros_like(rows(flat))]
    for key in jax.random.split(jax.random.key(0), 3):
        way = jax.random.normal(key, flat.shape, flat.dtype) * (1 + jnp.max(jnp.abs(flat), initial=0))
        ahead, here, behind = rows(flat + way), rows(flat), rows(flat - way)
        size = 1 + jnp.abs(ahead) + 2 * jnp.abs(here) + jnp.abs(behind)
        found.append(jnp.abs(ahead - 2 * here + behind) / size)
    return jnp.max(jnp.stack(found), axis=0)


def _like(key: Any, tree: Any) -> Any:
    """A fixed Gaussian of the shapes of a tree, of length 1."""
    flat, shaped = ravel_pytree(tree)
    draw = jax.random.normal(key, flat.shape, flat.dtype)
    return shaped(draw / jnp.linalg.norm(draw))


def _power(products: list[Any], starts: list[Any], steps: Any) -> tuple[list[Any], list[Any]]:
    """The vectors and the largest eigenvalues in size that power iterations come to, all in one loop."""
    flats, shapes = zip(*map(ravel_pytree, starts))

    def turned(product: Any, shaped: Any, v: Any) -> tuple[Any, Any]:
        image = ravel_pytree(product(shaped(v)))[0]
        size = jnp.linalg.norm(image)
        # A vector that the operator sends to 0 is kept: a later operator may not.
        return jnp.where(size > 0, image / jnp.where(size > 0, size, 1), v), size

    def body(_: Any, carry: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        return [turned(product, shaped, v) for product, shaped, (v, _) in zip(products, shapes, carry)]

    found = lax.fori_loop(0, steps, body, [(flat, jnp.zeros((), flat.dtype)) for flat in flats])
    return [shaped(v) for shaped, (v, _) in zip(shapes, found)], [value for _, value in found]
