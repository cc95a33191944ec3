"""Eight made devices on the CPU for every test, set before JAX is imported, and compiled code kept within limits."""

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Without XLA's newer CPU emitters a third of the tests' time, which is spent on compiling, is saved.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false")

# XLA maps memory for every kernel it compiles, and Linux allows a process 65 530 maps: beyond, it ends by a fault.
MAPS = 20_000


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    """Forget compiled programs between modules when they have become many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def quick_compiles():
    """Programs of tiny models run in no time, and compiling them is all they cost: half of it without optimisation."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
