"""Step rules of the balancing bias on streams with a known best price: regret, imbalance, and the theory's facts.

The stream: each step brings 256 fresh tokens with scores `sigmoid(mean_j + noise)` for 16 experts, K = 2, standard
normal means and noise. Regret per token of prices y_n: `sum_n (D_n(-y_n) - D_n(p*)) / T`, D_n the dual of batch n and
p* the best fixed bias in hindsight over the whole stream. All duals are evaluated in float64.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdopt.methods.balancing import Balancer, route
from pdopt.problems.balancing import Balancing

TOKENS, EXPERTS, TOP = 256, 16, 2
DEFAULT, SIGNS = "decaying, measured c (default)", "signs 1e-3 (DeepSeek)"
RULES = {
    DEFAULT: Balancer(),
    "decaying, no floor": Balancer(floor=0.0),
    "0.3 / n": Balancer(stepsize=0.3, floor=0.0),
    "0.1 / sqrt n": Balancer.root(0.1),
    "constant 0.01": Balancer.constant(0.01),
    SIGNS: Balancer.signs(1e-3),
}


class Curves(NamedTuple):
    """For one rule: cumulative regret per token `(paths, steps)`, and MaxVio on fixed scores `(steps,)`."""

    regret: np.ndarray
    imbalance: np.ndarray


def stream(seed: int, steps: int) -> np.ndarray:
    """Scores `(steps, T, E)` in float32."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((steps, TOKENS, EXPERTS), np.float32) + rng.standard_normal(EXPERTS, np.float32)
    return 1 / (1 + np.exp(-noise))


def follow(scores: Any, balancer: Balancer, top: int) -> tuple[Any, Any]:
    """Prices before each batch and loads of each, over a stream `(N, T, E)`."""

    def step(prices: Any, batch: Any) -> Any:
        problem = Balancing(batch, top, check=False)
        experts, after = route(problem, balancer, prices)
        return after, (prices.y, jnp.zeros(batch.shape[1], jnp.int32).at[experts.ravel()].add(1))

    return jax.lax.scan(step, balancer.start(scores.shape[2]), scores)[1]


def dual(scores: np.ndarray, bias: np.ndarray, top: int) -> np.ndarray:
    """`D(p) / T` in float64 for each batch `(N, T, E)` at its own bias `(N, E)` or at one."""
    biased = scores.astype(np.float64) + (bias[:, None, :] if bias.ndim == 2 else bias)
    best = np.partition(biased, -top, axis=2)[:, :, -top:].sum(axis=(1, 2)) / scores.shape[1]
    return best - top / scores.shape[2] * bias.sum(axis=-1)


def hindsight(scores: np.ndarray, top: int) -> np.ndarray:
    """The best fixed bias over the whole stream: fitted to every tenth token, then a few Newton-like steps on all."""
    flat = jnp.asarray(scores.reshape(-1, scores.shape[2]))
    balancer = Balancer(floor=0.0)

    def fit(tokens: Any, y: Any, steps: int) -> Any:
        problem = Balancing(tokens, top, check=False)
        step = lambda _, prices: balancer.update(prices, problem.choose(prices.y)[1], top=top)
        return jax.lax.fori_loop(0, steps, step, balancer.start(scores.shape[2])._replace(y=y)).y

    rough = jax.jit(fit, static_argnums=2)(flat[::10], jnp.zeros(scores.shape[2], jnp.float32), 30)
    return -np.asarray(jax.jit(fit, static_argnums=2)(flat, rough, 5), np.float64)


def compare(seeds: int, steps: int, say: Any) -> dict[str, Curves]:
    """Every rule on the same streams, and on one fixed batch."""
    paths = [stream(seed, steps) for seed in range(seeds)]
    best = [dual(path, hindsight(path, TOP), TOP) for path in paths]
    fixed = np.broadcast_to(paths[0][:4].reshape(1, -1, EXPERTS), (min(steps, 1000), 4 * TOKENS, EXPERTS))
    curves = {}
    for name, balancer in RULES.items():
        run = jax.jit(lambda scores, balancer=balancer: follow(scores, balancer, TOP))
        regret = []
        for path, least in zip(paths, best):
            y, _ = run(jnp.asarray(path))
            regret.append(np.cumsum(dual(path, -np.asarray(y, np.float64), TOP) - least))
        loads = np.asarray(run(jnp.asarray(fixed))[1], np.float64)
        curves[name] = Curves(np.array(regret), loads.max(1) / loads.mean(1) - 1)
        say(f"{name}: regret {curves[name].regret[:, -1].round(3).tolist()}")
    return curves


def facts(steps: int) -> tuple[int, int, int]:
    """Breaks of facts (1) and (2) of the theory, and switches seen, over runs of both rules on fixed scores, K = 1."""
    broken, wrong, switches = 0, 0, 0
    for seed, signs in ((0, False), (1, False), (2, True)):
        scores = stream(seed, 4).reshape(1, -1, EXPERTS)[:, :, :8]
        tokens, target = scores.shape[1], scores.shape[1] / 8
        balancer = Balancer.signs(0.01) if signs else Balancer.constant(0.3)
        y, loads = map(
            np.asarray, follow(jnp.asarray(np.broadcast_to(scores, (steps, *scores.shape[1:]))), balancer, 1)
        )
        # The prices are float32 and so are the sums that were compared; the check must make the same choices.
        chosen = np.argmax(scores[0][None] - y[:, None, :], axis=2)
        value = np.array([dual(scores, -y[n].astype(np.float64), 1)[0] for n in range(steps)])
        change, moved = np.diff(value), -np.diff(y.astype(np.float64), axis=0)
        low = ((loads[:-1] - target) * moved).sum(1) / tokens
        high = ((loads[1:] - target) * moved).sum(1) / tokens
        rounding = 1e-6  # float32 choices between scores near 1
        broken += int(((change < low - rounding) | (change > high + rounding)).sum())
        for n in range(steps - 1):
            changed = np.flatnonzero(chosen[n] != chosen[n + 1])
            j, k = chosen[n][changed], chosen[n + 1][changed]
            wrong += int((loads[n][k] >= loads[n][j]).sum())
            switches += changed.size
    return broken, wrong, switches
