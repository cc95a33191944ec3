"""Online matching with stochastic rewards: ratios of four policies, the chain of linear programs, a NumPy loop in time.

Programs are certified by pdopt's own solver and checked by HiGHS with every column; the optimum on tiny graphs is
exact dynamic programming. Both sides of a ratio are float64.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pdopt
from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.matching_plots import bound_plot, ratio_plot, worst_plot
from benchmarks.matching_reference import Luck, Values, loop, optimum, outcomes, programs, together
from benchmarks.matching_search import search
from benchmarks.report import Report, Table, number

ABOUT = "online matching with stochastic rewards: policies on two families, linear programs against the exact optimum"

# family -> (policy, lowest, highest): the allocation spec's bands, and for the left-heavy family ours, around what 2000
# paths showed at n = 50, p = 0.02 and n = 100, p = 0.05 (standard errors 0.001): Balance .684 and .680, Ranking .635
# and .635, random .553 and .536, greedy .524 and .518; the room is for the 100 to 200 paths of a quick run.
BANDS = {
    "triangular": [("Balance", 0.60, 0.66), ("Ranking", 0.60, 0.66), ("Greedy worst order", 0.48, 0.52)],
    "left-heavy": [
        ("Balance", 0.66, 0.72), ("Ranking", 0.61, 0.66), ("UniformRandom", 0.51, 0.58),
        ("Greedy worst order", 0.49, 0.55),
    ],
}  # fmt: skip
TIGHT = 1e-6  # relative distance of the certified values
ROUNDING = 1e-12  # of sums of a dozen numbers near 1; bound and optimum are often equal
COUNTEREXAMPLE = np.array([[0.6, 0.6], [0.0, 0.55]])


def run(options: Options, say: Any = print) -> Report:
    """Measure, judge and draw."""
    parts = {"ratios": _ratios, "chain": _chain, "search": _searches, "speed": _speed}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, measure in parts.items():
        began = time.process_time()
        found[name] = measure(options)
        say(f"{name}: {time.process_time() - began:.1f} s of CPU")
    records = [{"part": name, **row} for name, rows in found.items() for row in rows]
    dense = [row for row in found["chain"] if row["kind"] == "dense"]
    pictures = [
        ratio_plot(found["ratios"], BANDS, options.output / "ratios.png"),
        bound_plot(dense, options.output / "bounds.png"),
        worst_plot(found["search"], options.output / "worst.png"),
    ]
    notes = [
        "Ratios are mean reward / value of the matching LP (n on both families); errors are standard errors. Balance "
        "breaks ties by index: the offline side is labelled both ways and the worse one shown. Greedy in worst order "
        "prefers the vertices that later groups need.",
        "Tiny graphs: dense ones have p ~ U(0.1, 0.6) on every edge, sparse ones p ~ U(0, 1) on 60 % of them, where "
        "the configuration program may fall below the best adaptive policy (it bounds it for small p only).",
    ]
    return Report("matching", records, claims(found), tables(found), pictures, machine(), notes)


# --- policies on two families ------------------------------------------------------------


def _ratios(options: Options) -> list[dict[str, Any]]:
    """Each policy on each family and size; Balance, whose ties go to the lowest index, in its worse labelling."""
    paths = 2000 if options.full else 200
    rows = []
    for family, make in (("triangular", pdopt.upper_triangular), ("left-heavy", pdopt.left_heavy)):
        for n, group in ((50, 50), (100, 20)):
            graph = make(n, group, jnp.float64)
            with jax.enable_x64(True):
                flipped = pdopt.StochasticMatching(graph.probabilities[::-1])
                last = jnp.arange(n, dtype=jnp.float64)
            policies = {
                "Balance": pdopt.Balance(), "Ranking": pdopt.Ranking(), "UniformRandom": pdopt.UniformRandom(),
                "Greedy worst order": pdopt.Greedy(last),
            }  # fmt: skip
            for name, policy in policies.items():
                graphs = (graph, flipped) if name == "Balance" else (graph,)
                runs = [_measured(one, policy, options.seed, paths) for one in graphs]
                worst = min(runs, key=lambda row: row["ratio"])
                rows.append({"family": family, "size": f"n = {n}, p = {1 / group:g}", "policy": name, **worst})
    return rows


def _measured(graph: Any, policy: Any, seed: int, paths: int) -> dict[str, Any]:
    n, T = graph.shape
    key = jax.random.key(seed)
    pdopt.match_online(graph, policy, key, paths=paths).reward.block_until_ready()
    began = time.process_time()
    run = pdopt.match_online(graph, policy, key, paths=paths)
    reward = np.asarray(run.reward) / n
    cpu = time.process_time() - began
    load = np.asarray(run.load).sum(axis=1) / n  # has the same mean: each try succeeds with its own p
    error = lambda x: float(x.std(ddof=1) / np.sqrt(paths))
    drift = reward - load
    return {
        "ratio": float(reward.mean()), "error": error(reward), "load": float(load.mean()),
        "drift": float(drift.mean() / error(drift)), "paths": paths, "arrivals": T, "cpu": cpu,
    }  # fmt: skip


# --- the chain of programs ---------------------------------------------------------------


def _chain(options: Options) -> list[dict[str, Any]]:
    """40 dense and 40 sparse tiny graphs and the counterexample: optimum, HiGHS with all columns, pdopt's two sides."""
    rows = []
    for kind in ("dense", "sparse"):
        for seed in range(40):
            rng = np.random.default_rng([options.seed, seed])
            p = rng.uniform(0.1, 0.6, (3, 6)) if kind == "dense" else rng.random((3, 6)) * (rng.random((3, 6)) < 0.6)
            rows.append(_programs(kind, seed, p))
    return [*rows, _programs("counterexample", 0, COUNTEREXAMPLE)]


