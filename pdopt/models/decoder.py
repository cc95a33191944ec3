"""The decoder as pure functions of a configuration and a tree of parameters.

    h = embed[tokens];   for each layer:  h += o(attention(norm h));  h += down(silu(gate n) * up n), n = norm h
    logits = norm(h) @ head;             norm x = x / sqrt(mean x^2 + eps) * w, in float32

Parameters are a nested dictionary (`config.shapes` names them); layers are stacked on a leading axis. They run in a
`lax.scan` (one compiled block, compile time free of depth) or unrolled (faster on a CPU, and for decoding).
`Decoder` pairs the two for users: a pytree to call, differentiate and shard.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from pdopt.errors import InvalidOption, require_shape
from pdopt.models.block import Outward, normed, packed, project, residual_and_tally, turns
from pdopt.models.config import DecoderConfig
from pdopt.models.kernels import block_attention, choose, needs_front
from pdopt.models.log_probs import TokenScores, token_log_probs
from pdopt.models.lora import Adapters, beside, merged
from pdopt.models.sharding import RESIDUAL, constrain, lookup, split_heads, whole_layer
from pdopt.types import record

REMATS = ("none", "full", "dots", "offload")
# The name by which a policy finds what to keep, and the memory of a host that an accelerator can read.
BLOCK_INPUT, HOST = "block_input", "pinned_host"


class Execution(NamedTuple):
    """How the same numbers are computed; nothing here changes the model.

    Attributes:
        compute: dtype of products and activations; parameters are cast to it. None: the parameters' own.
        kernel: attention kernel, one of `attention.KERNELS`; None chooses by backend, and says so in the log.
        unroll: run the layers in a Python loop instead of a scan.
        remat: what the backward pass recomputes: "none", "full" (all but block inputs), "dots" (all but products),
            "offload" (as "full", with the block inputs in the host's memory).
        mesh: where activations are split (`sharding.make_mesh`); None leaves them to the compiler.
    """

    compute: Any = None
    kernel: str | None = None
    unroll: bool = False
    remat: str = "none"
    mesh: Any = None


DEFAULT = Execution()


@record(static=("config", "execution"))
class Decoder:
    """A language model: `decoder(tokens, positions, valid) -> logits (b, t, vocabulary)`, float32.

    Attributes:
        params: nested dictionary of arrays, as `config.shapes` has them.
        config: `DecoderConfig`.
        execution: how it runs.
        adapters: low-rank changes of the layers' weights (`lora.init`); None: none, the weights alone.
        balance: prices of the experts of every layer (`routed.start`); None: zero.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> model = Decoder(initialise(config, jax.random.key(0)), config)
        >>> model(jnp.array([[1, 2, 3]])).shape
        (1, 3, 32)
    """

    params: Any
    config: DecoderConfig
    execution: Execution = DEFAULT
    adapters: Adapters | None = None
    balance: Any = None

    def __call__(self, tokens: Any, positions: Any = None, valid: Any = None) -> Any:
        """Logits of every position; `valid (b, t)` marks real tokens, `positions` defaults to counting them."""
        return self.logits(self.hidden(tokens, positions, valid))

    def hidden(self, tokens: Any, positions: Any = None, valid: Any = None) -> Any:
        """The last hidden states `(b, t, width)`, normalised."""
        return self._run(tokens, positions, valid)[0]

    def hidden_and_tallies(self, tokens: Any, positions: Any = None, valid: Any = None) -> tuple[Any, Any]:
        """`hidden`, and where the valid tokens went in each layer: a `Tally` stacked over layers, for `rebalance`.

        Raises:
            InvalidOption: a model without experts.
        """
        if self.config.experts is None:
            raise InvalidOption("the model has no experts; expected a mixture, config.experts")
        return self._run(tokens, positions, valid)

    def _run(self, tokens: Any, positions: Any, valid: Any) -> tuple[Any, Any]:
        kernel = choose(self.config, self.execution.kernel, compute_dtype(self.params["embed"], self.execution))
        front = needs_front(self.config, kernel) and valid is not None
        positions, valid = _placed(tokens, positions, valid)
        params = {**self.params, "layers": self.stack()}
        run = partial(run_layers, self.config, self.execution, params)
        if not front:
            return run(tokens, positions, valid)
        order = jnp.argsort(~valid, axis=1, stable=True)
        hidden, tallies = run(*(jnp.take_along_axis(x, order, axis=1) for x in (tokens, positions, valid)))
        return jnp.take_along_axis(hidden, jnp.argsort(order, axis=1)[..., None], axis=1), tallies

    def stack(self, whole: bool = False) -> Any:
        """The layers' parameters, stacked, with what a layer reads beside its own: adapters, router biases, its kind.

        Args:
            whole: adapters are added to the weights instead of standing beside them.
        """
        layers = (merged if whole else beside)(self.params["layers"], self.adapters)
        if self.balance is not None:
            layers = {**layers, "router_bias": -lax.stop_gradient(self.balance.y)}
        if self.config.mixed:
            layers = {**layers, "local": jnp.asarray(self.config.local)}
        return layers

    def logits(self, hidden: Any) -> Any:
        """`hidden @ head` in float32."""
        return logits(self.config, self.execution, head(self.config, self.params), hidden)

    def scores(self, hidden: Any, targets: Any, temperature: Any = 1.0, chunk: int | None = None) -> TokenScores:
        """Log-probabilities and entropies of `targets (b, t)` after `hidden`, without holding the logits."""
        matrix, mesh = head(self.config, self.params), self.execution.mesh
        return token_log_probs(hidden, matrix, targets, temperature, chunk, mesh, self.config.logit_cap)


def logits(config: DecoderConfig, execution: Execution, matrix: Any, hidden: Any) -> Any:
    """`hidden @ matrix` in float32, capped where the configuration says so; `matrix` may be `Outward`."""
    if isinstance(matrix, Outward):
        made = matrix.after(hidden, jnp.float32)
    else:
        made = jnp.matmul(hidden, matrix.astype(hidden.dtype), preferred_element_type=jnp.float32)
    made = constrain(made, execution.mesh, "batch", *(None,) * (hidden.ndim - 2), "vocab")
    return made if config.logit_cap is None else config.logit_cap * jnp.tanh(made / config.logit_cap)


def head(config: DecoderConfig, params: Any) -> Any:
    """The matrix `(width, vocabulary)` that makes logits."""
    return params["embed"].T if config.tied else params["head"]


def initialise(config: DecoderConfig, key: Any, dtype: Any = jnp.float32) -> Any:
    """Random parameters: normal with deviation 0.02, projections into the residual divided by `sqrt(2 depth)` (GPT-2).

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> initialise(config, jax.random.key(0))["layers"]["mlp"]["down"].shape
        (1, 16, 8)
    """
    params: dict[str, Any] = {}
    for number, (path, shape) in enumerate(config.shapes.items()):
        name = path.rsplit("/", 1)[-1]
        if name.endswith("norm"):
            value = jnp.zeros(shape, dtype) if config.norm_offset else jnp.ones(shape, dtype)
        elif name.endswith("bias"):
            value = jnp.zeros(shape, dtype)
        else:
            scale = 0.02 / (2 * config.depth) ** 0.5 if name in ("o", "down") else 0.02
            value = scale * jax.random.normal(jax.random.fold_in(key, number), shape, dtype)
        put(params, path, value)
    return params


def put(params: dict[str, Any], path: str, value: Any) -> None:
    """Set `params[a][b][c]` for the path `a/b/c`, making the dictionaries on the way."""
    *folders, name = path.split("/")
    for folder in folders:
        params = params.setdefault(folder, {})
    params[name] = value


def _placed(tokens: Any, positions: Any, valid: Any) -> tuple[Any, Any]:
    valid = jnp.ones(tokens.shape, bool) if valid is None else valid.astype(bool)
    require_shape("valid", valid.shape, tokens.shape, "tokens has that shape")
    if positions is None:
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    require_shape("positions", positions.shape, tokens.shape, "tokens has that shape")
    return positions, valid


def run_layers(
    config: DecoderConfig, execution: Execution, params: Any, tokens: Any, positions: Any, valid: Any, see: Any = None
) -> tuple[Any, Any]:
    """Normalised hidden states of a block of tokens, each of which sees the valid ones before it; the experts' tallies.

    `see(layer, q, k, v)` is another attention (`continuations`). The tallies are stacked over layers, None without
    experts.
    """
    h, turned, kernel = enter(config, execution, params["embed"], tokens, positions)
    mesh = execution.mesh
    see = block_attention(config, kernel, positions, valid, mesh) if see is None else see

    def block(h: Any, layer: Any) -> tuple[Any, Any]:
        h = constrain(checkpoint_name(h, BLOCK_INPUT), mesh, *RESIDUAL)
        q, k, v = split_heads(mesh, *project(config, layer, h, turned))
        return residual_and_tally(config, layer, h, see(layer, q, k, v), valid, mesh)

    block = _checkpointed(block, execution.remat)
    if execution.unroll:
        tallies = []
        for number in range(config.depth):
            layer = slice_layer(params["layers"], number)
            h, tally = block(h, layer if mesh is not None else packed(config, layer))
            tallies.append(tally)
        tallies = jax.tree.map(lambda *one: jnp.stack(one), *tallies)
    else:
        h, tallies = lax.scan(block, h, params["layers"])
    return normed(config, h, params["norm"]), tallies


def packed_layers(model: Decoder) -> tuple[Any, ...]:
    """The layers apart, with q, k, v side by side in `qkv` and gate, up in `gate_up`: fewer, wider products.

    The same numbers; worth it where many small steps read the same weights. On a mesh they come to lie whole along
    `fsdp`, or every token would gather them again. Adapters are added to weights that are kept
    and used in float32; in half precision the sum would round most of an adapter away, so there they stay apart.
    """
    embed = model.params["embed"]
    layers = model.stack(min(embed.dtype.itemsize, compute_dtype(embed, model.execution).itemsize) >= 4)
    mesh = model.execution.mesh
    apart = [whole_layer(slice_layer(layers, number), mesh, model.config) for number in range(model.config.depth)]
    # Side by side, parts of `tensor` would no longer be heads or hidden units of one kind: they stay apart.
    split = mesh is not None and mesh.shape.get("tensor", 1) > 1
    return tuple(apart if split else [packed(model.config, layer) for layer in apart])


def compute_dtype(embed: Any, execution: Execution) -> Any:
    """The dtype of products and activations; `embed` stands for the parameters."""
    return jnp.dtype(embed.dtype if execution.compute is None else execution.compute)


def slice_layer(layers: Any, number: int) -> Any:
    """The parameters of one layer out of the stack."""
    return jax.tree.map(lambda leaf: leaf[number], layers)


def enter(config: DecoderConfig, execution: Execution, embed: Any, tokens: Any, positions: Any) -> Any:
    """What the first layer reads: embedded tokens, the rotations of their positions, and the attention kernel."""
    dtype = compute_dtype(embed, execution)
    kernel = choose(config, execution.kernel, dtype)
    h = lookup(embed, tokens, dtype, execution.mesh)
    h = h * jnp.asarray(config.width**0.5, dtype) if config.embed_scaled else h
    return h, turns(config, positions), kernel


def _checkpointed(block: Any, remat: str) -> Any:
    if remat == "none":
        return block
    if remat == "full":
        return jax.checkpoint(block, prevent_cse=False)
    if remat == "dots":
        kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return jax.checkpoint(block, prevent_cse=False, policy=kept)
    if remat == "offload":
        device = jax.devices()[0]
        if HOST not in (kinds := [memory.kind for memory in device.addressable_memories()]):
            raise InvalidOption(f"remat is 'offload'; {device.platform} has {', '.join(kinds)}, and no {HOST} memory")
        kept = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[BLOCK_INPUT], offload_src="device",
            offload_dst=HOST,
        )  # fmt: skip
        return jax.checkpoint(block, prevent_cse=False, policy=kept)
    raise InvalidOption(f"remat is {remat!r}; expected one of {', '.join(REMATS)}")
