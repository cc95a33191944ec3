"""Run what PDOPT_TEST_RUN names, of the sharding tests, with A over a (4, 2) mesh that spans two processes."""

import os

from tests.distributed.workers.join import join, say


def main() -> None:
    join()
    import jax
    from jax.sharding import AxisType

    import pdopt
    from tests.test_sharding import group_run

    jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of what this takes
    with jax.enable_x64(True):
        mesh = jax.make_mesh((4, 2), ("row", "col"), axis_types=(AxisType.Auto,) * 2)
        lp, method, options = group_run(os.environ["PDOPT_TEST_RUN"])
        found = pdopt.solve(pdopt.shard(lp, mesh), method, **options)
        say(f"devices {jax.device_count()}")
        say(f"status {found.reason}")
        say(f"iterations {int(found.iterations)}")
        say(f"objective {float(found.objective)!r}")
        # A solution is whole on every device, so each process reads all of it.
        say(f"x {' '.join(repr(float(v)) for v in found.x)}")


if __name__ == "__main__":
    main()