def _programs(kind: str, seed: int, p: np.ndarray) -> dict[str, Any]:
    weights = np.ones(len(p))
    began = time.process_time()
    exact: Values = programs(p, weights)
    highs = time.process_time() - began
    graph = pdopt.StochasticMatching(p, dtype=np.float64)
    solvers = {
        "stochastic": pdopt.stochastic_configuration_lp, "configuration": pdopt.configuration_lp,
        "matching": pdopt.matching_lp,
    }  # fmt: skip
    began = time.process_time()
    ours = {name: solver(graph, tolerance=TIGHT) for name, solver in solvers.items()}
    cpu = time.process_time() - began
    sides = {f"{name}_{side}": getattr(b, side) for name, b in ours.items() for side in ("value", "bound")}
    off = max(abs(side - getattr(exact, name.rsplit("_", 1)[0])) / (1 + side) for name, side in sides.items())
    return {
        "kind": kind, "seed": seed, "optimum": optimum(p, weights), **exact._asdict(), **sides, "largest_p": p.max(),
        "gap": max((b.bound - b.value) / (1 + b.bound) for b in ours.values()), "against_highs": off,
        "rounds": max(b.rounds for b in ours.values()), "cpu": cpu, "cpu_highs": highs,
    }  # fmt: skip


def _breaks(row: dict[str, Any]) -> int:
    """Links of the chain that break: by certified sides of ours, which leave no room for an inexact solve."""
    pairs = [
        (row["optimum"], row["stochastic_bound"]), (row["stochastic_value"], row["configuration_bound"]),
        (row["configuration_value"], row["matching_bound"]), (row["optimum"], row["stochastic"] + 1e-9),
        (row["stochastic"], row["configuration"] + 1e-9), (row["configuration"], row["matching"] + 1e-9),
    ]  # fmt: skip
    return sum(low > high + ROUNDING for low, high in pairs)


# --- bad small graphs, and time ----------------------------------------------------------


def _searches(options: Options) -> list[dict[str, Any]]:
    """The worst small graph found for each policy."""
    n, group, paths = (5, 10, 1024) if options.full else (4, 8, 384)
    rows = []
    for name, policy in (
        ("Balance", pdopt.Balance()), ("Ranking", pdopt.Ranking()), ("UniformRandom", pdopt.UniformRandom()),
        ("Greedy", pdopt.Greedy(jnp.arange(n, dtype=jnp.float32))),
    ):  # fmt: skip
        found = search(policy, n, group, paths=paths, steps=10, seed=options.seed, confirm=20_000)
        rows.append({
            "policy": name, "edges": found.edges.astype(int).tolist(), "ratio": found.ratio, "error": found.error,
            "optimum": found.optimum, "seen": found.seen, "n": n, "p": 1 / group,
        })  # fmt: skip
    return rows


