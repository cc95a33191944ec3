"""Three streams with closed-form best actions: network revenue management, auctions, proportional matching.

    application             request             action              best
    RevenueManagement       fare r, column A    accept {0, 1}       r > <y, A>
    Auctions                value v, rival d    win {0, 1}          bid v / (1 + y), won where it is >= d
    EntropicMatching        rewards r (m,)      x >= 0, sum x <= 1  z / max(1, sum z),  z = exp((r - y)/lam - 1)

The fourth, assortments of a multinomial logit, is `assortment.py`. Source of the applications: Balseiro, Lu and
Mirrokni, "The Best of Many Worlds" (arXiv 2011.10124), section 4.
"""

from dataclasses import InitVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidProblem, require_shape
from pdopt.problems.checks import concrete
from pdopt.problems.streams import Menu, Size, Stream, Types, pick, require_probabilities, require_sign_of
from pdopt.runtime.precision import as_array, resolve_dtype
from pdopt.types import record


class Booking(NamedTuple):
    """Someone offers `fare` for one unit of each resource in `column`."""

    fare: Any
    column: Any


class Bid(NamedTuple):
    """An item worth `value` to us, for which the best rival bids `rival` (which the bidder sees only on winning)."""

    value: Any
    rival: Any


@record(static=("unit",))
class RevenueManagement(Stream):
    """Network revenue management: a request of type k, with probability p_k, pays r_k for the resources A_k.

        max sum_t r x    subject to    sum_t A x <= T rate,   x in {0, 1};      best: accept where r > <y, A>

    Args:
        fares: `(k,)`, >= 0.
        columns: `(k, m)`, >= 0: what each type consumes.
        probabilities: `(k,)`, of the types.
        unit: every consumption is a multiple of it; None: 1 where the columns are whole numbers, else no unit.

    Raises:
        InvalidProblem: shapes that do not fit, NaN, negative entries, probabilities that do not sum to 1, or
            columns that are no multiples of the unit.

    Example:
        >>> seats = RevenueManagement([1.0, 3.0], [[1.0], [1.0]], [0.5, 0.5])
        >>> request = Booking(seats.fares[1], seats.columns[1])
        >>> bool(seats.best(request, jnp.array([2.0]))), bool(seats.best(request, jnp.array([4.0])))
        (True, False)
    """

    fares: Any
    columns: Any
    probabilities: Any
    unit: float | None = None
    given_dtype: InitVar[Any] = None

    def __post_init__(self, given_dtype: Any) -> None:
        data = {name: getattr(self, name) for name in ("fares", "columns", "probabilities")}
        dtype = resolve_dtype(data.items(), given_dtype)
        fares, columns, probabilities = (as_array(name, value, dtype) for name, value in data.items())
        if columns.ndim != 2 or 0 in columns.shape:
            raise InvalidProblem(f"columns has shape {columns.shape}; expected (types, resources), at least one each")
        types = columns.shape[0]
        require_shape("fares", fares.shape, (types,), f"columns has {types} rows")
        require_shape("probabilities", probabilities.shape, (types,), f"columns has {types} rows")
        require_sign_of("fares", fares)
        require_sign_of("columns", columns)
        require_probabilities("probabilities", probabilities)
        unit = self.unit
        seen = concrete(columns)
        if seen is not None:
            if unit is None and (seen == np.round(seen)).all():
                unit = 1.0
            if unit is not None and not np.allclose(seen / unit, np.round(seen / unit), rtol=0, atol=1e-4):
                raise InvalidProblem(f"unit is {unit:g}; expected every entry of columns to be a multiple of it")
        for name, value in (("fares", fares), ("columns", columns), ("probabilities", probabilities), ("unit", unit)):
            object.__setattr__(self, name, value)

    @property
    def resources(self) -> int:
        """m."""
        return self.columns.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """That of the fares."""
        return np.dtype(self.fares.dtype)

    def draw(self, key: Any, t: Any) -> Booking:
        """A type by its probability."""
        k = pick(jnp.cumsum(self.probabilities), jax.random.uniform(key, dtype=self.fares.dtype))
        return Booking(self.fares[k], self.columns[k])

    def best(self, request: Booking, y: Any) -> Any:
        """Whether the fare exceeds the price of what it takes."""
        return request.fare > jnp.sum(y * request.column)

    def reward(self, request: Booking, x: Any) -> Any:
        """The fare, if accepted."""
        return request.fare * x.astype(request.fare.dtype)

    def consumption(self, request: Booking, x: Any) -> Any:
        """The column, if accepted."""
        return request.column * x.astype(request.column.dtype)

    def size(self) -> Size:
        """Means over the types."""
        return Size(self.probabilities @ self.fares, self.probabilities @ self.columns)

    def absent(self, request: Booking) -> Booking:
        """Nothing for nothing."""
        return Booking(jnp.zeros_like(request.fare), jnp.zeros_like(request.column))

    def spoilt(self, request: Booking) -> Booking:
        """No fare for the most that any type takes of each resource."""
        return Booking(jnp.zeros_like(request.fare), jnp.max(self.columns, axis=0).astype(request.column.dtype))

    def menu(self, request: Booking) -> Menu:
        """To accept."""
        return Menu(request.fare[None], request.column[None])

    def types(self) -> Types:
        """The types as they are."""
        return Types(self.probabilities, Booking(self.fares, self.columns))


