"""A quadratic program for PDHG: a step that bounds the curvature from above, exact where it is diagonal.

With a diagonal `H >= Q` (in the order of definite matrices) the primal half is

    x' = clip(x0 - (c + Q x0 - A'y) / (1/tau + H), l, u)
       = argmin over the box of  x'Qx/2 + c'x - y'Ax + (x - x0)'P(x - x0)/2,      P = I/tau + H - Q positive definite

so the linearised step *is* a proximal step, in the metric P, and with the dual half a proximal point step of the whole
saddle operator in the metric

    |(dx, dy)|^2 = |dx|^2 / tau + dx'(H - Q)dx + |dy|^2 / sigma + 2 dx'A'dy      >= 0    whenever  tau sigma |A|^2 <= 1.

Hence it is firmly nonexpansive however curved Q is: full reflection, restarts and rays hold as for a linear program,
and the step sizes know nothing of |Q|. (Measured in the metric without `H - Q`, as Condat and Vu do, the same step is
averaged by more than a half, and only half a reflection would be allowed; linear spec, section 6.) For a diagonal Q,
`H = Q` and the step is the exact prox. Else H is the vector of the row sums of |Q|, which is an upper bound
(Gershgorin), times the largest eigenvalue of `H^-1/2 Q H^-1/2`, which is at most 1.

`Qx` travels with the iterate (it is linear), so a step costs one product with each of Q, A and A'.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pdopt.operators.diagonal import Diagonal
from pdopt.operators.norms import POWER_ITERATIONS
from pdopt.types import Pair, record

PRODUCTS = 128  # with Q, for its largest eigenvalue in the metric of its row sums
MARGIN = 1.05  # on that eigenvalue, which the products approach from below


@record
class QuadraticSaddle:
    """A scaled quadratic program: the scaled linear program with its rows, bounds and c, and the scaled Q.

    Attributes:
        linear: the saddle view of the linear program (`c`, rows and bounds), which fixes the order of the variables.
        curvature: Q in the layout of its own products.
        bound: H, `(n,)`, in the order of `linear`.
        inward, outward: where an entry of the product's argument is in x, and where an entry of x's order is in the
            product; None where both orders are the same.
    """

    linear: Any
    curvature: Any
    bound: Any
    inward: Any = None
    outward: Any = None

    @staticmethod
    def make(linear: Any, curvature: Any) -> "QuadraticSaddle":
        """From the view of the linear part and the scaled Q in the user's order."""
        operator, rows, columns = curvature.ordered()
        order = linear.column_order
        bound = majorant(lax.stop_gradient(curvature))
        if order is not None:
            bound = order.put(bound)
        inward = _chain(None if columns is None else columns.order, None if order is None else order.rank)
        outward = _chain(None if order is None else order.order, None if rows is None else rows.rank)
        if isinstance(curvature, Diagonal):
            diagonal = curvature.diagonal if order is None else order.put(curvature.diagonal)
            return QuadraticSaddle(linear, Diagonal(diagonal), bound)
        return QuadraticSaddle(linear, operator, bound, inward, outward)

    @property
    def balance(self) -> Any:
        """The first primal weight."""
        return self.linear.balance

    def start(self) -> Pair:
        """As for the linear program."""
        return self.linear.start()

    def into(self, pair: Pair) -> Pair:
        """A pair in the user's units, scaled and moved into its sets."""
        return self.linear.into(pair)

    def back(self, pair: Pair) -> Pair:
        """A pair (or a direction) in the user's units and order."""
        return self.linear.back(pair)

    def judging(self, problem: Any) -> Any:
        """As for the linear program."""
        return self.linear.judging(problem)

    def prox(self, v: Any, step: Any) -> Any:
        """Projection on the box."""
        return self.linear.prox(v, step)

    def slope(self, x: Any) -> Any:
        """`Q x`, the gradient of the curved part; linear in x."""
        argument = x if self.inward is None else x[self.inward]
        product = self.curvature.matvec(argument)
        return product if self.outward is None else product[self.outward]

    def gradient(self, x: Any, y: Any) -> Any:
        """`c + Qx - A'y`."""
        return self.slope(x) + self.linear.gradient(x, y)

    def curved_step(self, x: Any, slope: Any, y: Any, step: Any) -> Any:
        """`clip(x - (c + slope - A'y) / (1/step + H), l, u)`, the primal half for the slope at x."""
        gradient = slope + self.linear.gradient(x, y)
        return self.prox(x - step / (1 + step * self.bound) * gradient, step)

    def bend(self, dx: Any, dslope: Any) -> Any:
        """`dx'(H - Q)dx >= 0`, what the curvature adds to the metric.

        A negative number would be rounding, which a step size must not read as a crossing: it would shrink for good.
        """
        return jnp.maximum(jnp.vdot(dx, self.bound * dx - dslope), 0)

    def violation(self, x: Any) -> Any:
        """`-A x`."""
        return self.linear.violation(x)

    def move(self, y: Any, v: Any, step: Any) -> Any:
        """The prox of two-sided rows at `y + step v`."""
        return self.linear.move(y, v, step)

    def norm(self, limit: int = POWER_ITERATIONS) -> Any:
        """`|A_s|_2`."""
        return self.linear.norm(limit)


def majorant(Q: Any) -> Any:
    """A diagonal H, `(n,)`, with `H - Q` positive semidefinite; Q itself where it is diagonal.

    Example:
        >>> from pdopt.operators.dense import Dense
        >>> exact, bound = Dense(jnp.array([[2.0, 0.0], [0.0, 3.0]])), Dense(jnp.array([[1.0, 1.0], [1.0, 1.0]]))
        >>> print(majorant(exact), majorant(bound))
        [2. 3.] [2. 2.]
    """
    sums = Q.row_norms("l1")
    if isinstance(Q, Diagonal) or not sums.size:
        return sums
    root = jnp.sqrt(jnp.where(sums > 0, sums, 1))
    start = jax.random.normal(jax.random.key(0), sums.shape, sums.dtype)

    def product(_: int, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        v, _ = carry
        image = Q.matvec(v / root) / root
        size = jnp.linalg.norm(image)
        return image / jnp.where(size > 0, size, 1), size

    first = (start / jnp.linalg.norm(start), jnp.ones((), sums.dtype))
    _, largest = lax.fori_loop(0, PRODUCTS, product, first)
    # Where every row sum is its largest entry, Q is diagonal (up to order) and the sums are exact.
    alone = jnp.all(sums <= Q.row_norms("linf"))
    return sums * jnp.where(alone, 1, jnp.minimum(MARGIN * largest, 1))


def _chain(first: Any, then: Any) -> Any:
    """The gather that does `v[then]`, then `[first]`, at once; None stands for the identity."""
    if then is None:
        return first
    return then if first is None else then[first]
