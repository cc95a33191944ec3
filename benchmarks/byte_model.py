"""A byte-level language model with one mixture of experts, trained on the text that comes with Python itself.

One block: causal attention with 4 heads, then `pdopt.models.experts.Experts`. Data: `pydoc_data.topics`, about 465 000
bytes; every tenth block of 1024 bytes is kept for validation. The whole run is one `lax.scan`, compiled once a router;
the key, the weight of the auxiliary loss and the text are arguments.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pdopt.models.experts import Experts, ExpertsConfig

BLOCK = 1024
HEADS = 4


class Size(NamedTuple):
    """Widths, batch and length of a run."""

    width: int = 64
    hidden: int = 64
    experts: int = 16
    top: int = 2
    length: int = 64
    batch: int = 8
    steps: int = 600
    rate: float = 3e-3


class Run(NamedTuple):
    """One trained model: its state, per-step history, and CPU seconds a step."""

    params: Any
    rest: Any
    loads: np.ndarray
    dropped: np.ndarray
    losses: np.ndarray
    seconds: float


def text() -> tuple[np.ndarray, np.ndarray]:
    """Bytes for training and for validation."""
    from pydoc_data.topics import topics

    data = np.frombuffer("\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)
    blocks = data[: len(data) - len(data) % BLOCK].reshape(-1, BLOCK)
    held = np.arange(len(blocks)) % 10 == 9
    return blocks[~held].ravel(), blocks[held].ravel()


class ByteModel(nnx.Module):
    """Embedding, attention, experts, head."""

    def __init__(self, config: ExpertsConfig, size: Size, rngs: nnx.Rngs) -> None:
        D = size.width
        normal = lambda shape, scale: nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.embed, self.place = normal((256, D), 0.02), normal((size.length, D), 0.02)
        self.into, self.out = normal((D, 3 * D), D**-0.5), normal((D, D), D**-0.5)
        self.head = normal((D, 256), 0.02)
        self.norms = nnx.List([nnx.RMSNorm(D, rngs=rngs) for _ in range(3)])
        self.experts = Experts(config, rngs=rngs)

    def __call__(self, tokens: Any) -> tuple[jax.Array, Any]:
        """Logits `(B, S, 256)` and the report of the experts."""
        x = self.embed[...][tokens] + self.place[...][: tokens.shape[1]]
        parts = jnp.split(self.norms[0](x) @ self.into[...], 3, axis=-1)
        q, k, v = (part.reshape(*part.shape[:2], HEADS, -1) for part in parts)
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ self.out[...]
        mixed, report = self.experts(self.norms[1](x))
        return self.norms[2](x + mixed) @ self.head[...], report


def draw(key: Any, data: Any, size: Size) -> tuple[jax.Array, jax.Array]:
    """A batch of windows and the bytes that follow."""
    first = jax.random.randint(key, (size.batch,), 0, data.shape[0] - size.length - 1)
    windows = data[first[:, None] + jnp.arange(size.length + 1)].astype(jnp.int32)
    return windows[:, :-1], windows[:, 1:]


def cross_entropy(logits: Any, targets: Any) -> jax.Array:
    """Mean nats a byte."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


class Trainer:
    """One router's training, compiled once (`compile` seconds) and run for any seed and weight of the loss."""

    def __init__(self, config: ExpertsConfig, size: Size, data: tuple[np.ndarray, np.ndarray]) -> None:
        self.config, self.size = config, size
        self.train, self.held = (jnp.asarray(part) for part in data)
        self.optimiser = optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, size.rate, min(50, size.steps // 2), size.steps), weight_decay=0.01
        )
        started = time.process_time()
        self._run = jax.jit(self._whole).lower(jax.random.key(0), jnp.float32(0), self.train).compile()
        self.compile = time.process_time() - started
        self._judge = jax.jit(self._validate)

    def build(self, key: Any) -> ByteModel:
        """A fresh model."""
        return ByteModel(self.config, self.size, nnx.Rngs(params=key))

    def _whole(self, key: Any, alpha: Any, data: Any) -> Any:
        graph, params, rest = nnx.split(self.build(jax.random.fold_in(key, 2**31 - 1)), nnx.Param, ...)

        def step(carry: Any, number: Any) -> Any:
            params, rest, state = carry
            tokens, targets = draw(jax.random.fold_in(key, number), data, self.size)

            def loss(params: Any) -> Any:
                logits, report = nnx.merge(graph, params, rest)(tokens)
                plain = cross_entropy(logits, targets)
                return plain + alpha * report.loss, (plain, report)

            gradient, (plain, report) = jax.grad(loss, has_aux=True)(params)
            change, state = self.optimiser.update(gradient, state, params)
            model = nnx.merge(graph, optax.apply_updates(params, change), rest)
            model.experts.rebalance(report.tally)
            _, params, rest = nnx.split(model, nnx.Param, ...)
            return (params, rest, state), (plain, report.tally.loads, report.dropped)

        carry = (params, rest, self.optimiser.init(params))
        (params, rest, _), history = jax.lax.scan(step, carry, jnp.arange(self.size.steps))
        return params, rest, history

    def run(self, seed: int, alpha: float = 0.0) -> Run:
        """Train once; CPU seconds a step without compilation."""
        started = time.process_time()
        found = jax.block_until_ready(self._run(jax.random.key(seed), jnp.float32(alpha), self.train))
        seconds = (time.process_time() - started) / self.size.steps
        params, rest, (losses, loads, dropped) = found
        return Run(params, rest, np.asarray(loads), np.asarray(dropped), np.asarray(losses, np.float64), seconds)

    def _validate(self, params: Any, rest: Any, data: Any) -> Any:
        graph = nnx.graphdef(nnx.eval_shape(lambda: self.build(jax.random.key(0))))
        length = self.size.length
        count = (data.shape[0] - 1) // (length * self.size.batch)
        used = count * length * self.size.batch
        shape = (count, self.size.batch, length)
        tokens, targets = data[:used].reshape(shape), data[1 : used + 1].reshape(shape)

        def one(pair: Any) -> Any:
            logits, report = nnx.merge(graph, params, rest)(pair[0].astype(jnp.int32))
            return cross_entropy(logits, pair[1].astype(jnp.int32)), report.dropped

        losses, dropped = jax.lax.map(one, (tokens, targets))
        return losses, jnp.mean(dropped) / (self.size.batch * length)

    def validate(self, run: Run) -> tuple[float, float]:
        """Mean loss on the held-out text in nats a byte, and choices (or unserved tokens) lost a token."""
        losses, dropped = self._judge(run.params, run.rest, self.held)
        return float(np.mean(np.asarray(losses, np.float64))), float(dropped)

    def scores(self, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Raw scores, logits and bias on one validation batch, `(T, E)`, `(T, E)`, `(E,)`."""
        model = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: self.build(jax.random.key(0)))), run.params, run.rest)
        tokens, _ = draw(jax.random.key(12345), self.held, self.size)
        seen: list[Any] = []
        layer = model.experts

        def record(x: Any) -> Any:
            seen.append(x)
            return layer(x)

        model.experts = record  # pyright: ignore[reportAttributeAccessIssue]
        model(tokens)
        logits = seen[0].reshape(-1, self.size.width) @ layer.router[...]
        scores = jax.nn.sigmoid(logits) if self.config.scores == "sigmoid" else jax.nn.softmax(logits, axis=1)
        return np.asarray(scores), np.asarray(logits), np.asarray(layer.bias[...])
