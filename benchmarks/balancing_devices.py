"""Whether eight devices give the bits of one: `python -m benchmarks.balancing_devices` prints one JSON object.

A child process, since the number of devices is fixed when JAX starts.
"""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.balancing_stream import TOP, stream
from pdopt.methods.balancing import Balancer, route
from pdopt.models.experts import Experts, ExpertsConfig
from pdopt.problems.balancing import Balancing


def stream_bits() -> tuple[np.ndarray, np.ndarray]:
    """Prices after 50 batches, tokens on one device and split over all."""
    scores = stream(0, 50)

    @jax.jit
    def follow(scores: Any) -> Any:
        step = lambda prices, batch: (route(Balancing(batch, TOP, check=False), Balancer(), prices)[1], None)
        return jax.lax.scan(step, Balancer().start(scores.shape[2]), scores)[0].y

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(scores, NamedSharding(mesh, P(None, "data")))
    return np.asarray(follow(jnp.asarray(scores))), np.asarray(follow(spread))


def layer_bits() -> tuple[np.ndarray, np.ndarray]:
    """The layer's bias after 10 batches: one device, and `shard_map` with loads summed over the axis."""
    layer = Experts(ExpertsConfig(width=16, hidden=16, experts=8, top=2), rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    x = jax.random.normal(jax.random.key(1), (10, 256, 16)) + 0.3
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))

    def tally(state: Any, batch: Any, axes: tuple[str, ...]) -> Any:
        return nnx.merge(graph, state)(batch, axes=axes)[1].tally

    split = jax.shard_map(
        partial(tally, axes=("data",)), mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False
    )
    found = []
    for measure in (partial(tally, axes=()), split):
        one = jax.jit(measure)
        run = nnx.clone(nnx.merge(graph, state))  # merge shares the variables, and rebalance writes them
        for batch in x:
            run.rebalance(one(nnx.state(run), batch))
        found.append(np.asarray(run.bias[...]))
    return found[0], found[1]


def main() -> None:
    """Print what differed."""
    differ = {"devices": jax.device_count()}
    for name, (one, many) in (("stream", stream_bits()), ("layer", layer_bits())):
        differ[name] = int(np.sum(one.view(np.uint32) != many.view(np.uint32)))
        differ[name + "_moved"] = int(np.sum(one != 0))
    print(json.dumps(differ))


if __name__ == "__main__":
    main()
