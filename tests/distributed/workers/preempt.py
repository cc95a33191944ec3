"""A run that is stopped in its second step, by a signal to one process or by the end of that process, or that goes on.

PDOPT_TEST_FAULT is `signal` (process 1 sends itself SIGTERM while it scores), `kill` (it ends by SIGKILL), or empty (go
on with the run in the folder).
"""

import os
import signal

from tests.distributed.workers.join import join, say


def main() -> None:
    index, fault = join(), os.environ["PDOPT_TEST_FAULT"]
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from pdopt.training.scoring import Scores
    from pdopt.training.trainer import train
    from tests.training.tiny import shared_recipe

    folder = os.environ["PDOPT_TEST_FOLDER"]
    recipe = shared_recipe(f"{folder}/many", mesh={"fsdp": jax.device_count()}, checkpoint={"every": 1})
    sent = {"signal": signal.SIGTERM, "kill": signal.SIGKILL}

    def scorer(sampled):
        if fault and index == 1 and sampled.step == 1:
            os.kill(os.getpid(), sent[fault])
        return Scores(np.asarray(sampled.mask).sum(axis=1).astype(np.float32), {})

    trained = train(recipe, reporters=[], scorer=scorer, resume=not fault)
    say(f"steps {trained.steps} {trained.status}")
    whole = multihost_utils.process_allgather(jax.tree.leaves(trained.state.trainable), tiled=True)
    if index == 0:
        np.savez(f"{folder}/many.npz", *whole)


if __name__ == "__main__":
    main()
