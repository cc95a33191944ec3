"""A mixture of experts: every token goes through K of E gated feed-forward networks, chosen by a balanced router.

    scores = sigmoid(x W) or softmax(x W)                      in float32 whatever the model computes in
    chosen = router(scores, bias)                              see `routers.py`; the bias selects and does nothing else
    out    = sum over chosen e of gate_e down_e(silu(gate_e x) * up_e x),   gates from the raw scores alone

The core (`mixture`) is a pure function of weights, bias and tokens; `Experts` is the flax nnx module around it. The
bias is a variable of its own kind, `RouterBias`, not an `nnx.Param`: optimisers, weight decay, gradient clipping and
averages of parameters do not see it, checkpoints do. A training step reads

    (loss, report), grads = nnx.value_and_grad(..., has_aux=True)(model, batch)    loss + alpha * report.loss
    optimizer.update(model, grads)
    layer.rebalance(report.tally)

with the tallies of microbatches added first (`add_tallies`; integers, so the order does not matter). Under `jit` on
sharded tokens the loads are global sums by themselves; inside `shard_map` name the axes that tokens are split over
(`axes=`), or every device would learn a bias of its own.

Not done here: expert parallelism (weights over the mesh with an all-to-all); shared experts, which need no router.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pdopt.errors import InvalidOption, InvalidProblem, require_range, unknown_name
from pdopt.methods.balancing import Balancer, Prices
from pdopt.models.dispatch import Weights, by_blocks, by_places, by_ragged, collect, give_places, scatter
from pdopt.models.routers import ROUTERS, balance_loss, capacity, choose, gates
from pdopt.problems.balancing import Tally

SCORES = ("sigmoid", "softmax")
LAYOUTS = ("blocks", "ragged")


class RouterState(nnx.Variable):
    """What a router learns outside of the gradient; restore and replicate it with the model."""


class RouterBias(RouterState):
    """`(E,)` float32, minus the prices of the experts."""


class RouterMeter(RouterState):
    """What the step rule of the bias remembers: the moves made, the mean gap counts."""


class Report(NamedTuple):
    """What a forward pass says about its routing.

    Attributes:
        tally: loads and gap counts, summed over `axes`; what `rebalance` takes.
        dropped: int32, choices of tokens that found no place (experts that choose: tokens that nobody chose).
        loss: float32 balance loss of the "aux_loss" router without its weight, else 0.
        kept: float32, sum of the raw scores of what was selected, before any capacity.
    """

    tally: Tally
    dropped: Any
    loss: Any
    kept: Any


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """Settings of the layer, hashable; checked once.

    Attributes:
        width: D, size of a token.
        hidden: F, size inside an expert.
        experts: E.
        top: K, experts a token goes to.
        router: one of `pdopt.models.routers.ROUTERS`.
        scores: "sigmoid" (DeepSeek) or "softmax".
        capacity_factor: room of an expert over its fair share; None serves every choice. Routers in which experts
            choose always have a capacity: None means 1 there.
        normalise: divide the gates of a token by their sum.
        iterations: saddle steps of "sinkhorn" and "ksparse_ot".
        layout: of the products without capacity, "blocks" or "ragged" (see `dispatch.py`).
        balancer: the step rule of the bias; here with a floor of 0.1, since the scores move with every training step
            (a window of 100 steps was off by 0.86 with 0.01 and by 0.01 with 0.2 after 400 steps of a small model).
        dtype: what the experts compute in; the router always uses float32.
        param_dtype: of the parameters.

    Raises:
        InvalidOption: a setting outside its range.

    Example:
        >>> ExpertsConfig(width=8, hidden=16, experts=4, top=5)
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidOption: top is 5; expected a number in [1, 4]
    """

    width: int
    hidden: int
    experts: int
    top: int
    router: str = "bias"
    scores: str = "sigmoid"
    capacity_factor: float | None = None
    normalise: bool = True
    iterations: int = 8
    layout: str = "blocks"
    balancer: Balancer = Balancer(floor=0.1)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "experts", "top", "iterations"):
            if not isinstance(getattr(self, name), int):
                raise InvalidOption(f"{name} is {getattr(self, name)!r}; expected an integer")
            require_range(name, getattr(self, name), 1, self.experts if name == "top" else math.inf)
        for kind, known in (("router", ROUTERS), ("scores", SCORES), ("layout", LAYOUTS)):
            if getattr(self, kind) not in known:
                raise unknown_name(kind, getattr(self, kind), known)
        if self.capacity_factor is not None:
            require_range("capacity_factor", self.capacity_factor, 0.0, open_low=True)


def mixture(
    config: ExpertsConfig,
    weights: Weights,
    router: Any,
    bias: Any,
    x: Any,
    *,
    axes: tuple[str, ...] = (),
    valid: Any = None,
) -> tuple[jax.Array, Report]:
    """The layer as a pure function.

    Args:
        config: settings.
        weights: of the experts, see `Weights`.
        router: `(D, E)` float32.
        bias: `(E,)` float32; only the router "bias" looks at it.
        x: `(T, D)`.
        axes: mesh axes that the tokens are split over, inside `shard_map`. Routers that balance a batch then balance
            each device's part.
        valid: `(T,)` bool, the tokens that the tally counts, so that pads move no bias; the router "bias" alone.

    Returns:
        `(T, D)` in the dtype of x, and the `Report`, summed over `axes`. Differentiable in weights, router and x.

    Raises:
        InvalidProblem: x of another shape than `(T, D)` with T >= 1.
        InvalidOption: valid with a router that balances all tokens of the batch.
    """
    if valid is not None and config.router != "bias":
        raise InvalidOption(f"valid with router {config.router!r}; only the router 'bias' can leave tokens uncounted")
    if x.ndim != 2 or x.shape[1] != config.width or x.shape[0] < 1:
        raise InvalidProblem(f"x has shape {x.shape}; expected (T, {config.width}) with at least one token")
    length = x.shape[0]
    logits = jnp.matmul(x.astype(jnp.float32), router.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    scores = jax.nn.sigmoid(logits) if config.scores == "sigmoid" else jax.nn.softmax(logits, axis=1)
    places = capacity(length, config.experts, config.top, config.capacity_factor or 1.0)
    routing = choose(
        config.router, logits, scores, bias, top=config.top, places=places, iterations=config.iterations,
        valid=valid,
    )  # fmt: skip
    gate = gates(scores, routing, normalise=config.normalise)
    weights = jax.tree.map(lambda w: w.astype(config.dtype), weights)
    tokens = x.astype(config.dtype)
    dropped = jnp.zeros((), jnp.int32)
    if routing.experts is None:
        out = scatter(by_places(weights, tokens, routing.tokens), routing.tokens, gate, length)
        served = jnp.zeros(length, jnp.int32).at[routing.tokens].add(1, mode="drop")
        dropped = jnp.sum(served == 0, dtype=jnp.int32)
        kept = jnp.sum(scores.at[routing.tokens, jnp.arange(config.experts)[:, None]].get(mode="fill", fill_value=0))
    else:
        kept = jnp.sum(jnp.take_along_axis(scores, routing.experts, axis=1))
        if config.capacity_factor is not None:
            table, place = give_places(routing.experts, config.experts, places)
            out = collect(by_places(weights, tokens, table), place, gate)
            dropped = jnp.sum(place >= config.experts * places, dtype=jnp.int32)
        else:
            out = (by_blocks if config.layout == "blocks" else by_ragged)(weights, tokens, routing.experts, gate)
    loss = balance_loss(scores, routing.tally.loads) if config.router == "aux_loss" else jnp.zeros((), jnp.float32)
    report = Report(routing.tally, dropped, loss, lax.stop_gradient(kept))
    return out.astype(x.dtype), _summed(report, axes)


def add_tallies(*tallies: Tally) -> Tally:
    """The tally of all microbatches of a step: exact, since tallies are integers.

    Example:
        >>> one = Tally(jnp.array([1, 2]), jnp.zeros(2, jnp.int32))
        >>> print(add_tallies(one, one).loads)
        [2 4]
    """
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *tallies)


class Experts(nnx.Module):
    """The layer as a flax nnx module; see the head of this file for a training step.

    Args:
        config: settings.
        rngs: a stream "params", for weights of standard deviation `1 / sqrt(fan in)`.

    Example:
        >>> layer = Experts(ExpertsConfig(width=8, hidden=16, experts=4, top=2), rngs=nnx.Rngs(0))
        >>> out, report = layer(jnp.ones((3, 8)))
        >>> print(out.shape, report.tally.loads.sum())
        (3, 8) 6
        >>> layer.rebalance(report.tally)
        >>> print(bool(layer.bias[...].min() < 0))              # all three tokens took the same two experts
        True
    """

    def __init__(self, config: ExpertsConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        E, D, F = config.experts, config.width, config.hidden

        def normal(shape: tuple[int, ...], fan: int, dtype: Any) -> nnx.Param:
            return nnx.Param((jax.random.normal(rngs.params(), shape, jnp.float32) / math.sqrt(fan)).astype(dtype))

        self.router = normal((D, E), D, jnp.float32)
        self.gate = normal((E, D, F), D, config.param_dtype)
        self.up = normal((E, D, F), D, config.param_dtype)
        self.down = normal((E, F, D), F, config.param_dtype)
        start = config.balancer.start(E)
        self.bias = RouterBias(start.y)
        self.moves = RouterMeter(start.count)
        self.near = RouterMeter(start.near)

    def __call__(self, x: Any, *, axes: tuple[str, ...] = ()) -> tuple[jax.Array, Report]:
        """Tokens `(..., D)` to `(..., D)` and the report; changes no variable."""
        weights = Weights(self.gate[...], self.up[...], self.down[...])
        flat = jnp.reshape(x, (-1, x.shape[-1]))
        out, report = mixture(self.config, weights, self.router[...], self.bias[...], flat, axes=axes)
        return out.reshape(x.shape), report

    def rebalance(self, tally: Tally) -> None:
        """Move the bias, after the optimiser's step, by the tally of the whole batch; other routers keep theirs."""
        if self.config.router != "bias":
            return
        prices = Prices(-self.bias[...], self.moves[...], self.near[...])
        prices = self.config.balancer.update(prices, tally, top=self.config.top)
        self.bias[...] = -prices.y
        self.moves[...] = prices.count
        self.near[...] = prices.near


def _summed(report: Report, axes: tuple[str, ...]) -> Report:
    """The report of all devices: sums, and the mean of the balance loss."""
    if not axes:
        return report
    total = lambda value: lax.psum(value, axes)
    tally = Tally(total(report.tally.loads), total(report.tally.near))
    return Report(tally, total(report.dropped), lax.pmean(report.loss, axes), total(report.kept))
