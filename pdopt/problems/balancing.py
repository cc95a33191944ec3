"""Balancing experts: tokens are assigned to the experts that score them best, every expert with the same load.

    max <gamma, x>    sum_j x_ij = K (each token),   sum_i x_ij = L = K T / E (each expert),   0 <= x <= 1

for scores gamma `(T, E)`. As a minimisation of the cost `-<gamma, x>`, with a free price y_j for the load of expert j,

    L(x, y) = -<gamma, x> + <y, load(x) - L>,     load_j(x) = sum_i x_ij

so x takes the K best of `gamma - y` for each token, the violation is `load - L`, and the *bias* that routers add to
their scores is `p = -y`. In terms of the bias, the dual

    D(p) = sum_i (sum of the K largest of gamma_i + p) - L sum_j p_j,      A(p) - L a subgradient of D at p

is convex and at least the optimal score, with equality at the optimal p. Prices that differ by a constant route alike.
Violations are counted per token here, `(load - L) / T`, so that steps do not depend on the size of a batch.

Sources: "Auxiliary-loss-free load balancing" (Wang et al. 2024, arXiv 2408.15664) for the router; its reading as a
primal-dual method for this assignment problem (arXiv 2512.03915); the curvature of the dual is derived below.
"""

from dataclasses import InitVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidProblem, require_shape
from pdopt.problems.checks import check_finite
from pdopt.problems.linear import LinearProgram
from pdopt.runtime.precision import as_array, precision_scope, resolve_dtype
from pdopt.types import Optimality, Pair, Residuals, record

OCTAVES = 32  # gaps are counted by powers of two, from 2^8 downwards: 2^-23 is below the rounding of scores near 1
LARGEST = 8


class Tally(NamedTuple):
    """What a batch says about the balance: integers, so that sums over devices and microbatches are exact.

    Attributes:
        loads: `(E,)` int32, tokens sent to each expert.
        near: `(OCTAVES,)` int32, tokens by the gap between their K-th and (K+1)-th biased score: entry k counts the
            gaps in `[2^(LARGEST - k - 1), 2^(LARGEST - k))`, the first all larger ones, the last all smaller ones.
    """

    loads: Any
    near: Any


def select(scores: Any, bias: Any, top: int, valid: Any = None) -> tuple[jax.Array, Tally]:
    """The `top` best of `scores + bias` for each token, and the tally of the batch.

    Scores in low precision are widened to float32 before the bias is added; ties go to the smaller index.

    Args:
        scores: `(T, E)`.
        bias: `(E,)`, minus the prices of the experts.
        top: K, 1 <= K <= E.
        valid: `(T,)` bool, the tokens that the tally counts; None: all.

    Returns:
        `(T, K)` int32 experts, best first, and the `Tally`.

    Raises:
        InvalidProblem: `top` outside 1..E, or a bias of another length.

    Example:
        >>> experts, tally = select(jnp.array([[0.9, 0.5, 0.1], [0.8, 0.6, 0.2]]), jnp.array([0.0, 0.35, 0.0]), 1)
        >>> print(experts.ravel(), tally.loads)
        [0 1] [1 1 0]
    """
    scores = widened(scores)
    count = check_choice(scores.shape, top)
    require_shape("bias", np.shape(bias), (count,), f"scores have {count} experts")
    biased = scores + jnp.asarray(bias).astype(scores.dtype)
    values, experts = jax.lax.top_k(biased, min(top + 1, count))
    near = gap_counts(values[:, top - 1] - values[:, top], valid) if top < count else jnp.zeros(OCTAVES, jnp.int32)
    experts = experts[:, :top].astype(jnp.int32)
    return experts, Tally(load_counts(experts, count, valid), near)


def load_counts(experts: Any, count: int, valid: Any = None) -> jax.Array:
    """`(E,)` int32: how often each of `count` experts occurs, in the rows that are valid.

    Example:
        >>> print(load_counts(jnp.array([[0, 2], [2, 1]]), 4))
        [1 1 2 0]
    """
    one = 1 if valid is None else jnp.broadcast_to(valid[:, None], experts.shape).ravel().astype(jnp.int32)
    return jnp.zeros(count, jnp.int32).at[experts.ravel()].add(one)


def gap_counts(gaps: Any, valid: Any = None) -> jax.Array:
    """`(OCTAVES,)` int32: gaps >= 0 counted by powers of two, see `Tally`; those that are valid.

    Example:
        >>> counts = gap_counts(jnp.array([0.5, 0.75, 0.2, 0.0]))
        >>> print(counts[LARGEST], counts[LARGEST + 2], counts[-1])
        2 1 1
    """
    # frexp: gap = m 2^e with m in [1/2, 1), exact where a logarithm would round across a boundary.
    exponent = jnp.frexp(gaps)[1]
    octave = jnp.where(gaps > 0, jnp.clip(LARGEST - exponent, 0, OCTAVES - 1), OCTAVES - 1)
    return jnp.zeros(OCTAVES, jnp.int32).at[octave].add(1 if valid is None else valid.astype(jnp.int32))


