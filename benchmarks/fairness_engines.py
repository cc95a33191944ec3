"""The child process of the fairness benchmark: one library on one core, told what to train line by line.

`python -m benchmarks.fairness_engines ENGINE FOLDER` reads the applications from `FOLDER/loans.npz`, says
`{"ready": ...}` and answers `{"row": NAME, "seed": n, "steps": n}` by a training: CPU seconds of a step in a loop that
calls the library once a step, the first one apart, and the classifier's accuracy and gap on the training set as they
went. `{"row": NAME, "check": FILE}` takes CHECKED steps in float64 and writes the iterates.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.children import answering
from benchmarks.fairness_data import HIDDEN, batches, first_weights

ENGINES = ("pdopt", "cooper")
PACKAGES = {"pdopt": ("jax", "jaxlib", "flax", "optax"), "cooper": ("cooper-optim", "torch")}
LIMIT, BATCH, RATE, CHUNK, CHECKED = 0.05, 256, 1e-3, 50, 100


class Row(NamedTuple):
    """How the multiplier moves: the order, the dual step, and nuPI's gains (kp, ki, nu)."""

    order: str
    step: float = 0.05
    gains: tuple[float, float, float] | None = None


ROWS = {
    "simultaneous": Row("simultaneous"),
    "alternating": Row("dual_first"),
    "alternating, nuPI": Row("dual_first", gains=(40.0, 1.0, 0.9)),
}


class Run(NamedTuple):
    """A prepared training: `advance(rows, rate)` takes a step, `decide()` all logits, `price()` the multiplier."""

    advance: Callable[[np.ndarray, float], None]
    decide: Callable[[], np.ndarray]
    price: Callable[[], float]
    weights: Callable[[], np.ndarray]


class Pdopt:
    """A flax model in a jitted step, with three lines for the constraint."""

    def __init__(self, data: dict[str, np.ndarray]) -> None:
        self.data = data

    def prepare(self, row: Row, seed: int, wide: bool) -> Run:
        """The model, the optimiser and one compiled step."""
        import jax
        import jax.numpy as jnp
        import optax
        from flax import nnx

        import pdopt

        jax.config.update("jax_enable_x64", wide)  # this process is its own
        dtype = np.float64 if wide else np.float32
        features, approved, minority = (jnp.asarray(self.data[k]) for k in ("features", "approved", "minority"))
        features, target = features.astype(dtype), approved.astype(dtype)

        class Classifier(nnx.Module):
            def __init__(self, first: dict[str, np.ndarray]) -> None:
                rngs = nnx.Rngs(0)
                self.hidden = nnx.Linear(features.shape[1], HIDDEN, param_dtype=dtype, rngs=rngs)
                self.out = nnx.Linear(HIDDEN, 1, param_dtype=dtype, rngs=rngs)
                layers: Any = ((self.hidden, "in"), (self.out, "out"))
                for layer, name in layers:
                    layer.kernel[...] = jnp.asarray(first[name], dtype)
                    layer.bias[...] = jnp.asarray(first[f"{name}_bias"], dtype)

            def __call__(self, x: Any) -> Any:
                return self.out(jnp.tanh(self.hidden(x)))[:, 0]

        graph, params = nnx.split(Classifier(first_weights(features.shape[1], seed)))
        signal = pdopt.PID(integral=1.0)
        if row.gains is not None:
            signal = pdopt.PID(row.gains[0], row.gains[1], smoothing=row.gains[2])
        parity = pdopt.Multiplier(row.step, signal=signal)
        # Static, or they would be rounded to float32 beside weights in float64.
        adam = optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps", "eps_root"))(learning_rate=RATE)
        optimiser = pdopt.constrain(adam, {"parity": parity}, order=row.order)

        def loss_fn(params: Any, state: Any, x: Any, y: Any, g: Any) -> Any:
            logits = nnx.merge(graph, params)(x)
            loss = optax.sigmoid_binary_cross_entropy(logits, y).mean()
            gap = lambda score: jnp.mean(score, where=~g) - jnp.mean(score, where=g) - LIMIT
            parity = pdopt.Violation(gap(jax.nn.sigmoid(logits)), strict=gap((logits > 0).astype(logits.dtype)))
            return optimiser.lagrangian(state, loss, {"parity": parity})

        @jax.jit
        def step(params: Any, state: Any, rows: Any, rate: Any) -> Any:
            inner = state.optimiser
            inner = inner._replace(hyperparams={**inner.hyperparams, "learning_rate": rate.astype(dtype)})
            state = state._replace(optimiser=inner)
            batch = features[rows], target[rows], minority[rows]
            (_, seen), slopes = jax.value_and_grad(loss_fn, has_aux=True)(params, state, *batch)
            updates, state = optimiser.update(slopes, state, params, seen=seen)
            return optax.apply_updates(params, updates), state

        decide = jax.jit(lambda params: nnx.merge(graph, params)(features))
        held = [params, optimiser.init(params)]

        def advance(rows: np.ndarray, rate: float) -> None:
            held[:] = step(*held, rows, np.float32(rate) if not wide else np.float64(rate))

        def ready() -> Any:
            return jax.block_until_ready(held)

        return Run(
            advance,
            lambda: np.asarray(decide(ready()[0])),
            lambda: float(ready()[1].multipliers["parity"]),
            lambda: np.concatenate([np.ravel(x) for x in jax.tree.leaves(_by_name(ready()[0]))]),
        )