def _speed(options: Options) -> list[dict[str, Any]]:
    """Balance on the triangular family, the same decisions: pdopt, a NumPy loop, NumPy over all paths; CPU seconds.

    Three rounds in alternating order, the median of each; the plain loop runs a tenth of the paths and is scaled up.
    The NumPy sides get their random numbers for nothing.
    """
    paths, n, group = 200, 50, 20
    graph = pdopt.upper_triangular(n, group, jnp.float64)
    p, weights = graph.host()
    key = jax.random.key(options.seed)
    with jax.enable_x64(True):
        outcome = outcomes(key, paths, n * group, np.float64)
    began = time.process_time()
    first = pdopt.match_online(graph, pdopt.Balance(), key, paths=paths)
    first.reward.block_until_ready()
    compiled = time.process_time() - began
    empty = np.zeros((n * group, 0))
    few = paths // 10

    def ours() -> Any:
        return np.asarray(pdopt.match_online(graph, pdopt.Balance(), key, paths=paths).matched)

    def plain() -> Any:
        return np.array([loop(p, weights, "Balance", Luck(weights, empty, outcome[k]))[1] for k in range(few)])

    def vectorised() -> Any:
        return together(p, weights, outcome)[0]

    seconds: dict[str, list[float]] = {"pdopt": [], "loop": [], "vectorised": []}
    sides = {"pdopt": ours, "loop": plain, "vectorised": vectorised}
    results: dict[str, Any] = {}
    for repeat in range(3):
        for name in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            began = time.process_time()
            results[name] = sides[name]()
            seconds[name].append((time.process_time() - began) * (10 if name == "loop" else 1))
    same = bool((results["pdopt"] == results["vectorised"]).all() and (results["pdopt"][:few] == results["loop"]).all())
    cpu = {name: float(np.median(values)) for name, values in seconds.items()}
    return [{"paths": paths, "arrivals": n * group, "n": n, "same": same, "compile": compiled, **cpu}]


# --- what is promised --------------------------------------------------------------------


def claims(found: dict[str, list[dict[str, Any]]]) -> list[Claim]:
    """The promises of the comparison, from this run's figures alone."""
    return [*_chain_claims(found["chain"]), *_ratio_claims(found["ratios"]), *_other_claims(found)]


def _chain_claims(rows: list[dict[str, Any]]) -> list[Claim]:
    dense = [row for row in rows if row["kind"] == "dense"]
    (example,) = (row for row in rows if row["kind"] == "counterexample")
    rounding = lambda row: row["optimum"] / ((1 + row["largest_p"]) * row["configuration_bound"])
    return [
        Claim(
            "optimum <= stochastic configuration <= configuration <= matching on dense tiny graphs (breaks)",
            float(sum(_breaks(row) for row in dense)), 0.0, "<=", f"{len(dense)} graphs, certified sides and HiGHS",
        ),
        Claim(
            "1 - prod (1 - p) with unweighted use lies below the optimum (share of graphs)",
            sum(row["unweighted"] < row["optimum"] - 1e-9 for row in dense) / len(dense), 1.0, ">=", "no bound",
        ),
        Claim(
            "optimum <= stochastic configuration bound on every graph (largest optimum / bound)",
            max(row["optimum"] / row["stochastic_bound"] for row in rows), 1 + ROUNDING, "<=", f"{len(rows)} graphs",
        ),
        Claim(
            "optimum <= (1 + max p) configuration bound on every graph (largest ratio)",
            max(map(rounding, rows)), 1.0, "<=", "what holds for large p",
        ),
        Claim(
            "configuration program falls below the optimum on [[.6, .6], [0, .55]] (optimum / bound)",
            example["optimum"] / example["configuration_bound"], 1.01, ">=", "it bounds policies for small p only",
        ),
        Claim(
            "largest certified gap (bound - value) / (1 + bound)", max(row["gap"] for row in rows), TIGHT, "<=",
            f"3 programs on {len(rows)} graphs",
        ),
        Claim(
            "largest relative distance of either side from HiGHS with all columns",
            max(row["against_highs"] for row in rows), 1.1 * TIGHT, "<=", "",
        ),
    ]  # fmt: skip


