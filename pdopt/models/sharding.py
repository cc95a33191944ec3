"""Where every array of a language model lives: a table from parameters to named axes, a table from those to the mesh.

    data     splits rows; parameters are copied (the outermost axis: the slow network between pods)
    fsdp     splits rows, and the width of every parameter, its gradient and its moments (ZeRO-3, Rajbhandari 2020)
    tensor   splits heads, the MLP's hidden units and the vocabulary (Megatron, Shoeybi 2019)

The model stays one program on whole arrays (`AxisType.Auto`): placement and a few constraints on activations
(`constrain`, switched on by `Execution(mesh=...)`) decide what is sent. Without them a batch may silently be copied
to every device, which costs several times the bytes. Loading, optimiser states, gradients and checkpoints read the
same two tables. An axis that does not divide is an error, with two exceptions, each logged once: key and value heads
stay whole where `tensor` does not divide them, and activations of rows that do not divide keep fewer axes.

Not done here: expert and pipeline parallelism, sequences split over devices, explicit axis types.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pdopt.errors import InvalidOption, require_shape, unknown_name
from pdopt.models.config import DecoderConfig

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")

# fmt: off
# Named axis of a parameter or activation -> axes of the mesh that split it; (): whole. Each expert is split as an MLP.
RULES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "batch": ROWS, "length": (), "embed": ("fsdp",), "vocab": ("tensor",), "heads": ("tensor",),
    "kv_heads": ("tensor",), "mlp": ("tensor",), "layers": (), "head_dim": (), "norm": (), "experts": (),
})

# Parameter -> (axes of its inputs, axes of its outputs); the leading axis of stacked layers is not listed. Vectors
# have no inputs. Norms and biases into the residual are small and read by every device: they stay whole.
PARAMETERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType({
    "embed": (("vocab",), ("embed",)), "head": (("embed",), ("vocab",)), "norm": ((), ("norm",)),
    "attention_norm": ((), ("norm",)), "attention_post_norm": ((), ("norm",)),
    "mlp_norm": ((), ("norm",)), "mlp_post_norm": ((), ("norm",)),
    "attention/q": (("embed",), ("heads", "head_dim")), "attention/q_bias": ((), ("heads", "head_dim")),
    "attention/k": (("embed",), ("kv_heads", "head_dim")), "attention/k_bias": ((), ("kv_heads", "head_dim")),
    "attention/v": (("embed",), ("kv_heads", "head_dim")), "attention/v_bias": ((), ("kv_heads", "head_dim")),
    "attention/o": (("heads", "head_dim"), ("embed",)), "attention/o_bias": ((), ("norm",)),
    "attention/q_norm": ((), ("head_dim",)), "attention/k_norm": ((), ("head_dim",)),
    "mlp/gate": (("embed",), ("mlp",)), "mlp/gate_bias": ((), ("mlp",)),
    "mlp/up": (("embed",), ("mlp",)), "mlp/up_bias": ((), ("mlp",)),
    "mlp/down": (("mlp",), ("embed",)), "mlp/down_bias": ((), ("norm",)),
    "experts/router": (("embed",), ("experts",)),
    "experts/gate": (("experts", "embed"), ("mlp",)), "experts/up": (("experts", "embed"), ("mlp",)),
    "experts/down": (("experts", "mlp"), ("embed",)),
})
# fmt: on

# The residual stream `(rows, tokens, width)`.
RESIDUAL = ("batch", None, None)

_log = logging.getLogger(__name__)


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp`, `tensor`; one size may be -1 and takes what the others leave.

    Raises:
        InvalidOption: a size that is neither -1 nor >= 1, two sizes of -1, or sizes whose product is not the number
            of devices.

    Example:
        >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
        {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(len(devices), data, fsdp, tensor)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_sizes(devices: int, data: int = 1, fsdp: int = -1, tensor: int = 1) -> dict[str, int]:
    """Size of each axis of a mesh of so many devices, -1 filled in; raises as `make_mesh` does.

    Example:
        >>> mesh_sizes(8, data=2, tensor=2)
        {'data': 2, 'fsdp': 2, 'tensor': 2}
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for name, size in sizes.items():
        if not isinstance(size, int) or (size < 1 and size != -1):
            raise InvalidOption(f"mesh axis {name} is {size!r}; expected an integer >= 1, or -1 for what is left")
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise InvalidOption(f"mesh axes {' and '.join(open_axes)} are both -1; expected one at most")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    said = ", ".join(f"{name} {size}" for name, size in sizes.items() if size != -1)
    if open_axes and devices % fixed == 0:
        sizes[open_axes[0]] = devices // fixed
    elif open_axes or fixed != devices:
        verb = "does not divide" if open_axes else "is not"
        raise InvalidOption(f"the mesh ({said}) needs {fixed} devices, which {verb} the number there is, {devices}")
    return sizes