def _by_name(params: Any) -> dict[str, Any]:
    """The weights in the order of `first_weights`."""
    return {
        "a": params["hidden"]["kernel"][...], "b": params["hidden"]["bias"][...],
        "c": params["out"]["kernel"][...], "d": params["out"]["bias"][...],
    }  # fmt: skip


class Cooper:
    """The same by Cooper's problem, multiplier, dual optimiser and constrained optimiser."""

    def __init__(self, data: dict[str, np.ndarray]) -> None:
        import torch

        torch.set_num_threads(1)
        self.data = data

    def prepare(self, row: Row, seed: int, wide: bool) -> Run:
        """A torch module and `roll`."""
        import cooper as cooper_package  # pyright: ignore[reportMissingImports]
        import torch
        from cooper.optim import nuPI  # pyright: ignore[reportMissingImports]
        from cooper.optim.torch_optimizers import nupi_optimizer  # pyright: ignore[reportMissingImports]

        cooper: Any = cooper_package  # its own names are not marked as public
        dtype = torch.float64 if wide else torch.float32
        features = torch.tensor(self.data["features"], dtype=dtype)
        target = torch.tensor(self.data["approved"], dtype=dtype)
        minority = torch.tensor(self.data["minority"])
        model: Any = torch.nn.Sequential(
            torch.nn.Linear(features.shape[1], HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 1)
        ).to(dtype)
        first = first_weights(features.shape[1], seed)
        layers: list[Any] = [model[0], model[2]]
        with torch.no_grad():
            for layer, name in zip(layers, ("in", "out")):
                layer.weight.copy_(torch.tensor(first[name].T))
                layer.bias.copy_(torch.tensor(first[f"{name}_bias"]))

        class Problem(cooper.ConstrainedMinimizationProblem):
            def __init__(self) -> None:
                super().__init__()
                self.parity = cooper.Constraint(
                    constraint_type=cooper.ConstraintType.INEQUALITY,
                    formulation_type=cooper.formulations.Lagrangian,
                    multiplier=cooper.multipliers.DenseMultiplier(num_constraints=1, dtype=dtype),
                )

            def compute_cmp_state(self, x: Any, y: Any, g: Any) -> Any:
                logits = model(x)[:, 0]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
                gap = lambda score: score[~g].mean() - score[g].mean() - LIMIT
                strict = gap((logits > 0).to(dtype)).detach()
                state = cooper.ConstraintState(gap(torch.sigmoid(logits))[None], strict_violation=strict[None])
                return cooper.CMPState(loss, {self.parity: state})

        problem = Problem()
        primal = torch.optim.Adam(model.parameters(), lr=RATE)
        dual = torch.optim.SGD(problem.dual_parameters(), lr=row.step, maximize=True)
        if row.gains is not None:
            kp, ki, nu = row.gains
            dual = nuPI(
                list(problem.dual_parameters()), lr=row.step, Kp=torch.tensor(kp), Ki=torch.tensor(ki), ema_nu=nu,
                init_type=nupi_optimizer.nuPIInitType.ZEROS, maximize=True,
            )  # fmt: skip
        kinds = {
            "simultaneous": cooper.optim.SimultaneousOptimizer,
            "dual_first": cooper.optim.AlternatingDualPrimalOptimizer,
        }
        optimiser = kinds[row.order](problem, primal, dual)

        def advance(rows: np.ndarray, rate: float) -> None:
            primal.param_groups[0]["lr"] = rate
            chosen = torch.from_numpy(rows)
            optimiser.roll(compute_cmp_state_kwargs={
                "x": features[chosen], "y": target[chosen], "g": minority[chosen]
            })  # fmt: skip

        def decide() -> np.ndarray:
            with torch.no_grad():
                return model(features)[:, 0].numpy()

        def weights() -> np.ndarray:
            parts = [(layer.weight.T, layer.bias) for layer in layers]
            return np.concatenate([part.detach().numpy().ravel() for both in parts for part in both])

        return Run(advance, decide, lambda: float(next(problem.multipliers()).weight[0]), weights)