@record
class Auctions(Stream):
    """Repeated second-price auctions with a budget: v ~ U(0, highest_value), best rival bid d ~ U(0, highest_rival).

        reward v - d, consumption d on a win;      best: bid v / (1 + y), which wins where it is at least d

    The bid is a function of v and y alone; d enters where the auctioneer compares, and is seen on a win only. On a
    loss consumption is 0, so the violation that moves the multiplier is minus the rate: no peeking.

    Args:
        highest_value, highest_rival: scalars > 0.

    Raises:
        InvalidProblem: not positive numbers.

    Example:
        >>> auctions = Auctions()
        >>> print(auctions.bid(jnp.float32(0.9), jnp.ones(1, jnp.float32)))
        0.45
    """

    highest_value: Any = 1.0
    highest_rival: Any = 1.0
    given_dtype: InitVar[Any] = None

    def __post_init__(self, given_dtype: Any) -> None:
        data = {name: getattr(self, name) for name in ("highest_value", "highest_rival")}
        dtype = resolve_dtype(data.items(), given_dtype)
        for name, value in data.items():
            array = as_array(name, value, dtype)
            require_shape(name, array.shape, (), "it is a number")
            require_sign_of(name, array, positive=True)
            object.__setattr__(self, name, array)

    @property
    def resources(self) -> int:
        """1: money."""
        return 1

    @property
    def dtype(self) -> np.dtype:
        """That of the highest value."""
        return np.dtype(self.highest_value.dtype)

    def draw(self, key: Any, t: Any) -> Bid:
        """Value and rival bid, independent."""
        value, rival = jax.random.uniform(key, (2,), dtype=self.highest_value.dtype)
        return Bid(self.highest_value * value, self.highest_rival * rival)

    def bid(self, value: Any, y: Any) -> Any:
        """`v / (1 + y)`: what an item is worth when money has the price 1 + y."""
        return value / (1 + y[0])

    def best(self, request: Bid, y: Any) -> Any:
        """Whether our bid wins."""
        return self.bid(request.value, y) >= request.rival

    def reward(self, request: Bid, x: Any) -> Any:
        """The value less the price, on a win."""
        return (request.value - request.rival) * x.astype(request.value.dtype)

    def consumption(self, request: Bid, x: Any) -> Any:
        """The rival's bid, on a win."""
        return (request.rival * x.astype(request.rival.dtype))[None]

    def size(self) -> Size:
        """Half the highest value and rival bid."""
        return Size(self.highest_value / 2, self.highest_rival[None] / 2)

    def absent(self, request: Bid) -> Bid:
        """An item worth nothing that the rival pays the highest price for."""
        return Bid(jnp.zeros_like(request.value), self.highest_rival.astype(request.rival.dtype))

    def spoilt(self, request: Bid) -> Bid:
        """The same: winning it would cost the highest price and bring nothing."""
        return self.absent(request)

    def menu(self, request: Bid) -> Menu:
        """To win."""
        return Menu((request.value - request.rival)[None], request.rival[None, None])


