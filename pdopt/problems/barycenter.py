"""Entropic barycenters on a fixed support: the histogram b that is nearest to k others, by iterated projections.

    min_b  sum_k w_k OT(a_k, b),    OT(a, b) = min_T <C, T> + epsilon sum T log(T / a 1'),  T 1 = a,  T'1 = b
    T_k = a_k exp((f_k (+) g_k - C) / epsilon),    sum_k w_k g_k = 0                            (Benamou et al. 2015)

The optimal b is the geometric mean of the column sums, `log b = (h - sum_k w_k s_k) / epsilon` with
`s_kj = -epsilon log sum_i a_ki exp((f_ki - C_ij) / epsilon)` and h = 0. That b is blurred. The debiased form subtracts
`OT(b, b) / 2` (Janati et al. 2020, arXiv 2006.02575): then `sum_k w_k g_k = h`, the potential of `OT(b, b)`,
`b_j = exp(h_j / epsilon) sum_l exp((h_l - C_jl) / epsilon)`.

Objectives leave out terms that do not depend on b. The multipliers are `f (k, n)`, `g (k, m)` and `h (m,)`, in units of
cost; x is b itself. float32 reaches marginal errors of about 1e-5.
"""

from dataclasses import InitVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pdopt.errors import InvalidProblem, require_range, require_shape
from pdopt.problems.barycenter_gradients import BarycenterPotentials, barycenter_potentials
from pdopt.problems.checks import check_finite, concrete
from pdopt.problems.costs import as_cost
from pdopt.problems.entropic_dual import scaled_sums
from pdopt.runtime.precision import as_array, precision_scope, resolve_dtype
from pdopt.types import Optimality, Pair, Residuals, record