def curvature(near: Any, experts: int, share: Any) -> jax.Array:
    """The mean curvature of the dual per token on `sum p = 0`, from the density of tokens about to switch.

        kappa = P(gap < h) / (h (E - 1))

    A token whose K-th and (K+1)-th best experts are j and k switches when `p_k - p_j` passes its gap. With f_jk the
    density of that signed difference at 0, the Hessian of the expected dual is `sum_{j<k} f_jk (e_j - e_k)(e_j - e_k)'`
    with trace `2 sum f_jk = P(gap < h) / h` for small h, spread over E - 1 directions. h is the smallest power of two
    that at least the share of the tokens are below: smaller is less biased, larger less noisy.

    Args:
        near: `(OCTAVES,)` counts of a `Tally`, or a mean of such.
        experts: E.
        share: in (0, 1].

    Returns:
        A scalar of the dtype of `near` (float32 for counts); 0 where nothing was counted.

    Example:
        >>> gaps = (jnp.arange(1000.0) + 0.5) / 1000         # uniform on (0, 1): density 1, E = 2, so kappa = 1
        >>> round(float(curvature(gap_counts(gaps), 2, 0.25)), 2)
        1.0
    """
    near = widened(near)
    total = jnp.sum(near)
    below = jnp.cumsum(near[::-1])[::-1]  # entry k: gaps below 2^(LARGEST - k)
    octave = jnp.sum(below >= share * total) - 1  # below falls with k, so the last that passes
    width = jnp.exp2((LARGEST - octave).astype(near.dtype))
    seen = total > 0
    return jnp.where(seen, below[octave] / (jnp.where(seen, total, 1) * width * max(experts - 1, 1)), 0)


def load_violation(loads: Any, top: int) -> jax.Array:
    """`(load - L) / T` `(E,)`, with `L = mean load` and T from the loads themselves: positive for the overloaded.

    Example:
        >>> print(load_violation(jnp.array([3, 1]), 1))
        [ 0.25 -0.25]
    """
    loads = widened(loads)
    total = jnp.sum(loads)
    tokens = jnp.where(total > 0, total / top, 1)
    return (loads - total / loads.shape[-1]) / tokens


def max_violation(loads: Any) -> jax.Array:
    """`MaxVio = max_j load_j / mean load - 1`, 0 for a perfect balance, E - 1 when one expert takes all.

    Example:
        >>> float(max_violation(jnp.array([3, 1])))
        0.5
    """
    loads = widened(loads)
    mean = jnp.mean(loads, axis=-1)
    return jnp.where(mean > 0, jnp.max(loads, axis=-1) / jnp.where(mean > 0, mean, 1) - 1, 0)


def widened(value: Any) -> jax.Array:
    """The value as an array of float32, or of its own type where that is wider.

    Example:
        >>> widened(jnp.ones(2, jnp.bfloat16)).dtype, widened(jnp.ones(2, jnp.int32)).dtype
        (dtype('float32'), dtype('float32'))
    """
    value = jnp.asarray(value)
    wide = jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits > 32
    return value if wide else value.astype(jnp.float32)


