"""Online allocation: regret of dual mirror descent against certificates, speed against NumPy, budgets to the last unit.

Four reference instances (revenue management, auctions, entropic matching, assortment). Regret is measured path by path
against a certificate of the same requests: the hindsight linear program where the actions can be listed, else the dual
function at the best prices found; both bound every policy, whatever their solver left undone.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pdopt
from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.instances.allocation import CERTIFICATE, reference
from benchmarks.machine import machine
from benchmarks.numpy_allocation import one_by_one, path_vectorised
from benchmarks.plots import price_plot, regret_plot
from benchmarks.report import Report, Table, number

ABOUT = "online allocation: regret exponents on four applications, speed against NumPy loops"
GAINS = (0.3, 0.5, 1.0)
CLAIMED = 0.3  # the gain whose exponents are promised: the others are shown beside it
TITLES = {"A": "revenue management", "B": "auctions", "C": "entropic matching", "D": "assortment"}


def run(options: Options, say: Any = print) -> Report:
    """Measure, judge and draw."""
    horizons = (200, 800, 3200, 12_800) if options.full else (200, 800, 3200)
    paths = 256 if options.full else 64
    records, curves = [], {}
    for name in CERTIFICATE:
        found, curve = _regrets(name, horizons, paths, options.seed)
        records += found
        curves[TITLES[name]] = curve
        say(f"{TITLES[name]}: exponent {_exponent(curve):.3f}")
    speed = _speed(options.seed, say)
    records.append(speed)
    tables = [_regret_table(records), _speed_table(speed)]
    pictures = [
        regret_plot(curves, options.output / "regret.png"),
        price_plot(*_prices(options.seed), options.output / "prices.png"),
    ]
    notes = [
        f"Regret: {paths} paths, against {', '.join(f'{TITLES[n]}: {k}' for n, k in CERTIFICATE.items())}, on the "
        f"requests of each path. Exponents are promised at gain {CLAIMED:g}; on the assortment expected consumption "
        "leaves little noise, and with larger gains the transient of the first steps is the regret (lower exponents).",
        "Speed: instance A, 64 paths of 10 000 steps, the same stored requests for all three, which keep the same "
        "counts; CPU seconds of the process, least of several in alternating order, compilation apart. pdopt in "
        "float32 is what is timed; decisions are compared in float64, where no tie flips.",
    ]
    return Report("allocation", records, claims(records), tables, pictures, machine(), notes)


def _regrets(name: str, horizons: tuple[int, ...], paths: int, seed: int) -> tuple[list[dict[str, Any]], Any]:
    """Records of one instance for every horizon and gain, and the curve of the promised gain."""
    problem, kind, records = reference(name, np.float32), CERTIFICATE[name], []
    for horizon in horizons:
        key = jax.random.fold_in(jax.random.key(seed), horizon)
        requests = pdopt.sample(problem.stream, key, horizon=horizon, paths=paths)
        bound = np.asarray(pdopt.offline(problem, requests, kind=kind, tolerance=1e-5).value, float) * horizon
        for gain in GAINS:
            method = pdopt.MirrorDescent(gain=gain)
            found = pdopt.simulate(problem, method, None, horizon=horizon, paths=paths, requests=requests)
            regret = bound - np.asarray(found.reward, float)
            over = np.asarray(found.consumption, float) - np.asarray(found.budget, float)
            records.append({
                "what": "regret", "instance": name, "horizon": horizon, "paths": paths, "gain": gain, "kind": kind,
                "regret": float(regret.mean()), "error": float(regret.std() / np.sqrt(paths)),
                "relative": float(regret.mean() / bound.mean()), "least": float(regret.min() / bound.mean()),
                "over_budget": float(over.max()), "stopping_time": float(np.mean(found.stopping_time) / horizon),
            })  # fmt: skip
    claimed = [r for r in records if r["gain"] == CLAIMED]
    curve = {key: [r[key] for r in claimed] for key in ("horizon", "regret", "error")}
    return records, curve


def _exponent(curve: dict[str, list[float]]) -> float:
    """The slope of log regret in log horizon, by least squares."""
    return float(np.polyfit(np.log(curve["horizon"]), np.log(np.maximum(curve["regret"], 1e-12)), 1)[0])


def _speed(seed: int, say: Any, horizon: int = 10_000, paths: int = 64) -> dict[str, Any]:
    """CPU seconds of the three, and whether their decisions agree in float64."""
    step, start = 0.5 / np.sqrt(horizon), 1.5
    method = pdopt.MirrorDescent(stepsize=step)
    with jax.enable_x64(True):
        wide = reference("A", np.float64)
        requests = pdopt.sample(wide.stream, jax.random.key(seed), horizon=horizon, paths=paths)
        exact = pdopt.simulate(wide, method, None, horizon=horizon, paths=paths, requests=requests, start=start)
        fares, columns = np.asarray(requests.fare), np.asarray(requests.column)
    rate = np.asarray(wide.rate)
    problem = reference("A", np.float32)
    given = jax.tree.map(lambda v: jnp.asarray(np.asarray(v), np.float32), requests)
    modes = {
        "replayed": lambda: pdopt.simulate(
            problem, method, None, horizon=horizon, paths=paths, requests=given, start=start
        ),
        "drawn": lambda: pdopt.simulate(problem, method, jax.random.key(seed), horizon=horizon, paths=paths),
    }
    compile_seconds = {}
    for name, mode in modes.items():
        began = time.process_time()
        jax.block_until_ready(mode())
        compile_seconds[name] = time.process_time() - began
    seconds: dict[str, list[float]] = {"replayed": [], "drawn": [], "vectorised": [], "loop": []}
    vectorised = loop = None
    for turn in range(7):
        for name, mode in modes.items():
            began = time.process_time()
            jax.block_until_ready(mode())
            seconds[name].append(time.process_time() - began)
        if turn < 3:
            began = time.process_time()
            vectorised = path_vectorised(fares, columns, rate, step, start)
            seconds["vectorised"].append(time.process_time() - began)
        if turn == 0:
            began = time.process_time()
            loop = one_by_one(fares, columns, rate, step, start)
            seconds["loop"].append(time.process_time() - began)
    assert vectorised is not None
    assert loop is not None
    ours = (exact.accepted, exact.refused, exact.stopping_time, exact.consumption)
    agree = all(np.array_equal(np.asarray(a), b) for other in (vectorised, loop) for a, b in zip(ours, other[1:]))
    reward = float(np.max(np.abs(np.asarray(exact.reward) / loop[0] - 1)))
    least = {name: min(values) for name, values in seconds.items()}
    say(", ".join(f"{name} {value:.3g} s" for name, value in least.items()))
    return {
        "what": "speed", "instance": "A", "horizon": horizon, "paths": paths,
        **{f"{k}_cpu": v for k, v in least.items()},
        "compile": compile_seconds, "all_cpu": seconds, "same_decisions": agree, "reward_difference": reward,
    }  # fmt: skip


def _prices(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prices over time on A, one path, and those of the fluid program."""
    problem = reference("A", np.float32)
    found = pdopt.simulate(problem, None, jax.random.key(seed), horizon=20_000, record_every=100)
    fluid = pdopt.offline(problem, tolerance=1e-5)
    return {
        "steps": np.asarray(found.snapshots.steps).tolist(),
        "prices": np.asarray(found.snapshots.multipliers[0]).tolist(),
    }, {"prices": np.asarray(fluid.multipliers).tolist()}