@record(static=("debiased",))
class Barycenter:
    """`min_b sum_k w_k OT(a_k, b)` over histograms b on a fixed support.

    Args:
        cost: `(n, m)` array or cost operator, from the support of the histograms to that of the barycenter.
        histograms: `(k, n)` masses >= 0, each of the same total.
        weights: `(k,)` >= 0, divided by their sum; None: equal.
        epsilon: weight of the entropy, > 0, in units of cost.
        debiased: subtract `OT(b, b) / 2`; the cost must then be square and symmetric.
        dtype: floating dtype of the data; default: that of the input.
        check: look at the values; shapes are always checked.

    Raises:
        InvalidProblem: wrong shapes, NaN or infinity, negative masses or weights, totals that differ.
        InvalidOption: epsilon is not > 0.

    Example:
        >>> line = (jnp.arange(3.0)[:, None] - jnp.arange(3.0)) ** 2
        >>> print(Barycenter(line, jnp.eye(3)[::2], epsilon=0.5).shape)
        (2, 3, 3)
    """

    cost: Any
    histograms: Any
    weights: Any = None
    epsilon: Any = None
    debiased: bool = False
    dtype: InitVar[Any] = None
    check: InitVar[bool] = True

    def __post_init__(self, dtype: Any, check: bool) -> None:
        named = [(name, getattr(self, name)) for name in ("cost", "histograms", "weights")]
        dtype = resolve_dtype(named, dtype)
        cost = as_cost(self.cost, dtype)
        n, m = cost.shape
        a = as_array("histograms", self.histograms, dtype)
        if a.ndim != 2 or a.shape[0] < 1:
            raise InvalidProblem(f"histograms has shape {a.shape}; expected (k, {n}), one histogram a row")
        k = a.shape[0]
        require_shape("histograms", a.shape, (k, n), f"cost has {n} rows")
        if self.epsilon is None:
            raise InvalidProblem("epsilon is missing; expected a weight > 0 in units of cost")
        if concrete(self.epsilon) is not None:
            require_range("epsilon", self.epsilon, 0.0, open_low=True)
        if self.debiased and n != m:
            raise InvalidProblem(f"cost has shape {(n, m)}; a debiased barycenter needs a square, symmetric one")
        with precision_scope(cost):
            weights = jnp.full(k, 1 / k, dtype) if self.weights is None else as_array("weights", self.weights, dtype)
        require_shape("weights", weights.shape, (k,), f"there are {k} histograms")
        epsilon = as_array("epsilon", self.epsilon, dtype)
        for name, value in (("cost", cost), ("histograms", a), ("weights", weights), ("epsilon", epsilon)):
            object.__setattr__(self, name, value)
        if check:
            cost.check()
            _check(a, weights)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(k, n, m)`: histograms, their bins, bins of the barycenter."""
        return (self.histograms.shape[0], *self.cost.shape)

    @property
    def sense(self) -> float:
        """1: costs are minimised."""
        return 1.0

    @property
    def defaults(self) -> dict[str, Any]:
        """The limit that `solve` takes where none is given, in sweeps over all histograms."""
        return {"max_iterations": 10_000}

    @property
    def shares(self) -> Any:
        """The weights over their sum."""
        return self.weights / jnp.sum(self.weights)

    def pair_shapes(self) -> Pair:
        """Shapes and dtypes of a pair: x the barycenter, y the potentials."""
        k, n, m = self.shape
        y = BarycenterPotentials(*(jax.ShapeDtypeStruct(s, self.cost.dtype) for s in ((k, n), (k, m), (m,))))
        return Pair(jax.ShapeDtypeStruct((m,), self.cost.dtype), y)

    def minimised(self) -> "Barycenter":
        """Itself."""
        return self

    def flip(self, pair: Pair) -> Pair:
        """The pair itself: there is one sense."""
        return pair

    def certificate(self, proof: Any, ray: Pair) -> Any:
        """The L1 errors: of rows, of columns against b, and of b against the plan that debiases."""
        return proof

    def start(self) -> Pair:
        """Zero potentials and no mass."""
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.pair_shapes())

    def into(self, pair: Pair) -> Pair:
        """The pair with the barycenter of its potentials."""
        return Pair(self.histogram(pair.y), pair.y)

    def back(self, pair: Pair) -> Pair:
        """The pair itself: a method sees the user's units."""
        return pair

    def log_masses(self) -> Any:
        """`log a_k`, an empty bin counted as one far below rounding, so that it has its one-sided derivative."""
        a = self.histograms
        least = jnp.finfo(a.dtype).eps ** 2 * jnp.max(a)
        return jnp.log(a + lax.stop_gradient(jnp.where(a > 0, 0, least)))

    def row_potentials(self, g: Any) -> Any:
        """`-epsilon log sum_j exp((g_kj - C_ij) / epsilon)`, `(k, n)`: the f whose rows are exact."""
        return jax.vmap(lambda g: self.cost.softmin_rows(g / self.epsilon, self.epsilon))(g)

    def column_potentials(self, f: Any) -> Any:
        """`s_k`, `(k, m)`: column k of the plans is `exp((g_k - s_k) / epsilon)`."""
        cost = self.cost.transpose()
        soft = lambda f, log_a: cost.softmin_rows(log_a + f / self.epsilon, self.epsilon)
        return jax.vmap(soft)(f, self.log_masses())

    def log_histogram(self, s: Any, h: Any) -> Any:
        """`log b = (h - sum_k w_k s_k) / epsilon`."""
        return (h - self.shares @ s) / self.epsilon

    def log_self(self, h: Any) -> Any:
        """`log` of the marginal of the plan that debiases, `h_j / epsilon + log sum_l exp((h_l - C_jl) / epsilon)`."""
        return (h - self.cost.softmin_rows(h / self.epsilon, self.epsilon)) / self.epsilon

    def histogram(self, y: BarycenterPotentials) -> Any:
        """b of the potentials."""
        return jnp.exp(self.log_histogram(self.column_potentials(y.f), y.h))

    def optimality(self, pair: Pair) -> Optimality:
        """Weighted L1 errors of rows and columns (and of the debiasing), over the total of the first histogram."""
        with precision_scope(self):
            y, a, epsilon, shares = pair.y, self.histograms, self.epsilon, self.shares
            s = self.column_potentials(y.f)
            log_b = self.log_histogram(s, y.h)
            b = jnp.exp(log_b)
            column = jnp.exp((y.g - s) / epsilon)
            row = a * jnp.exp((y.f - self.row_potentials(y.g)) / epsilon)
            zero = jnp.zeros((), a.dtype)
            apart = jnp.sum(jnp.abs(b - jnp.exp(self.log_self(y.h)))) if self.debiased else zero
            error = (
                shares @ jnp.sum(jnp.abs(row - a), axis=1), shares @ jnp.sum(jnp.abs(column - b), axis=1), apart
            )  # fmt: skip
            primal, total = error[0] + error[1] + error[2], jnp.sum(a[0])
            bound = shares @ (jnp.sum(y.f * a, axis=1) - epsilon * (jnp.sum(row, axis=1) - jnp.sum(a, axis=1)))
            signed = shares @ (jnp.sum(y.f * (row - a), axis=1) + jnp.sum(y.g * column, axis=1)) - jnp.vdot(y.h, b)
            spread = jnp.max(jnp.abs(y.f)) + jnp.max(jnp.abs(y.g))
            gap = jnp.abs(signed)
            worst = jnp.maximum(jnp.maximum(error[0], error[1]), apart)
            relative = gap / jnp.where(spread > 0, spread * total, 1)
            residuals = Residuals(primal / total, zero, relative, primal, zero, gap, worst)
            return Optimality(residuals, bound + signed, bound, error)

    def residuals(self, pair: Pair) -> Residuals:
        """See `optimality`."""
        return self.optimality(pair).residuals

    def lagrangian(self, pair: Pair, proof: Any) -> Any:
        """`sum_k w_k (<f_k, a_k> + <g_k, b> - epsilon (sum T_k - sum a_k)) - <h, b> + debiasing`, the pair held."""
        (b, y), epsilon, a = pair, self.epsilon, self.histograms
        ones = jnp.ones_like(b)
        sums = jax.vmap(lambda f, g: scaled_sums(self.cost, f, g, ones, epsilon))(y.f, y.g)
        each = jnp.sum(y.f * a, axis=1) + y.g @ b - epsilon * jnp.sum(a * (sums - 1), axis=1)
        total = self.shares @ each - jnp.vdot(y.h, b)
        if self.debiased:
            apart = jnp.sum(scaled_sums(self.cost, y.h, y.h, ones, epsilon))
            total = total + epsilon / 2 * (apart - jnp.sum(b))
        return total

    def differentiated(self, pair: Pair) -> Pair:
        """The pair with the derivative of its potentials, and with it of b: `barycenter_gradients.py`."""
        return self.into(Pair(pair.x, barycenter_potentials(pair.y, self)))

    def valid(self) -> Any:
        """Whether the masses are masses of one total and the weights weights (for traced data)."""
        a, w = self.histograms, self.weights
        totals = jnp.sum(a, axis=1)
        good = jnp.all(jnp.isfinite(a) & (a >= 0)) & jnp.all(jnp.isfinite(w) & (w >= 0)) & (jnp.sum(w) > 0)
        equal = jnp.all(jnp.abs(totals - totals[0]) <= float(jnp.finfo(a.dtype).eps) ** 0.5 * totals[0])
        return good & equal & (totals[0] > 0)


def _check(a: Any, weights: Any) -> None:
    for name, value in (("histograms", a), ("weights", weights)):
        check_finite(name, value)
        seen = concrete(value)
        if seen is not None and (seen < 0).any():
            raise InvalidProblem(f"{name} has the value {seen.min():g}; expected values >= 0")
    seen = concrete(weights)
    if seen is not None and not seen.sum() > 0:
        raise InvalidProblem("weights sum to 0; expected a positive sum")
    seen = concrete(a)
    if seen is not None:
        totals = np.asarray(np.sum(seen, axis=1, dtype=np.float64))
        if not totals.min() > 0:
            raise InvalidProblem(f"histogram {int(np.argmin(totals))} has no mass; expected a positive total")
        if np.ptp(totals) > float(jnp.finfo(a.dtype).eps) ** 0.5 * totals.max():
            raise InvalidProblem(f"histograms have totals from {totals.min():.9g} to {totals.max():.9g}; expected one")
