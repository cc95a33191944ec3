"""Process 1 fails while process 0 waits for it."""

from tests.distributed.workers.join import join

index = join()
if index == 1:
    raise SystemExit("asked to fail")

from jax.experimental import multihost_utils  # noqa: E402

multihost_utils.sync_global_devices("never reached by process 1")