@record
class EntropicMatching(Stream):
    """Proportional matching with an entropy: an impression is split over m advertisers.

        max <r, x> + lam H(x),  H(x) = -sum x log x,   over x >= 0, sum x <= 1;   consumption x
        best: z / max(1, sum z) with z = exp((r - y)/lam - 1)

    (The gradient of H is -log x - 1, so z is the free maximiser; where it sums to more than 1 the multiplier of the
    sum scales it.) Rewards are drawn as `r ~ N(mean, spread^2 I)`.

    Args:
        mean: `(m,)`, mean rewards.
        spread: standard deviation of each reward, >= 0.
        temperature: lam > 0.

    Raises:
        InvalidProblem: shapes that do not fit, NaN, a negative spread, a temperature that is not positive.

    Example:
        >>> ads = EntropicMatching([1.0, 1.0], temperature=0.1)
        >>> print(ads.best(ads.mean, jnp.zeros(2)))
        [0.5 0.5]
    """

    mean: Any
    spread: Any = 0.5
    temperature: Any = 0.1
    given_dtype: InitVar[Any] = None

    def __post_init__(self, given_dtype: Any) -> None:
        data = {name: getattr(self, name) for name in ("mean", "spread", "temperature")}
        dtype = resolve_dtype(data.items(), given_dtype)
        arrays = {name: as_array(name, value, dtype) for name, value in data.items()}
        if arrays["mean"].ndim != 1 or not arrays["mean"].size:
            raise InvalidProblem(f"mean has shape {arrays['mean'].shape}; expected (resources,), at least one")
        require_shape("spread", arrays["spread"].shape, (), "it is a number")
        require_shape("temperature", arrays["temperature"].shape, (), "it is a number")
        require_sign_of("spread", arrays["spread"])
        require_sign_of("temperature", arrays["temperature"], positive=True)
        for name, value in arrays.items():
            object.__setattr__(self, name, value)

    @property
    def resources(self) -> int:
        """m."""
        return self.mean.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """That of the means."""
        return np.dtype(self.mean.dtype)

    def draw(self, key: Any, t: Any) -> Any:
        """Rewards `(m,)`."""
        return self.mean + self.spread * jax.random.normal(key, self.mean.shape, dtype=self.mean.dtype)

    def best(self, request: Any, y: Any) -> Any:
        """`z / max(1, sum z)`; the largest exponent is taken out where it is positive, as z may overflow."""
        score = (request - y) / self.temperature - 1
        top = jnp.maximum(jnp.max(score), 0)
        z = jnp.exp(score - top)
        return z / jnp.maximum(jnp.exp(-top), jnp.sum(z))

    def reward(self, request: Any, x: Any) -> Any:
        """`<r, x> + lam H(x)`; `0 log 0 = 0`."""
        log = jnp.log(jnp.where(x > 0, x, jnp.ones_like(x)))
        return jnp.sum(x * (request - self.temperature * log))

    def consumption(self, request: Any, x: Any) -> Any:
        """The shares."""
        return x

    def size(self) -> Size:
        """A reward of one spread above the mean of means, and equal shares."""
        reward = jnp.abs(jnp.mean(self.mean)) + self.spread + self.temperature
        return Size(reward, jnp.full_like(self.mean, 1 / self.resources))

    def absent(self, request: Any) -> Any:
        """Rewards 1000 temperatures below 0, at which every share is exp(-1001) and rounds to 0."""
        return jnp.full_like(request, -1000) * self.temperature.astype(request.dtype)

    def spoilt(self, request: Any) -> Any:
        """No reward but that of the entropy; sharing equally still consumes everything."""
        return jnp.zeros_like(request)
