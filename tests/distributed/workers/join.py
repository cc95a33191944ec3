"""Join the group: must be called before anything that touches a device."""

import os
import sys

from tests.distributed.group import TAG


def join() -> int:
    """Connect this process to the others; its index."""
    import jax

    index = int(os.environ["PDOPT_TEST_INDEX"])
    jax.distributed.initialize(
        f"127.0.0.1:{os.environ['PDOPT_TEST_PORT']}",
        num_processes=int(os.environ["PDOPT_TEST_COUNT"]),
        process_id=index,
        cluster_detection_method="deactivate",
        initialization_timeout=60,
        heartbeat_timeout_seconds=10,
        shutdown_timeout_seconds=10,
    )
    return index


def say(text: str) -> None:
    """One line for the parent, in one write: gloo, which writes to the same pipe, cannot come before its end."""
    sys.stdout.write(f"\n{TAG}{text}\n")
    sys.stdout.flush()
