"""Personalised assortments under a multinomial logit: which at most K of n products to show to a customer.

    request: the MNL weights v (n,) of the customer's segment;   action: a set S of at most K products
    p_i(S) = v_i / (1 + sum_S v),   reward sum_S r_i p_i,   consumption p (one resource a product)

Best set at prices y: the root z of `phi(z) = sum of the K largest [v_i (r_i - y_i - z)]_+ - z`, which falls; the set is
the at most K products that count at the root, and z its value. Source of the problem: Golrezaei, Nazerzadeh and
Rusmevichientong (2014); of the root: Rusmevichientong, Shen and Shmoys (2010), who search it over candidates.
"""

import itertools
from dataclasses import InitVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidOption, InvalidProblem, require_shape
from pdopt.problems.streams import Menu, Size, Stream, Types, pick, require_probabilities, require_sign_of
from pdopt.runtime.precision import as_array, resolve_dtype
from pdopt.types import record

NEWTON_STEPS = 8  # 6 were the most that any of 200 000 random instances of up to 30 products needed
LARGEST_MENU = 20_000


@record(static=("limit",))
class Assortment(Stream):
    """Assortments of at most `limit` products for customers of several segments (multinomial logit, no-purchase 1).

    Args:
        prices: `(n,)`, what a sale earns, >= 0.
        weights: `(s, n)`, the MNL weights of each segment, >= 0.
        probabilities: `(s,)`, of the segments.
        limit: K, an integer in [1, n]; None for n.

    Raises:
        InvalidProblem: shapes that do not fit, NaN, negative entries, probabilities that do not sum to 1.
        InvalidOption: a limit outside [1, n].

    Example:
        >>> shop = Assortment([1.0, 2.0, 3.0], [[1.0, 1.0, 1.0]], [1.0], limit=1)
        >>> print(shop.best(shop.weights[0], jnp.array([0.0, 0.0, 2.5])).astype(int))
        [0 1 0]
    """

    prices: Any
    weights: Any
    probabilities: Any
    limit: Any = None
    given_dtype: InitVar[Any] = None

    def __post_init__(self, given_dtype: Any) -> None:
        data = {name: getattr(self, name) for name in ("prices", "weights", "probabilities")}
        dtype = resolve_dtype(data.items(), given_dtype)
        prices, weights, probabilities = (as_array(name, value, dtype) for name, value in data.items())
        if weights.ndim != 2 or 0 in weights.shape:
            raise InvalidProblem(f"weights has shape {weights.shape}; expected (segments, products), at least one each")
        segments, n = weights.shape
        require_shape("prices", prices.shape, (n,), f"weights has {n} columns")
        require_shape("probabilities", probabilities.shape, (segments,), f"weights has {segments} rows")
        require_sign_of("prices", prices)
        require_sign_of("weights", weights)
        require_probabilities("probabilities", probabilities)
        limit = n if self.limit is None else self.limit
        if not isinstance(limit, int | np.integer) or isinstance(limit, bool) or not 1 <= limit <= n:
            raise InvalidOption(f"limit is {limit!r}; expected an integer in [1, {n}], the number of products")
        fields = {"prices": prices, "weights": weights, "probabilities": probabilities, "limit": int(limit)}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def resources(self) -> int:
        """n, one a product."""
        return self.prices.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """That of the prices."""
        return np.dtype(self.prices.dtype)

    def draw(self, key: Any, t: Any) -> Any:
        """The weights of a segment by its probability."""
        return self.weights[pick(jnp.cumsum(self.probabilities), jax.random.uniform(key, dtype=self.prices.dtype))]

    def best(self, request: Any, y: Any) -> Any:
        """The best set as a mask `(n,)`, by Newton's method on phi from z = 0.

        phi + z is the largest of finitely many functions affine in z, one a set, so phi is convex and piecewise linear
        and falls with slope <= -1. Newton from the left of the root goes up and stops at it exactly: each step is the
        value of the set that counts at z (Dinkelbach's method), and the sets that count are finitely many.
        """
        margin = self.prices - y
        value = jnp.zeros((), self.prices.dtype)

        def improve(_: Any, value: Any) -> Any:
            return self._value(request, self._counting(request, margin, value), margin)

        value = jax.lax.fori_loop(0, NEWTON_STEPS, improve, value, unroll=True)
        return self._counting(request, margin, value)

    def _counting(self, v: Any, margin: Any, z: Any) -> Any:
        """The at most K products with the largest `v (margin - z) > 0`, ties to the lowest index."""
        gain = v * (margin - z)
        if self.limit == self.resources:
            return gain > 0
        index = jnp.arange(self.resources, dtype=jnp.int32)
        ahead = (gain[None, :] > gain[:, None]) | ((gain[None, :] == gain[:, None]) & (index[None, :] < index[:, None]))
        return (gain > 0) & (jnp.sum(ahead, axis=1, dtype=jnp.int32) < self.limit)

    def _value(self, v: Any, mask: Any, margin: Any) -> Any:
        shown = v * mask.astype(v.dtype)
        return jnp.sum(shown * margin) / (1 + jnp.sum(shown))

    def shares(self, request: Any, x: Any) -> Any:
        """`p(S)`, the chance of each product to be bought."""
        shown = request * x.astype(request.dtype)
        return shown / (1 + jnp.sum(shown))

    def reward(self, request: Any, x: Any) -> Any:
        """Expected revenue of the set."""
        return jnp.sum(self.prices * self.shares(request, x))

    def consumption(self, request: Any, x: Any) -> Any:
        """Expected sales of the set."""
        return self.shares(request, x)

    def size(self) -> Size:
        """The mean price, and one sale split equally."""
        return Size(jnp.mean(self.prices), jnp.full_like(self.prices, 1 / self.resources))

    def absent(self, request: Any) -> Any:
        """A customer who buys nothing whatever is shown."""
        return jnp.zeros_like(request)

    def spoilt(self, request: Any) -> Any:
        """The same: shares without reward do not exist here, as prices are not the customer's."""
        return self.absent(request)

    def menu(self, request: Any) -> Menu:
        """All sets of 1 to K products, smallest first.

        Raises:
            InvalidOption: more than 20 000 sets.
        """
        n = self.resources
        sets = [s for size in range(1, self.limit + 1) for s in itertools.islice(
            itertools.combinations(range(n), size), LARGEST_MENU + 1)]  # fmt: skip
        if len(sets) > LARGEST_MENU:
            raise InvalidOption(f"limit is {self.limit} of {n} products; expected at most {LARGEST_MENU} sets to list")
        masks = np.zeros((len(sets), n), bool)
        for row, chosen in enumerate(sets):
            masks[row, list(chosen)] = True
        shares = jax.vmap(lambda mask: self.shares(request, mask))(jnp.asarray(masks))
        return Menu(shares @ self.prices, shares)

    def types(self) -> Types:
        """The segments."""
        return Types(self.probabilities, self.weights)