def _ratio_claims(rows: list[dict[str, Any]]) -> list[Claim]:
    made = []
    for family, bands in BANDS.items():
        for policy, low, high in bands:
            mine = [row["ratio"] for row in rows if row["family"] == family and row["policy"] == policy]
            made += [
                Claim(f"{family}: lowest ratio of {policy}", min(mine), low, ">=", f"band [{low}, {high}]"),
                Claim(f"{family}: highest ratio of {policy}", max(mine), high, "<=", f"band [{low}, {high}]"),
            ]
    heavy = {(row["policy"], row["size"]): row["ratio"] for row in rows if row["family"] == "left-heavy"}
    sizes = {size for _, size in heavy}
    apart = min(heavy["Balance", size] - heavy["UniformRandom", size] for size in sizes)
    drift = max(abs(row["drift"]) for row in rows)
    return [
        *made,
        Claim("left-heavy: Balance above uniformly random (least)", apart, 0.08, ">=", "the families differ"),
        Claim(
            "largest |mean reward - mean load| in standard errors", drift, 4.0, "<=",
            "each try succeeds with its own p: both estimate the same number",
        ),
    ]  # fmt: skip


def _other_claims(found: dict[str, list[dict[str, Any]]]) -> list[Claim]:
    (speed,) = found["speed"]
    worst = {row["policy"]: row for row in found["search"]}
    greedy, balance = worst["Greedy"], worst["Balance"]
    return [
        Claim(
            "search: Greedy on its worst small graph / optimum", greedy["ratio"], 0.5 - 3 * greedy["error"], ">=",
            "proved: 1/2; less three standard errors",
        ),
        Claim(
            "search: Balance on its worst small graph / optimum", balance["ratio"], 0.596, ">=",
            "proved for vanishing p: 0.596",
        ),
        Claim("same decisions as NumPy on every path", float(speed["same"]), 1.0, ">=", "Balance, triangular, float64"),
        Claim("CPU of a NumPy loop / pdopt", speed["loop"] / speed["pdopt"], 8.0, ">=", "same decisions, warm"),
    ]  # fmt: skip


def tables(found: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """Ratios, programs, worst graphs, time."""
    ratios = [
        [
            row["policy"], row["family"], row["size"], f"{row['ratio']:.4f}", f"{row['error']:.4f}",
            f"{row['load']:.4f}", number(row["cpu"]),
        ]
        for row in found["ratios"]
    ]  # fmt: skip
    programs_by_kind = []
    for kind in ("dense", "sparse", "counterexample"):
        rows = [row for row in found["chain"] if row["kind"] == kind]
        for name in ("stochastic", "configuration", "matching", "unweighted"):
            over = [row[name] / row["optimum"] for row in rows]
            below = sum(value < 1 - 1e-9 for value in over)
            programs_by_kind.append([
                name, kind, str(len(rows)), f"{min(over):.4f}", f"{np.mean(over):.4f}", f"{max(over):.4f}", str(below),
            ])  # fmt: skip
    worst = [
        [row["policy"], f"{row['ratio']:.4f}", f"{row['error']:.4f}", f"{row['optimum']:.4f}", str(row["seen"])]
        for row in found["search"]
    ]
    (speed,) = found["speed"]
    cpu = [
        [name, number(speed[name]), number(speed[name] / speed["pdopt"])] for name in ("pdopt", "vectorised", "loop")
    ]
    return [
        Table("Mean reward / LP value", ["policy", "family", "size", "ratio", "error", "load / LP", "CPU s"], ratios),
        Table(
            "Programs over the exact optimum",
            ["program", "graphs", "count", "least", "mean", "largest", "below 1"], programs_by_kind,
        ),
        Table("Worst small graphs found", ["policy", "ratio", "error", "optimum", "graphs seen"], worst),
        Table(
            f"Balance, {speed['paths']} paths x {speed['arrivals']} arrivals, n = {speed['n']}: CPU seconds, warm "
            f"(pdopt compiles in {speed['compile']:.2g} s)", ["side", "CPU s", "/ pdopt"], cpu,
        ),
    ]  # fmt: skip
