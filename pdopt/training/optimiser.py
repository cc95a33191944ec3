"""AdamW with a gradient clip and a schedule, made from a recipe's section; moments are float32 whatever is trained.

    g <- g min(1, clip / |g|);   m, n: Adam's moments;   x <- x - rate_t (m / (sqrt n + epsilon) + decay x)

The learning rate at optimiser step t rises from 0 over `warm_up` steps, then stays ("constant"), or falls by a line or
a half cosine to `final` of itself at `decay_steps`; "stable" stays, and falls by a line over the last `fall` of the
steps (Hu et al. 2024, arXiv 2404.06395). Only matrices decay. (Kingma, Ba 2015; Loshchilov, Hutter 2019.)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pdopt.training.sections import OptimiserConfig, TrainingConfig

# Vectors that are stacked over layers have two axes; these names tell them from matrices.
_VECTORS = ("norm", "bias")


def make_schedule(config: OptimiserConfig) -> optax.Schedule:
    """Learning rate of each optimiser step, of a resolved recipe.

    Example:
        >>> rate = make_schedule(OptimiserConfig(learning_rate=2.0, schedule="linear", warm_up=2, decay_steps=6))
        >>> [round(float(rate(t)), 3) for t in range(7)]
        [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]
    """
    rate = 1e-6 if config.learning_rate is None else config.learning_rate
    length = max(1, (config.decay_steps or 1) - config.warm_up)
    after = {
        "constant": lambda: optax.constant_schedule(rate),
        "linear": lambda: optax.linear_schedule(rate, rate * config.final, length),
        "cosine": lambda: optax.cosine_decay_schedule(rate, length, config.final),
        "stable": lambda: _stable(rate, length, config),
    }[config.schedule]()
    if not config.warm_up:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, config.warm_up), after], [config.warm_up])


def _stable(rate: float, length: int, config: OptimiserConfig) -> optax.Schedule:
    falling = max(1, round(config.fall * length))
    line = optax.linear_schedule(rate, rate * config.final, falling)
    return optax.join_schedules([optax.constant_schedule(rate), line], [length - falling])


def supervised_settings(training: TrainingConfig, config: OptimiserConfig) -> OptimiserConfig:
    """The optimiser of the supervised steps before a policy's: warm-up over a tenth of them, then a cosine to 0.

    Example:
        >>> supervised_settings(TrainingConfig(supervised_steps=40), OptimiserConfig()).warm_up
        4
    """
    import dataclasses

    steps = training.supervised_steps
    return dataclasses.replace(
        config, learning_rate=training.supervised_rate, schedule="cosine", warm_up=steps // 10,
        decay_steps=max(steps, 1), final=0.05,
    )  # fmt: skip


def make_optimiser(config: OptimiserConfig) -> optax.GradientTransformation:
    """The update of a resolved recipe; its state has the same structure whatever the schedule.

    Example:
        >>> optimiser = make_optimiser(OptimiserConfig(learning_rate=0.1))
        >>> x = {"w": jnp.ones(2)}
        >>> updates, _ = optimiser.update({"w": jnp.array([3.0, -4.0])}, optimiser.init(x), x)
        >>> print(updates["w"].round(3))
        [-0.1  0.1]
    """
    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
    return optax.chain(
        clip,
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=jnp.float32),
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
        optax.scale_by_learning_rate(make_schedule(config)),
    )


def init_moments(config: OptimiserConfig, trainable: Any) -> Any:
    """The optimiser's state before its first step: zeros, float32."""
    return make_optimiser(config).init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable))


def matrices(tree: Any) -> Any:
    """Which leaves are matrices: neither norms nor biases.

    Example:
        >>> matrices({"mlp_norm": jnp.ones((2, 4)), "mlp": {"up": jnp.ones((2, 4, 8)), "up_bias": jnp.ones((2, 8))}})
        {'mlp': {'up': True, 'up_bias': False}, 'mlp_norm': False}
    """
    name = lambda path: str(getattr(path[-1], "key", getattr(path[-1], "name", "")))
    return jax.tree_util.tree_map_with_path(lambda path, leaf: not name(path).endswith(_VECTORS), tree)
