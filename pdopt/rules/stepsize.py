"""Step sizes of a saddle step: `tau = eta / omega` for the primal, `sigma = eta omega` for the dual.

PDHG is safe for `eta |A| <= 1`. What a step really met is smaller: with the movement of one step,

    limit = (omega |dx|^2 + |dy|^2 / omega) / (2 |<dy, dv>| - bend),      dv = v(x') - v(x)

a step of size eta <= limit is admissible (Applegate et al. 2021, arXiv 2106.04756, algorithm 2).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pdopt.errors import require_range
from pdopt.operators.norms import POWER_ITERATIONS
from pdopt.types import Steps, record

MEMORY = 64  # steps over which the mean of log(limit / eta) is taken

FREE = 1e3  # limit / base from which a step counts as not having met the operator


class Movement(NamedTuple):
    """Squares and the cross product of one step: `|dx|^2`, `|dy|^2`, `<dy, dv>`.

    `bend` is what a bounded curvature adds to the metric, `dx'(H - Q)dx >= 0` (None: nothing): a longer step is
    admissible with it, and the error counts it.
    """

    primal: Any
    dual: Any
    cross: Any
    bend: Any = None

    def error(self, eta: Any, omega: Any) -> Any:
        """Fixed-point error in the metric of PDHG over sqrt(eta), so that different etas compare.

        `sqrt(omega |dx|^2 + |dy|^2 / omega - 2 eta <dy, dv> + eta bend) / sqrt(eta)`.
        """
        square = omega * self.primal + self.dual / omega - 2 * eta * self.cross
        if self.bend is not None:
            square = square + eta * self.bend
        return jnp.sqrt(jnp.maximum(square, 0) / eta)

    def ratio(self, omega: Any) -> Any:
        """Log of primal over dual residual of the step, `log((|dy| / omega) / (omega |dx|))`: what its steps left open.

        Unlike the residuals of the certificate it is never exactly 0 on one side where every variable is boxed.
        """
        tiny = jnp.finfo(self.primal.dtype).tiny
        return 0.5 * jnp.log((self.dual + tiny) / (self.primal + tiny) / omega**4)

    def limit(self, omega: Any) -> Any:
        """The largest admissible eta that this step met; infinite where nothing crossed."""
        crossed = 2 * jnp.abs(self.cross)
        if self.bend is not None:
            crossed = crossed - self.bend
        moved = omega * self.primal + self.dual / omega
        return jnp.where(crossed > 0, moved / jnp.where(crossed > 0, crossed, 1), jnp.inf)


class Size(NamedTuple):
    """The step size eta, how many steps were tried, whether the latest was accepted, and what decides to adapt.

    `base` is the constant step, `slack` the running mean of `log(limit / base)`: how much larger steps could have been.
    """

    eta: Any
    tried: Any
    accepted: Any
    slack: Any
    base: Any

    @staticmethod
    def begin(eta: Any) -> "Size":
        """Before the first step."""
        return Size(eta, jnp.int32(0), jnp.bool_(True), jnp.zeros_like(eta), eta)

    def steps(self, omega: Any) -> Steps:
        """Primal and dual step sizes for a primal weight."""
        return Steps(self.eta / omega, self.eta * omega)


@record
class ConstantStep:
    """`eta = share / |A|_2`, never changed: no reduction inside the loop.

    Attributes:
        share: in (0, 1]; 0.998 leaves room for the power iteration, which approaches the norm from below (cuPDLPx).
    """

    share: Any = 0.998
    adapts = False
    products = POWER_ITERATIONS  # a norm that is too small would diverge

    def validate(self) -> None:
        """Raise `InvalidOption` for a share outside (0, 1]."""
        require_range("share", self.share, 0.0, 1.0, open_low=True)

    def init(self, norm: Any) -> Size:
        """Size for an operator norm; 1 where the operator is zero."""
        return Size.begin(jnp.where(norm > 0, self.share / jnp.where(norm > 0, norm, 1), 1))


@record
class AdaptiveStep:
    """A constant step that turns adaptive where the iterates meet a far smaller spectrum than `|A|_2`.

    Every step is accepted when eta <= limit, else repeated with a smaller one; the base `share / |A|_2` shrinks only
    when the norm it came from was too rough. While the running mean of `log(limit / base)` exceeds `log switch`,

        eta <- min((1 - k^-shrink) factor limit, (1 + k^-grow) eta),      k steps tried

    as in PDLP; else eta is the base. An eta that moves inside an epoch spoils the convergence of differences of
    iterates to a ray, which is what certifies infeasibility, so it pays to stay constant where little is gained.

    Attributes:
        share: in (0, 1]; the constant step is share / |A|_2.
        factor: in (0, 1]; share of the limit aimed at once adapting.
        switch: >= 0; mean limit / base from which eta adapts: 0 adapts always, infinity never.
        shrink, grow: exponents of k (PDLP: 0.3 and 0.6).
    """

    share: Any = 0.99
    factor: Any = 0.9
    switch: Any = 3.0
    shrink: Any = 0.3
    grow: Any = 0.6
    adapts = True
    products = 64  # power iterations for the base: a rough norm will do, since every step is checked

    def validate(self) -> None:
        """Raise `InvalidOption` for shares outside (0, 1], a switch below 1 or exponents not positive."""
        require_range("share", self.share, 0.0, 1.0, open_low=True)
        require_range("factor", self.factor, 0.0, 1.0, open_low=True)
        require_range("switch", self.switch, 0.0)
        require_range("shrink", self.shrink, 0.0, open_low=True)
        require_range("grow", self.grow, 0.0, open_low=True)

    def init(self, norm: Any) -> Size:
        """Start at share / norm; 1 where the operator is zero."""
        return Size.begin(jnp.where(norm > 0, self.share / jnp.where(norm > 0, norm, 1), 1))

    def update(self, size: Size, movement: Movement, omega: Any) -> Size:
        """The next size; its `accepted` says whether the step just tried may be kept."""
        limit = movement.limit(omega)
        count = (size.tried + 2).astype(size.eta.dtype)
        accepted = size.eta <= limit
        # A step in which only one side moved says nothing about the spectrum: eta stays. That is what the iterates of
        # an infeasible program do in the end, and a moving eta would spoil the convergence to their ray.
        met = limit < FREE * size.base
        seen = jnp.where(met, jnp.log(limit / size.base), size.slack)
        slack = size.slack + (seen - size.slack) / MEMORY
        base = jnp.where(limit < size.base, self.factor * limit, size.base)
        adapting = slack > jnp.log(self.switch)
        moving = jnp.minimum((1 - count**-self.shrink) * self.factor * limit, (1 + count**-self.grow) * size.eta)
        eta = jnp.where(adapting, jnp.where(met, moving, size.eta), base)
        return Size(eta, size.tried + 1, accepted, slack, base)
