"""Unregularised transport as a saddle, its operator two sums: `A T = (T1, T'1)`, `A'(f, g) = f (+) g`, never a matrix.

    min_T max_y  <C, T> + <a - T1, f> + <b - T'1, g>,  T >= 0,        (f, g) = G^1/2 y

`A A' = [[m I, 11'], [11', n I]]` has the eigenvalues m on rows that sum to 0, n on columns that sum to 0, n + m on
`(m 1, n 1)` and 0 on `(1, -1)`. Its functions are known in closed form, so a dual step can be taken in a metric G
that makes `G^1/2 A` (whose norm is then 1) as round as possible:

    scalar            G = I / (n + m)                                 Chambolle, Pock 2011
    deflated          G = I / max(n, m), but 1 / (n + m) on (m 1, n 1): a step twice as long in all directions but one
    douglas_rachford  G = (A A')^+, with which PDHG is Douglas, Rachford 1956 on (marginals, T >= 0)

When n = m the last two are one map: they differ on `(1, -1)` alone, where no violation points. The view's multipliers
are y, so that a method needs to know nothing of metrics.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pdopt.errors import UnsupportedProblem, unknown_name
from pdopt.geometry.moves import Euclidean
from pdopt.geometry.sets import Reals
from pdopt.operators.norms import POWER_ITERATIONS
from pdopt.operators.scaling import Scaling
from pdopt.operators.sums import Change
from pdopt.problems.checks import concrete
from pdopt.problems.couplings import Potentials
from pdopt.problems.exact_transport import c_transform
from pdopt.problems.transport import Transport
from pdopt.problems.views import saddle
from pdopt.types import Pair, record

METRICS = ("scalar", "deflated", "douglas_rachford")

# First primal weight, in units of the mean mass and the mean reduced cost: the best of a grid on uniform costs was
# 0.05 to 0.2 for n = 50 ... 1000.
FIRST_WEIGHT = 0.1


@record(static=("metric",))
class TransportSaddle:
    """The saddle of exact transport, potentials in units of `price`; plans keep the user's, or judging copied them.

    Attributes:
        cost: in the user's units, divided by price on the fly.
        a, b: masses `(n,)`, `(m,)`, of equal totals.
        price: the unit of cost, a scalar.
        balance: first primal weight.
        metric: of the dual step, one of `METRICS`.

    Example:
        >>> problem = Transport([[0.0, 1.0], [1.0, 0.0]], dtype=jnp.float32)
        >>> view = saddle(problem, Scaling())
        >>> pair = view.start()
        >>> print(pair.x[0], view.violation(pair.x).f)
        [0.25 0.25] [0. 0.]
    """

    cost: Any
    a: Any
    b: Any
    price: Any
    balance: Any
    metric: str = "douglas_rachford"

    def in_metric(self, metric: str) -> "TransportSaddle":
        """The same saddle with another metric of the dual step.

        Raises:
            InvalidOption: not one of `METRICS`.
        """
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        return self.replace(metric=metric)  # pyright: ignore[reportAttributeAccessIssue]

    def start(self) -> Pair:
        """The product plan, and the c-transform of no potentials."""
        total = jnp.sum(self.b)
        plan = self.a[:, None] * (self.b / jnp.where(total > 0, total, 1))
        y = c_transform(self.cost, jnp.zeros_like(self.a))
        return Pair(plan, self._into(y))

    def into(self, pair: Pair) -> Pair:
        """A pair in the user's units, its plan made nonnegative."""
        return Pair(jnp.maximum(pair.x, 0), self._into(pair.y))

    def back(self, pair: Pair) -> Pair:
        """A pair in the user's units."""
        y = self.lift(pair.y)
        return Pair(pair.x, Potentials(self.price * y.f, self.price * y.g))

    def keep(self, pair: Pair) -> Pair:
        """What a loop keeps of a judged pair: the potentials; a second plan would double the memory."""
        return Pair((), pair.y)

    def prox(self, v: Any, step: Any) -> Any:
        """Projection on T >= 0."""
        return jnp.maximum(v, 0)

    def gradient(self, x: Any, y: Any) -> Any:
        """`C - f (+) g`, `(n, m)`."""
        lifted = self.lift(y)
        return self.cost.todense() / self.price - lifted.f[:, None] - lifted.g

    def tilt(self, dy: Any) -> Any:
        """The linear part of the gradient, `-(f (+) g)`."""
        lifted = self.lift(dy)
        return -(lifted.f[:, None] + lifted.g)

    def stride(self, x: Any, y: Any, step: Any) -> Any:
        """`prox(x - step gradient(x, y))` in one pass; costs that are not stored are made block by block."""
        lifted = self.lift(y)
        scale = step / self.price

        def entries(C: Any, x: Any, f: Any) -> Any:
            return jnp.maximum(x - scale * C + step * (f[:, None] + lifted.g), 0)

        return self.cost.rows(entries, x, lifted.f)

    def violation(self, x: Any) -> Potentials:
        """`G^1/2 (a - T1, b - T'1)`."""
        return self.lift(Potentials(self.a - jnp.sum(x, axis=1), self.b - jnp.sum(x, axis=0)))

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """`y + step v`: equality rows."""
        return Euclidean(Reals())(y, v, step)

    def inner(self, a: Change, b: Change) -> Any:
        """`<a, b>` of changes, summed without storing them: a product of vectors would store both.

        Taken from before to after, as no step is: a difference that a step makes too would be stored for both.
        """
        parts = zip(*(jax.tree.leaves(side) for side in (a.after, a.before, b.after, b.before)))
        return sum(jnp.sum((before - after) * (sooner - later)) for after, before, later, sooner in parts)

    def norm(self, limit: int = POWER_ITERATIONS) -> Any:
        """`|G^1/2 A|_2`, which every metric makes 1."""
        return jnp.ones((), self.a.dtype)

    def lift(self, y: Any) -> Potentials:
        """`G^1/2 y`: the potentials of multipliers, in units of price."""
        return _spectral(y, tuple(w**0.5 for w in self._weights()))

    def twice(self, y: Any) -> Potentials:
        """`G^1/2 A A' G^1/2 y`."""
        n, m = self._sizes()
        return _spectral(y, tuple(w * s for w, s in zip(self._weights(), (m, n, n + m, 0.0))))

    def _into(self, y: Potentials) -> Potentials:
        inverse = tuple(w**-0.5 if w else 0.0 for w in self._weights())
        return _spectral(Potentials(y.f / self.price, y.g / self.price), inverse)

    def _sizes(self) -> tuple[int, int]:
        return self.a.shape[-1], self.b.shape[-1]

    def _weights(self) -> tuple[float, ...]:
        """Eigenvalues of G on rows of sum 0, columns of sum 0, `(m 1, n 1)` and `(1, -1)`."""
        n, m = self._sizes()
        if self.metric == "scalar":
            return (1 / (n + m),) * 4
        if self.metric == "deflated":
            most = 1 / max(n, m)
            return most, most, 1 / (n + m), most
        return 1 / m, 1 / n, 1 / (n + m), 0.0