def logical_axes(path: str) -> tuple[str, ...]:
    """The named axes of a parameter, that of the stacked layers included.

    Raises:
        InvalidOption: a path that is no parameter.

    Example:
        >>> logical_axes("layers/attention/o"), logical_axes("embed")
        (('layers', 'heads', 'head_dim', 'embed'), ('vocab', 'embed'))
    """
    name = path.removeprefix("layers/")
    if name not in PARAMETERS:
        raise unknown_name("parameter", name, PARAMETERS)
    inputs, outputs = PARAMETERS[name]
    return (("layers",) if path != name else ()) + inputs + outputs


def parameter_specs(mesh: Any, config: DecoderConfig) -> Mapping[str, P]:
    """Path -> partition of every parameter of `config`.

    Args:
        mesh: a mesh, concrete or abstract, or its sizes by name; axes it lacks split nothing.
        config: the model.

    Raises:
        InvalidOption: an axis of the mesh that does not divide the axis it should split, other than `kv_heads`.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> tuple(parameter_specs({"fsdp": 2, "tensor": 2}, config)["layers/attention/q"])
        (None, 'fsdp', 'tensor', None)
    """
    return _specs(tuple(sizes_of(mesh).items()), config)


def sizes_of(mesh: Any) -> dict[str, int]:
    """Axis -> size, of a mesh or of what is one already."""
    return dict(mesh if isinstance(mesh, Mapping) else mesh.shape)


@lru_cache(maxsize=64)
def _specs(sizes: tuple[tuple[str, int], ...], config: DecoderConfig) -> Mapping[str, P]:
    found = dict(sizes)
    if _whole("kv_heads", config.kv_heads, found):
        _say_whole(config.kv_heads, found["tensor"])
    return MappingProxyType({path: _spec(path, shape, found) for path, shape in config.shapes.items()})


@lru_cache(maxsize=64)
def _say_whole(kv_heads: int, tensor: int) -> None:
    """Cached, so that it is said once."""
    _log.warning(
        "kv_heads %d is not divisible by mesh axis tensor, %d: keys, values and their cache stay whole on each device "
        "of that axis", kv_heads, tensor,
    )  # fmt: skip


def _spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    return P(*(_entry(path, name, size, sizes) for name, size in zip(logical_axes(path), shape, strict=True)))


def _entry(path: str, name: str, size: int, sizes: Mapping[str, int]) -> Any:
    """The entry of a partition for one axis of a parameter."""
    if _whole(name, size, sizes):
        return None
    axes = tuple(axis for axis in RULES[name] if axis in sizes)
    ways = math.prod(sizes[axis] for axis in axes)
    if size % ways:
        raise InvalidOption(
            f"parameter {path} has {name} {size}, which mesh axis {' x '.join(axes)} of size {ways} does not divide"
        )
    return axes[0] if len(axes) == 1 else (axes or None)


def _whole(name: str, size: int, sizes: Mapping[str, int]) -> bool:
    """Whether the one axis that may stay whole has to."""
    return name == "kv_heads" and size % sizes.get("tensor", 1) != 0


def parameter_sharding(mesh: Any, config: DecoderConfig) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """`path, shape -> sharding` of the parameters: what `checkpoints.load(sharding=)` takes.

    Raises:
        InvalidOption: as `parameter_specs`, at once. The function raises it for an unknown path, and `InvalidProblem`
            for a shape that is not the configuration's.

    Example:
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> place = parameter_sharding(make_mesh(devices=jax.devices()[:1]), config)
        >>> tuple(place("embed", (32, 8)).spec)
        ('tensor', 'fsdp')
    """
    specs = parameter_specs(mesh, config)

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        if path not in specs:
            raise unknown_name("parameter", path, specs)
        require_shape(path, shape, config.shapes[path], "the configuration says so")
        return NamedSharding(mesh, specs[path])

    return sharding


