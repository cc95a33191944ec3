"""Solve the sharding tests' program with A over a (4, 2) mesh that spans two processes."""

from tests.distributed.workers.join import join, say


def main() -> None:
    join()
    import jax
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import pdopt
    from pdopt.operators.dense import Dense
    from tests.test_sharding import PLAIN, program

    with jax.enable_x64(True):
        mesh = jax.make_mesh((4, 2), ("row", "col"), axis_types=(AxisType.Auto,) * 2)
        lp = program()

        def put(value, *spec):
            host = np.asarray(value)
            return jax.make_array_from_callback(host.shape, NamedSharding(mesh, P(*spec)), lambda index: host[index])

        spread = lp.replace(
            c=put(lp.c, "col"), A=Dense(put(lp.A.matrix, "row", "col")), offset=put(lp.offset),
            row_lower=put(lp.row_lower, "row"), row_upper=put(lp.row_upper, "row"),
            lower=put(lp.lower, "col"), upper=put(lp.upper, "col"),
        )  # fmt: skip
        found = pdopt.solve(spread, PLAIN, tolerance=1e-14, max_iterations=64)
        x = multihost_utils.process_allgather(found.x, tiled=True)
        say(f"devices {jax.device_count()}")
        say(f"iterations {int(found.iterations)}")
        say(f"objective {float(found.objective)!r}")
        say(f"x {' '.join(repr(float(v)) for v in x)}")


if __name__ == "__main__":
    main()
