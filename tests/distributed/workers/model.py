"""Load a model folder into a mesh that spans two processes; logits of rows that each process brings."""

import os

from tests.distributed.workers.join import join, say


def main() -> None:
    index = join()
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from pdopt.models.checkpoints import export, load
    from pdopt.models.config import read_config
    from pdopt.models.decoder import Execution
    from pdopt.models.sharding import batch_sharding, make_mesh, parameter_sharding

    folder = os.environ["PDOPT_TEST_FOLDER"]
    mesh = make_mesh(fsdp=2, tensor=2)
    model = load(folder, sharding=parameter_sharding(mesh, read_config(folder)), execution=Execution(mesh=mesh))
    rows = np.load(f"{folder}/rows.npy")
    half = len(rows) // 2
    batch = jax.make_array_from_process_local_data(batch_sharding(mesh), rows[index * half : (index + 1) * half])
    found = jax.jit(lambda model, batch: model(batch))(model, batch)
    here = sum(shard.data.nbytes for leaf in jax.tree.leaves(model.params) for shard in leaf.addressable_shards)
    say(f"devices {jax.device_count()}")
    say(f"bytes {here}")
    whole = multihost_utils.process_allgather(found, tiled=True)
    export(model, f"{folder}/out")
    say(f"logits {' '.join(repr(float(v)) for v in whole.ravel())}")


if __name__ == "__main__":
    main()