def abstract_parameters(mesh: Any, config: DecoderConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The parameters as shapes that know their sharding: to lower a program, or to restore into, without an array.

    Example:
        >>> from jax.sharding import AbstractMesh
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> mesh = AbstractMesh((1, 8, 2), AXES, axis_types=(AxisType.Auto,) * 3)
        >>> embed = abstract_parameters(mesh, config)["embed"]
        >>> embed.shape, embed.sharding.shard_shape(embed.shape)
        ((32, 8), (16, 1))
    """
    place, params = parameter_sharding(mesh, config), {}
    for path, shape in config.shapes.items():
        folder, _, name = path.rpartition("/")
        inside = reduce(lambda tree, part: tree.setdefault(part, {}), folder.split("/") if folder else [], params)
        inside[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=place(path, shape))
    return params


def tree_shardings(mesh: Any, config: DecoderConfig, tree: Any) -> Any:
    """The sharding of every leaf of parameters, gradients, optimiser states, or a record that holds several.

    A leaf whose path ends with a parameter's and whose shape is the parameter's goes where the parameter goes: that is
    what splits optimiser moments, and what `jax.jit(tx.init)` does not do by itself, since zeros do not depend on their
    input. Adapters (`lora`) are split along the axes they share with their weight. Factored moments (Adafactor) keep
    the split of the axes they keep. All else, counts, keys, multipliers, is copied to every device.

    Args:
        mesh: concrete or abstract.
        config: the model.
        tree: arrays or their shapes, for example `jax.eval_shape(tx.init, params)`.

    Example:
        >>> import optax
        >>> from pdopt.models.decoder import initialise
        >>> config = DecoderConfig(vocabulary=32, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, hidden=16)
        >>> mesh, tx = make_mesh(devices=jax.devices()[:1]), optax.adam(1e-3)
        >>> params = initialise(config, jax.random.key(0))
        >>> places = tree_shardings(mesh, config, jax.eval_shape(tx.init, params))
        >>> moments = jax.jit(tx.init, out_shardings=places)(params)
        >>> tuple(moments[0].mu["embed"].sharding.spec)
        ('tensor', 'fsdp')
    """
    specs = parameter_specs(mesh, config)

    def place(keys: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _leaf_spec(specs, config, _names(keys), jnp.shape(leaf)))

    return jtu.tree_map_with_path(place, tree)


def _names(keys: Any) -> list[str]:
    """The parts of a path: keys of dictionaries, fields of records, numbers of tuples."""
    return [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))) for key in keys]


def _leaf_spec(specs: Mapping[str, P], config: DecoderConfig, names: list[str], shape: tuple[int, ...]) -> P:
    ends = ["/".join(names[start:]) for start in range(len(names))]
    path = next((end for end in ends if end in specs), None)
    if path is None:
        low = next((end for end in ends if end[:-2] in specs and end.endswith(("/a", "/b"))), None)
        return P() if low is None or not shape else _low_spec(specs, low[:-2], low[-1])
    whole, entries = config.shapes[path], tuple(specs[path])
    if shape == whole:
        return specs[path]
    for axis in range(len(whole)):
        if shape == whole[:axis] + whole[axis + 1 :]:
            return P(*(entries[:axis] + entries[axis + 1 :]))
    return P()


def _low_spec(specs: Mapping[str, P], path: str, side: str) -> P:
    """An adapter's A has the axes of its weight's inputs and the rank, B the rank and the axes of the outputs."""
    entries, (inputs, _) = tuple(specs[path])[1:], PARAMETERS[path.removeprefix("layers/")]
    return P(None, *entries[: len(inputs)], None) if side == "a" else P(None, None, *entries[len(inputs) :])


def batch_sharding(mesh: Any) -> NamedSharding:
    """Rows over `data` and `fsdp`, everything else whole: for any array whose first axis is rows.

    Example:
        >>> tuple(batch_sharding(make_mesh(devices=jax.devices()[:1])).spec)
        (('data', 'fsdp'),)
    """
    return NamedSharding(mesh, P(tuple(axis for axis in ROWS if axis in mesh.shape)))


def constrain(x: Any, mesh: Any, *names: str | None) -> Any:
    """`x` with its axes split as their names say; `x` itself where mesh is None.

    Used on activations, while tracing. An axis that the mesh does not divide keeps the leading axes of the mesh that
    do, down to none, with one log line for rows: decoding one row on eight devices is slow, not wrong.

    Example:
        >>> constrain(jnp.ones((2, 4)), None, "batch", None).shape
        (2, 4)
    """
    if mesh is None:
        return x
    return lax.with_sharding_constraint(x, NamedSharding(mesh, activation_spec(mesh, x.shape, names)))


def split_heads(mesh: Any, q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Queries, keys and values `(rows, tokens, heads, head_dim)` with rows and heads split; keys and values whole
    where `tensor` does not divide their heads.

    Example:
        >>> [x.shape for x in split_heads(None, *(jnp.ones((1, 2, 4, 8)),) * 3)]
        [(1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)]
    """
    place = lambda x, name: constrain(x, mesh, "batch", None, name, None)
    return place(q, "heads"), place(k, "kv_heads"), place(v, "kv_heads")


def whole_layer(layer: Any, mesh: Any, config: DecoderConfig) -> Any:
    """One layer's parameters and adapters gathered along `fsdp`, still split over `tensor`.

    Example:
        >>> whole_layer({"mlp_norm": 1.0}, None, None)
        {'mlp_norm': 1.0}
    """
    if mesh is None:
        return layer
    specs = parameter_specs({**sizes_of(mesh), "fsdp": 1}, config)

    def place(keys: Any, leaf: Any) -> Any:
        names = ["layers", *(name.removesuffix("_low") for name in _names(keys))]
        entries = tuple(_leaf_spec(specs, config, names, (config.depth, *leaf.shape)))[1:]
        return lax.with_sharding_constraint(
            leaf, NamedSharding(mesh, P(*(e if e != "fsdp" else None for e in entries)))
        )

    return jtu.tree_map_with_path(place, layer)


def rows_divide(mesh: Any, rows: int) -> bool:
    """Whether there is a mesh, one of `make_mesh`'s axes, over which so many rows can be split evenly.

    Example:
        >>> rows_divide(None, 8), rows_divide(make_mesh(devices=jax.devices()[:1]), 8)
        (False, True)
    """
    if mesh is None or not set(AXES) <= set(mesh.shape):
        return False
    return rows % math.prod(mesh.shape[axis] for axis in ROWS) == 0


def lookup(table: Any, tokens: Any, dtype: Any, mesh: Any = None) -> Any:
    """`table[tokens]` in `dtype`, `(rows, tokens, width)`, rows split on a mesh.

    Each device looks tokens up in its part of the vocabulary and width, for all rows of its `data` group; a sum over
    `tensor` joins the vocabulary, one exchange over `fsdp` turns parts of the width into rows. Left to itself the
    compiler gathers the table, or every activation.

    Example:
        >>> print(lookup(jnp.eye(3), jnp.array([[2]]), jnp.float32))
        [[[0. 0. 1.]]]
    """
    if not rows_divide(mesh, tokens.shape[0]):
        return constrain(table[tokens].astype(dtype), mesh, *RESIDUAL)

    def local(part: Any, ids: Any) -> Any:
        here = lax.all_gather(ids, "fsdp", axis=0, tiled=True) - lax.axis_index("tensor") * part.shape[0]
        found = jnp.where(((here >= 0) & (here < part.shape[0]))[..., None], part[here], 0).astype(dtype)
        whole = lax.psum(found, "tensor")
        return lax.all_to_all(whole, "fsdp", split_axis=0, concat_axis=2, tiled=True)

    return jax.shard_map(local, mesh=mesh, in_specs=(P("tensor", "fsdp"), P(ROWS)), out_specs=P(ROWS))(table, tokens)


def activation_spec(mesh: Any, shape: tuple[int, ...], names: Sequence[str | None]) -> P:
    """The partition of an activation.

    Example:
        >>> tuple(activation_spec({"data": 2, "fsdp": 2, "tensor": 2}, (6, 1, 3, 8), ("batch", None, "kv_heads", None)))
        ('data', None, None, None)
    """
    sizes = sizes_of(mesh)
    entries: list[Any] = []
    for name, size in zip(names, shape, strict=True):
        wanted = tuple(axis for axis in RULES[name] if axis in sizes) if name else ()
        kept = wanted
        while size % math.prod(sizes[axis] for axis in kept):
            kept = kept[:-1]
        if kept != wanted and name == "batch":
            axes = " x ".join(f"{axis} {sizes[axis]}" for axis in wanted)
            _log.warning("%d rows are not divisible over %s; split over %s", size, axes, " x ".join(kept) or "none")
        entries.append(kept[0] if len(kept) == 1 else (kept or None))
    return P(*entries)