def check_choice(shape: tuple[int, ...], top: int) -> int:
    """The number of experts, after a look at the shape of the scores and at K.

    Raises:
        InvalidProblem: scores that are no `(T, E)` array with T, E >= 1, or K outside 1..E.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise InvalidProblem(f"scores has shape {tuple(shape)}; expected (T, E) with at least one token and one expert")
    if not isinstance(top, int) or not 1 <= top <= shape[1]:
        raise InvalidProblem(f"top is {top!r}; expected an integer from 1 to the number of experts, {shape[1]}")
    return shape[1]


@record(static=("top",))
class Balancing:
    """The assignment problem of this file for one batch of scores; its own view for the method `Balancer`.

    A pair is `x` `(T, E)`, the plan, and `y` `(E,)`, the prices; objectives are costs, `-<gamma, x>`.

    Args:
        scores: `(T, E)`, what each token gains from each expert.
        top: K, experts a token is sent to.
        dtype: floating dtype of the data; default: that of the input, low precision widened to float32.
        check: look at the values (NaN, infinities); shapes are always checked.

    Raises:
        InvalidProblem: scores that are no `(T, E)` array, NaN or infinity among them, K outside 1..E.

    Example:
        >>> import pdopt
        >>> problem = Balancing([[0.9, 0.5], [0.8, 0.6], [0.7, 0.1], [0.3, 0.2]], top=1, dtype=jnp.float32)
        >>> solution = pdopt.solve(problem, tolerance=1e-3)
        >>> print(round(-float(solution.objective), 2))     # experts 0, 1, 0, 1 or 1, 0, 0, 1 would be worse
        2.4
    """

    scores: Any
    top: int
    dtype: InitVar[Any] = None
    check: InitVar[bool] = True

    def __post_init__(self, dtype: Any, check: bool) -> None:
        found = resolve_dtype([("scores", self.scores)], dtype, allow_low_precision=True)
        found = np.dtype(np.float32) if found.itemsize < 4 else found
        object.__setattr__(self, "scores", as_array("scores", self.scores, found))
        check_choice(self.scores.shape, self.top)
        if check:
            check_finite("scores", self.scores)

    @property
    def tokens(self) -> int:
        """T."""
        return self.scores.shape[0]

    @property
    def experts(self) -> int:
        """E."""
        return self.scores.shape[1]

    @property
    def target(self) -> float:
        """`L = K T / E`, the load that every expert should have."""
        return self.top * self.tokens / self.experts

    @property
    def sense(self) -> float:
        """1: a minimisation of the cost."""
        return 1.0

    def choose(self, y: Any) -> tuple[jax.Array, Tally]:
        """The experts of each token at prices y, `(T, K)`, and the tally: the primal half of the saddle step."""
        return select(self.scores, -y, self.top)

    def dual(self, bias: Any) -> jax.Array:
        """`D(p)`, a scalar: at least `<gamma, x>` of every balanced x."""
        with precision_scope(self):
            best = jax.lax.top_k(self.scores + bias, self.top)[0]
            return jnp.sum(best) - self.target * jnp.sum(bias)

    def gain(self, experts: Any) -> jax.Array:
        """`<gamma, x>` for experts `(T, K)`: the routing score kept."""
        with precision_scope(self):
            return jnp.sum(jnp.take_along_axis(self.scores, experts, axis=1))

    def plan(self, experts: Any) -> jax.Array:
        """`(T, E)` zeros and ones for experts `(T, K)`."""
        rows = jnp.arange(self.tokens)[:, None]
        return jnp.zeros(self.scores.shape, self.scores.dtype).at[rows, experts].set(1)

    def linear_program(self) -> LinearProgram:
        """The problem as a linear program in `x.ravel()`: T rows for the tokens, then E for the experts.

        Its row duals of the experts are the optimal bias, up to a constant: d cost / d load = -y = p.
        """
        import scipy.sparse as sp

        T, E = self.scores.shape
        token, expert = np.divmod(np.arange(T * E), E)
        ones = np.ones(2 * T * E, np.dtype(self.scores.dtype))
        rows = np.concatenate([token, T + expert])
        matrix = sp.csr_array((ones, (rows, np.tile(np.arange(T * E), 2))), shape=(T + E, T * E))
        right = np.concatenate([np.full(T, float(self.top)), np.full(E, self.target)])
        zero, one = np.zeros(T * E), np.ones(T * E)
        with precision_scope(self):
            return LinearProgram(-self.scores.ravel(), matrix, right, right, zero, one, dtype=self.scores.dtype)

    # What a judge and a view offer to `solve`.

    def pair_shapes(self) -> Pair:
        """Shapes and dtype of a pair."""
        shape = lambda *s: jax.ShapeDtypeStruct(s, self.scores.dtype)
        return Pair(shape(*self.scores.shape), shape(self.experts))

    def minimised(self) -> "Balancing":
        """Itself."""
        return self

    def flip(self, pair: Pair) -> Pair:
        """The pair itself."""
        return pair

    def start(self) -> Pair:
        """Every token spread evenly, all prices 0."""
        T, E = self.scores.shape
        return Pair(jnp.full((T, E), self.top / E, self.scores.dtype), jnp.zeros(E, self.scores.dtype))

    def into(self, pair: Pair) -> Pair:
        """The pair itself."""
        return pair

    def back(self, pair: Pair) -> Pair:
        """The pair itself."""
        return pair

    def certificate(self, proof: Any, ray: Pair) -> Any:
        """The experts `(T, K)` at the returned prices."""
        return proof

    def residuals(self, pair: Pair) -> Residuals:
        """See `optimality`."""
        return self.optimality(pair).residuals

    def optimality(self, pair: Pair) -> Optimality:
        """Residuals and both objectives: cost of the plan and `-D(-y)`.

        primal: l1 distance of the row sums from K, of the loads from L, and of x from [0, 1], over K T; dual: 0, every
        price is feasible; gap `|P - D| / (1 + |P| + |D|)`.
        """
        with precision_scope(self):
            x, y = pair
            rows, loads = jnp.abs(jnp.sum(x, 1) - self.top), jnp.abs(jnp.sum(x, 0) - self.target)
            box = jnp.abs(x - jnp.clip(x, 0, 1))
            primal = jnp.sum(rows) + jnp.sum(loads) + jnp.sum(box)
            worst = jnp.maximum(jnp.maximum(jnp.max(rows), jnp.max(loads)), jnp.max(box))
            cost, bound = -jnp.sum(self.scores * x), -self.dual(-y)
            gap, zero = jnp.abs(cost - bound), jnp.zeros((), x.dtype)
            relative = (primal / (self.top * self.tokens), zero, gap / (1 + jnp.abs(cost) + jnp.abs(bound)))
            return Optimality(Residuals(*relative, primal, zero, gap, worst), cost, bound, self.choose(y)[0])

    def valid(self) -> Any:
        """Whether the scores are numbers (for traced data, where a constructor cannot raise)."""
        return jnp.all(jnp.isfinite(self.scores))