def _spectral(y: Potentials, weights: tuple[float, ...]) -> Potentials:
    """The function of `A A'` with these eigenvalues, at y."""
    row, column, top, null = weights
    n, m = y.f.shape[-1], y.g.shape[-1]
    f, g = jnp.mean(y.f), jnp.mean(y.g)
    joint = (f + g) / (n + m)  # (m joint, n joint) is the part along (m 1, n 1), the rest of the means along (1, -1)
    rest = f - m * joint
    f_mean = top * m * joint + null * rest
    g_mean = top * n * joint - null * rest
    return Potentials(row * (y.f - f) + f_mean, column * (y.g - g) + g_mean)


@saddle.register
def _(problem: Transport, scaling: Scaling) -> TransportSaddle:
    if problem.regulariser is not None:
        raise UnsupportedProblem(
            f"Transport with {type(problem.regulariser).__name__} has no saddle view; expected regulariser=None"
        )
    cost, (n, m) = problem.cost, problem.shape
    dtype = cost.dtype
    total = jnp.sum(problem.a)
    proved = c_transform(cost, jnp.zeros(n, dtype))
    reduced = cost.mean() - jnp.mean(proved.f) - jnp.mean(proved.g)
    largest = cost.largest()
    price = jnp.where(reduced > 0, reduced, jnp.where(largest > 0, largest, 1)).astype(dtype)
    balance = (FIRST_WEIGHT * (n * m) ** 0.5 / jnp.where(total > 0, total, 1)).astype(dtype)
    # Both sides get exactly one total, or a rounding error of the masses would pull the potentials for ever.
    b = problem.b * (total / jnp.where(jnp.sum(problem.b) > 0, jnp.sum(problem.b), 1))
    return TransportSaddle(cost, problem.a, b, price, balance)


def require_balanced(problem: Any) -> None:
    """Look at a problem before tracing: an unregularised transport must have both marginals held.

    Raises:
        UnsupportedProblem: a finite weight of a marginal. Other problems pass.
    """
    if not isinstance(problem, Transport):
        return
    for weight in problem.unbalanced:
        seen = concrete(weight)
        if seen is not None and not jax.numpy.isinf(seen):
            raise UnsupportedProblem(f"unbalanced has the weight {float(seen):g}; a saddle view holds both marginals")
