"""Optimal transport: move the masses a to the masses b at least cost.

    min_T  <C, T> + R(T)     T 1 = a,  T'1 = b,  T >= 0                                             (Kantorovich 1942)

The multipliers are the potentials `f (n,)`, `g (m,)` of the two marginals: `L = <C - f(+)g, T> + R(T) + <f,a> + <g,b>`,
violation `(a - T1, b - T'1)`, so `(f, g) = d value / d(a, b)`. The cost is a matrix or an operator of `costs.py`; R is
a record of its own: `Entropy` (`entropy.py`), `Quadratic` and `KSparse` (`sparsity.py`), or None.
"""

from dataclasses import InitVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem, require_shape
from pdopt.problems.checks import check_finite, concrete
from pdopt.problems.costs import as_cost
from pdopt.problems.couplings import Potentials
from pdopt.problems.exact_transport import Unregularised
from pdopt.problems.regularisers import Regulariser
from pdopt.runtime.precision import as_array, precision_scope, resolve_dtype
from pdopt.types import Optimality, Pair, Residuals, record


@record
class Transport:
    """`min <C, T> + R(T)` over plans with marginals a and b.

    Args:
        cost: `(n, m)` array, or `SqEuclidean`, `Grid`, `LowRank`.
        a: `(n,)` masses >= 0 of the sources; None: uniform, of total 1.
        b: `(m,)` masses >= 0 of the targets; None: uniform, of the total of a.
        regulariser: `Entropy(epsilon)`, `Quadratic(gamma)`, `KSparse(gamma, k)` or None.
        unbalanced: `(rho_a, rho_b)`, each > 0: the marginal constraint is replaced by `rho KL(T1 | a)`; inf keeps it.
        dtype: floating dtype of the data; default: that of the input, as for `LinearProgram`.
        check: look at the values; shapes are always checked.

    Raises:
        InvalidProblem: wrong shapes, NaN or infinity, a negative mass, no mass at all, or unequal totals of a and b
            while both sides are balanced.
        InvalidOption: not a regulariser, or an `unbalanced` weight that is not > 0.

    Example:
        >>> problem = Transport([[0.0, 1.0], [1.0, 0.0]], dtype=jnp.float32)
        >>> print(problem.a, problem.shape)
        [0.5 0.5] (2, 2)
    """

    cost: Any
    a: Any = None
    b: Any = None
    regulariser: Any = None
    unbalanced: Any = (np.inf, np.inf)
    dtype: InitVar[Any] = None
    check: InitVar[bool] = True
    allow_low_precision: InitVar[bool] = False

    def __post_init__(self, dtype: Any, check: bool, allow_low_precision: bool) -> None:
        if self.regulariser is not None and not isinstance(self.regulariser, Regulariser):
            raise InvalidOption(f"regulariser is {self.regulariser!r}; expected Entropy, Quadratic, KSparse or None")
        named = [(name, getattr(self, name)) for name in ("cost", "a", "b")]
        dtype = resolve_dtype(named, dtype, allow_low_precision=allow_low_precision)
        cost = as_cost(self.cost, dtype)
        n, m = cost.shape
        if min(n, m) < 1:
            raise InvalidProblem(f"cost has shape {(n, m)}; expected at least one source and one target")
        with precision_scope(cost):
            a = jnp.full(n, 1 / n, dtype) if self.a is None else as_array("a", self.a, dtype)
            b = jnp.full(m, jnp.sum(a) / m, dtype) if self.b is None else as_array("b", self.b, dtype)
        require_shape("a", a.shape, (n,), f"cost has {n} rows")
        require_shape("b", b.shape, (m,), f"cost has {m} columns")
        for name, value in (("cost", cost), ("a", a), ("b", b)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "unbalanced", _weights(self.unbalanced, dtype))
        if self.regulariser is not None:
            scalars = jax.tree.map(lambda leaf: as_array("regulariser", leaf, dtype), self.regulariser)
            object.__setattr__(self, "regulariser", scalars)
        if check:
            cost.check()
            _check_masses(a, b, self.unbalanced)

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`: sources and targets."""
        return self.cost.shape

    @property
    def sense(self) -> float:
        """1: costs are minimised."""
        return 1.0

    @property
    def rule(self) -> Regulariser:
        """The regulariser, `Unregularised()` where there is none."""
        return Unregularised() if self.regulariser is None else self.regulariser

    @property
    def defaults(self) -> dict[str, Any]:
        """What `solve` takes where no tolerance or limit is given: L1 error 1e-4, in both dtypes."""
        return {"tolerance": 1e-4, "max_iterations": self.rule.max_iterations}

    def pair_shapes(self) -> Pair:
        """Shapes and dtypes of a pair inside a solver: x as the regulariser has it, y the potentials."""
        n, m = self.shape
        y = Potentials(*(jax.ShapeDtypeStruct((size,), self.cost.dtype) for size in (n, m)))
        return Pair(self.rule.shapes(self), y)

    def minimised(self) -> "Transport":
        """Itself."""
        return self

    def flip(self, pair: Pair) -> Pair:
        """The pair itself: transport has one sense."""
        return pair

    def inside(self, pair: Pair) -> Pair:
        """A user's start as solvers have it: the potentials decide, x is made from them."""
        y = pair.y
        if not isinstance(y, tuple) or len(y) != 2:
            raise InvalidProblem(f"start.y has type {type(y).__name__}; expected the potentials (f, g)")
        n, m = self.shape
        dtype = self.cost.dtype
        y = Potentials(as_array("start.y.f", y[0], dtype), as_array("start.y.g", y[1], dtype))
        require_shape("start.y.f", y.f.shape, (n,), f"cost has {n} rows")
        require_shape("start.y.g", y.g.shape, (m,), f"cost has {m} columns")
        return Pair(self.rule.adopt(self, pair.x, y), y)

    def shown(self, pair: Pair) -> Pair:
        """A solver's pair as users see it: x is the plan, an operator."""
        return Pair(self.rule.plan(self, pair), pair.y)

    def certificate(self, proof: Any, ray: Pair) -> Any:
        """What the regulariser offers as proof: the L1 errors of both marginals apart, and more."""
        return proof

    def residuals(self, pair: Pair) -> Residuals:
        """See `optimality`."""
        return self.optimality(pair).residuals

    def optimality(self, pair: Pair) -> Optimality:
        """Residuals and both objectives of a pair; primal is the L1 error of both marginals over the mass of a."""
        with precision_scope(self):
            return self.rule.optimality(self, pair)

    def audited(self, pair: Pair, found: Optimality, status: Any, tolerance: Any) -> tuple[Optimality, Any]:
        """The last word on the pair that is returned, where the iteration carried its residuals along."""
        if not hasattr(self.rule, "audited"):
            return found, status
        with precision_scope(self):
            return self.rule.audited(self, pair, status, tolerance)  # pyright: ignore[reportAttributeAccessIssue]

    def lagrangian(self, pair: Pair, proof: Any) -> Any:
        """The Lagrangian with the pair held; its derivative is that of the value (envelope theorem)."""
        return self.rule.lagrangian(self, pair)

    def valid(self) -> Any:
        """Whether the masses are masses (for traced data, where a constructor cannot raise)."""
        good = jnp.all(jnp.isfinite(self.a) & (self.a >= 0)) & jnp.all(jnp.isfinite(self.b) & (self.b >= 0))
        total_a, total_b = jnp.sum(self.a), jnp.sum(self.b)
        balanced = jnp.isinf(self.unbalanced[0]) & jnp.isinf(self.unbalanced[1])
        equal = jnp.abs(total_a - total_b) <= _slack(self.a.dtype) * total_a
        return good & (total_a > 0) & (total_b > 0) & (equal | ~balanced)


def _slack(dtype: Any) -> float:
    """How far two sums of many rounded masses may differ, relatively."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def _weights(unbalanced: Any, dtype: Any) -> tuple[Any, Any]:
    if not isinstance(unbalanced, tuple | list) or len(unbalanced) != 2:
        raise InvalidOption(f"unbalanced is {unbalanced!r}; expected (rho_a, rho_b), inf for a balanced side")
    for name, value in zip(("unbalanced[0]", "unbalanced[1]"), unbalanced):
        seen = concrete(value)
        if seen is not None and not seen > 0:
            raise InvalidOption(f"{name} is {value}; expected a weight > 0, inf for a balanced side")
    first, second = (as_array("unbalanced", value, dtype) for value in unbalanced)
    return first, second


def _check_masses(a: Any, b: Any, unbalanced: tuple[Any, Any]) -> None:
    for name, value in (("a", a), ("b", b)):
        check_finite(name, value)
        seen = concrete(value)
        if seen is not None and (seen < 0).any():
            place = int(np.argmax(seen < 0))
            raise InvalidProblem(f"{name} has the mass {seen[place]:g} at index {place}; expected masses >= 0")
        if seen is not None and not seen.sum() > 0:
            raise InvalidProblem(f"{name} has no mass; expected a positive total")
    masses, weights = (concrete(a), concrete(b)), (concrete(unbalanced[0]), concrete(unbalanced[1]))
    if masses[0] is None or masses[1] is None or weights[0] is None or weights[1] is None:
        return
    total_a, total_b = float(np.sum(masses[0], dtype=np.float64)), float(np.sum(masses[1], dtype=np.float64))
    balanced = np.isinf(weights[0]) and np.isinf(weights[1])
    if balanced and abs(total_a - total_b) > _slack(a.dtype) * total_a:
        raise InvalidProblem(
            f"a has the total {total_a:.9g}, b {total_b:.9g}; expected equal totals (or unbalanced=(rho_a, rho_b))"
        )
