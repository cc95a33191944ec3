"""A run to be killed: `python -m tests.training.killed FOLDER CACHE STEPS PAUSE` begins it or goes on with it.

Lines on standard output: `step N` for each step that was reported, then `bits DIGEST` of the last state. It pauses at
every step, so that a parent can end it in the middle; saving goes on in the background meanwhile.
"""

import hashlib
import sys
import time

import jax
import numpy as np

from pdopt.runtime.cache import enable_compilation_cache
from tests.training import tiny


def recipe(folder, steps):
    """A checkpoint after every step."""
    return tiny.recipe(folder, checkpoint={"every": 1}, training={"steps": steps})


def digest(state):
    """One number for every bit of a state."""
    is_key = lambda x: jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        found.update(np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf).tobytes())
    return found.hexdigest()


class Told:
    """A reporter that prints the step and pauses."""

    def __init__(self, pause):
        self.pause = pause

    def scalars(self, step, values):
        if "loss" in values or "supervised/loss" in values:
            print("step", step, flush=True)
        time.sleep(self.pause)

    def text(self, step, table):
        pass

    def close(self):
        pass


def main(folder, cache, steps, pause):
    enable_compilation_cache(cache)
    from pdopt.training.trainer import train

    trained = train(recipe(folder, int(steps)), reporters=[Told(float(pause))], resume=True)
    print("bits", digest(trained.state), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