def claims(records: list[dict[str, Any]]) -> list[Claim]:
    """The promises, from this run's figures alone."""
    regrets = [r for r in records if r["what"] == "regret"]
    speed = next(r for r in records if r["what"] == "speed")
    found = []
    for name, title in TITLES.items():
        mine = [r for r in regrets if r["instance"] == name and r["gain"] == CLAIMED]
        exponent = _exponent({key: [r[key] for r in mine] for key in ("horizon", "regret")})
        note = (
            f"against {CERTIFICATE[name]}, {mine[0]['paths']} paths, T = {mine[0]['horizon']} to {mine[-1]['horizon']}"
        )
        found.append(Claim(f"regret exponent, {title}: at least", exponent, 0.3, ">=", note))
        found.append(Claim(f"regret exponent, {title}: at most", exponent, 0.6, "<=", note))
    agree = "decisions equal in float64" if speed["same_decisions"] else "DECISIONS DIFFER in float64"
    for other, least in (("loop", 100.0), ("vectorised", 10.0)):
        ratio = speed[f"{other}_cpu"] / speed["replayed_cpu"] if speed["same_decisions"] else 0.0
        what = {"loop": "the plain NumPy loop", "vectorised": "path-vectorised NumPy"}[other]
        found.append(Claim(f"CPU seconds of {what} / pdopt", ratio, least, ">=", agree))
    over = max(r["over_budget"] for r in regrets)
    found.append(Claim("largest consumption beyond a budget, any path", max(over, 0.0), 0.0, "<="))
    least = min(r["least"] for r in regrets)
    found.append(Claim("least regret of any path / bound (a bound is a bound)", least, -1e-5, ">="))
    return found


def _regret_table(records: list[dict[str, Any]]) -> Table:
    rows = []
    for r in (r for r in records if r["what"] == "regret"):
        rows.append([
            TITLES[r["instance"]], number(r["gain"]), str(r["horizon"]), number(r["regret"]), number(r["error"]),
            number(100 * r["relative"]), number(r["regret"] / np.sqrt(r["horizon"])), number(r["stopping_time"]),
        ])  # fmt: skip
    columns = ["instance", "gain", "T", "regret", "+-", "% of the bound", "regret / sqrt T", "stopping time / T"]
    return Table("Regret of dual mirror descent (entropy scaled by the rate)", columns, rows)


def _speed_table(r: dict[str, Any]) -> Table:
    names = {
        "replayed": "pdopt, stored requests", "drawn": "pdopt, requests drawn in the loop",
        "vectorised": "NumPy, vectorised over paths", "loop": "NumPy, one path after the other",
    }  # fmt: skip
    rows = [
        [title, number(r[f"{k}_cpu"]), number(r[f"{k}_cpu"] / r["replayed_cpu"]), number(r["compile"].get(k, 0.0))]
        for k, title in names.items()
    ]
    return Table(f"{r['paths']} paths of {r['horizon']} steps", ["", "CPU s", "/ pdopt", "first call, CPU s"], rows)