def rate_at(step: int, steps: int) -> float:
    """Adam's rate: a half cosine from RATE to 0."""
    return RATE * (1 + math.cos(math.pi * step / steps)) / 2


def train(engine: Any, data: dict[str, np.ndarray], row: Row, seed: int, steps: int) -> dict[str, Any]:
    """One training: seconds of a step, and what the classifier does on the training set every CHUNK steps."""
    chosen = batches(len(data["approved"]), BATCH, steps, seed)
    clock = time.process_time()
    run = engine.prepare(row, seed, False)
    run.advance(chosen[0], rate_at(0, steps))
    run.price()
    first = time.process_time() - clock
    accuracy, gap, price, seconds = [], [], [], []
    for begin in range(1, steps, CHUNK):
        end = min(begin + CHUNK, steps)
        clock = time.process_time()
        for k in range(begin, end):
            run.advance(chosen[k], rate_at(k, steps))
        run.price()
        seconds.append((time.process_time() - clock) / (end - begin))
        yes = run.decide() > 0
        accuracy.append(float(np.mean(yes == data["approved"])))
        gap.append(float(yes[~data["minority"]].mean() - yes[data["minority"]].mean()))
        price.append(run.price())
    return {"first": first, "seconds": seconds, "accuracy": accuracy, "gap": gap, "price": price}


def check(engine: Any, data: dict[str, np.ndarray], row: Row, place: str) -> dict[str, Any]:
    """CHECKED steps in float64: weights and multiplier after each."""
    run, found = engine.prepare(row, 0, True), []
    for k, rows in enumerate(batches(len(data["approved"]), BATCH, CHECKED, 0)):
        run.advance(rows, rate_at(k, CHECKED))
        found.append(np.append(run.weights(), run.price()))
    np.save(place, np.stack(found))
    return {"checked": CHECKED}


def main(name: str, folder: Path) -> None:
    """Answer until the orders end."""
    say = answering()
    with np.load(folder / "loans.npz") as stored:
        data = dict(stored)
    engine = {"pdopt": Pdopt, "cooper": Cooper}[name](data)
    if name == "cooper":
        import cooper  # noqa: F401  # pyright: ignore[reportMissingImports]  # its absence is said at once
    say(ready=name, versions={package: metadata.version(package) for package in PACKAGES[name]})
    for line in sys.stdin:
        order = json.loads(line)
        row = ROWS[order["row"]]
        if "check" in order:
            say(**check(engine, data, row, order["check"]))
        else:
            say(**train(engine, data, row, order["seed"], order["steps"]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
