"""Train three constrained steps over a mesh that spans all processes; the metrics, and the parameters as a file."""

import os

from tests.distributed.group import TAG
from tests.distributed.workers.join import join


def main() -> None:
    index = join()
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from pdopt.training.trainer import train
    from tests.training.tiny import shared_recipe

    folder = os.environ["PDOPT_TEST_FOLDER"]
    trained = train(shared_recipe(f"{folder}/many", mesh={"fsdp": jax.device_count()}))
    print(f"{TAG}devices {jax.device_count()}")
    print(f"{TAG}steps {trained.steps}")
    # The report is the first process's: what it reads is whole on every device.
    print(f"{TAG}metrics {trained.metrics['loss']!r} {trained.metrics['constraint/length/multiplier']!r}")
    whole = multihost_utils.process_allgather(jax.tree.leaves(trained.state.trainable), tiled=True)
    if index == 0:
        np.savez(f"{folder}/many.npz", *whole)


if __name__ == "__main__":
    main()
