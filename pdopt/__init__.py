"""pdopt: constrained optimisation by primal-dual methods in JAX.

One saddle-point step, written once, solves linear and quadratic programs, games and constrained programs; see
`pdopt.rules.saddle`. Importing this package changes no JAX configuration and creates no array; JAX itself is imported
when the first public name is used, so that the command line can refuse a misspelt option at once.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdopt.assign import assign
    from pdopt.barycenter import barycenter
    from pdopt.bilevel import hypergradient, lower_solution, polish_bilevel
    from pdopt.confirm import confirmed
    from pdopt.constrain import Constrained, constrain
    from pdopt.divergence import Divergence, sinkhorn_divergence
    from pdopt.geometry.entropic import Entropic
    from pdopt.geometry.moves import Euclidean, Sign
    from pdopt.match_online import MatchingRun, match_online
    from pdopt.matching_bounds import MatchingBound, configuration_lp, matching_lp, stochastic_configuration_lp
    from pdopt.methods.augmented_lagrangian import AugmentedLagrangian
    from pdopt.methods.average_spectrum import AverageSpectrum
    from pdopt.methods.balancing import Balancer
    from pdopt.methods.bilevel import LVHBA, Growing, Stages
    from pdopt.methods.bilevel_baselines import ImplicitGradient, ValuePenalty
    from pdopt.methods.dual_ascent import DualAscent
    from pdopt.methods.exact_augmented_lagrangian import ExactAugmentedLagrangian
    from pdopt.methods.inner import ProjectedNewton
    from pdopt.methods.inner_iterative import ProjectedLBFGS, ProjectedNewtonCG
    from pdopt.methods.matching_policies import Balance, Greedy, Ranking, UniformRandom
    from pdopt.methods.mirror_descent import MirrorDescent
    from pdopt.methods.multiplier import Growth, Multiplier, Violation
    from pdopt.methods.newton_systems import BlockSketch, Direct, MinRes
    from pdopt.methods.pairwise import pairwise
    from pdopt.methods.pdhg import PDHG
    from pdopt.methods.piecewise_newton import PiecewiseNewton
    from pdopt.methods.semi_dual import Dual, SemiDual
    from pdopt.methods.sinkhorn import Sinkhorn
    from pdopt.minimise import minimise
    from pdopt.offline import offline
    from pdopt.operators.dense import Dense
    from pdopt.operators.implicit import Implicit
    from pdopt.operators.sparse import Sparse
    from pdopt.problems.allocation import Allocation
    from pdopt.problems.applications import Auctions, EntropicMatching, RevenueManagement
    from pdopt.problems.arrivals import Corrupted, Modulated, Phases, Seasonal
    from pdopt.problems.assortment import Assortment
    from pdopt.problems.balancing import Balancing
    from pdopt.problems.barycenter import Barycenter
    from pdopt.problems.bilevel import BilevelProgram
    from pdopt.problems.conic import ConicProgram
    from pdopt.problems.entropy import Entropy
    from pdopt.problems.game import MatrixGame
    from pdopt.problems.grid_cost import Grid
    from pdopt.problems.linear import LinearProgram
    from pdopt.problems.matching import StochasticMatching, left_heavy, upper_triangular
    from pdopt.problems.mps import read_model, read_mps, read_qps
    from pdopt.problems.nonlinear import Multipliers, NonlinearProgram
    from pdopt.problems.point_costs import LowRank, SqEuclidean
    from pdopt.problems.proximal import proximal_program
    from pdopt.problems.quadratic import QuadraticProgram
    from pdopt.problems.sampling import sample, worst_order
    from pdopt.problems.sharded import shard
    from pdopt.problems.solution_file import read_solution, write_solution
    from pdopt.problems.sparsity import KSparse, Quadratic
    from pdopt.problems.streams import Stream
    from pdopt.problems.transport import Transport
    from pdopt.rules.loop import HISTORY
    from pdopt.rules.signals import PID, Extrapolated
    from pdopt.run import run
    from pdopt.simulate import simulate
    from pdopt.solve import solve
    from pdopt.solve_many import solve_many
    from pdopt.types import Memory, Pair, Residuals, Solution, Status, Steps, Visit, record

# Public name -> the module it is imported from at its first use.
_HOMES = {
    "HISTORY": "rules.loop",
    "Barycenter": "problems.barycenter",
    "barycenter": "barycenter",
    "Divergence": "divergence",
    "sinkhorn_divergence": "divergence",
    "Entropy": "problems.entropy",
    "Grid": "problems.grid_cost",
    "LowRank": "problems.point_costs",
    "SqEuclidean": "problems.point_costs",
    "KSparse": "problems.sparsity",
    "Quadratic": "problems.sparsity",
    "Dual": "methods.semi_dual",
    "SemiDual": "methods.semi_dual",
    "Transport": "problems.transport",
    "PDHG": "methods.pdhg",
    "PiecewiseNewton": "methods.piecewise_newton",
    "Allocation": "problems.allocation",
    "Assortment": "problems.assortment",
    "Auctions": "problems.applications",
    "AverageSpectrum": "methods.average_spectrum",
    "assign": "assign",
    "AugmentedLagrangian": "methods.augmented_lagrangian",
    "Balance": "methods.matching_policies",
    "BlockSketch": "methods.newton_systems",
    "Direct": "methods.newton_systems",
    "ExactAugmentedLagrangian": "methods.exact_augmented_lagrangian",
    "MinRes": "methods.newton_systems",
    "Balancer": "methods.balancing",
    "Balancing": "problems.balancing",
    "Constrained": "constrain",
    "BilevelProgram": "problems.bilevel",
    "hypergradient": "bilevel",
    "lower_solution": "bilevel",
    "polish_bilevel": "bilevel",
    "Growing": "methods.bilevel",
    "LVHBA": "methods.bilevel",
    "Stages": "methods.bilevel",
    "Corrupted": "problems.arrivals",
    "Dense": "operators.dense",
    "DualAscent": "methods.dual_ascent",
    "Entropic": "geometry.entropic",
    "EntropicMatching": "problems.applications",
    "Euclidean": "geometry.moves",
    "Extrapolated": "rules.signals",
    "Greedy": "methods.matching_policies",
    "Growth": "methods.multiplier",
    "Implicit": "operators.implicit",
    "ImplicitGradient": "methods.bilevel_baselines",
    "ValuePenalty": "methods.bilevel_baselines",
    "LinearProgram": "problems.linear",
    "MatchingBound": "matching_bounds",
    "MatchingRun": "match_online",
    "ConicProgram": "problems.conic",
    "MatrixGame": "problems.game",
    "Memory": "types",
    "MirrorDescent": "methods.mirror_descent",
    "minimise": "minimise",
    "Multipliers": "problems.nonlinear",
    "NonlinearProgram": "problems.nonlinear",
    "ProjectedLBFGS": "methods.inner_iterative",
    "ProjectedNewton": "methods.inner",
    "ProjectedNewtonCG": "methods.inner_iterative",
    "Modulated": "problems.arrivals",
    "Multiplier": "methods.multiplier",
    "PID": "rules.signals",
    "Pair": "types",
    "Phases": "problems.arrivals",
    "QuadraticProgram": "problems.quadratic",
    "Ranking": "methods.matching_policies",
    "Residuals": "types",
    "RevenueManagement": "problems.applications",
    "Seasonal": "problems.arrivals",
    "Sign": "geometry.moves",
    "Sinkhorn": "methods.sinkhorn",
    "Solution": "types",
    "Sparse": "operators.sparse",
    "Status": "types",
    "Steps": "types",
    "StochasticMatching": "problems.matching",
    "UniformRandom": "methods.matching_policies",
    "Violation": "methods.multiplier",
    "Visit": "types",
    "configuration_lp": "matching_bounds",
    "confirmed": "confirm",
    "constrain": "constrain",
    "left_heavy": "problems.matching",
    "match_online": "match_online",
    "matching_lp": "matching_bounds",
    "Stream": "problems.streams",
    "offline": "offline",
    "pairwise": "methods.pairwise",
    "read_model": "problems.mps",
    "proximal_program": "problems.proximal",
    "read_mps": "problems.mps",
    "read_qps": "problems.mps",
    "read_solution": "problems.solution_file",
    "record": "types",
    "run": "run",
    "sample": "problems.sampling",
    "shard": "problems.sharded",
    "simulate": "simulate",
    "solve": "solve",
    "solve_many": "solve_many",
    "stochastic_configuration_lp": "matching_bounds",
    "upper_triangular": "problems.matching",
    "worst_order": "problems.sampling",
    "write_solution": "problems.solution_file",
}

__all__ = [
    "HISTORY",
    "LVHBA",
    "PDHG",
    "PID",
    "Allocation",
    "Assortment",
    "Auctions",
    "AugmentedLagrangian",
    "AverageSpectrum",
    "Balance",
    "Balancer",
    "Balancing",
    "Barycenter",
    "BilevelProgram",
    "BlockSketch",
    "ConicProgram",
    "Constrained",
    "Corrupted",
    "Dense",
    "Direct",
    "Divergence",
    "Dual",
    "DualAscent",
    "Entropic",
    "EntropicMatching",
    "Entropy",
    "Euclidean",
    "ExactAugmentedLagrangian",
    "Extrapolated",
    "Greedy",
    "Grid",
    "Growing",
    "Growth",
    "Implicit",
    "ImplicitGradient",
    "KSparse",
    "LinearProgram",
    "LowRank",
    "MatchingBound",
    "MatchingRun",
    "MatrixGame",
    "Memory",
    "MinRes",
    "MirrorDescent",
    "Modulated",
    "Multiplier",
    "Multipliers",
    "NonlinearProgram",
    "Pair",
    "Phases",
    "PiecewiseNewton",
    "ProjectedLBFGS",
    "ProjectedNewton",
    "ProjectedNewtonCG",
    "Quadratic",
    "QuadraticProgram",
    "Ranking",
    "Residuals",
    "RevenueManagement",
    "Seasonal",
    "SemiDual",
    "Sign",
    "Sinkhorn",
    "Solution",
    "Sparse",
    "SqEuclidean",
    "Stages",
    "Status",
    "Steps",
    "StochasticMatching",
    "Stream",
    "Transport",
    "UniformRandom",
    "ValuePenalty",
    "Violation",
    "Visit",
    "assign",
    "barycenter",
    "configuration_lp",
    "confirmed",
    "constrain",
    "hypergradient",
    "left_heavy",
    "lower_solution",
    "match_online",
    "matching_lp",
    "minimise",
    "offline",
    "pairwise",
    "polish_bilevel",
    "proximal_program",
    "read_model",
    "read_mps",
    "read_qps",
    "read_solution",
    "record",
    "run",
    "sample",
    "shard",
    "simulate",
    "sinkhorn_divergence",
    "solve",
    "solve_many",
    "stochastic_configuration_lp",
    "upper_triangular",
    "worst_order",
    "write_solution",
]


_FOLDERS = ("errors", "geometry", "methods", "models", "operators", "problems", "rules", "runtime", "types")


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return importlib.import_module(f"pdopt.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'pdopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pdopt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_FOLDERS})


class _Package(ModuleType):
    """Keeps `pdopt.solve` and `pdopt.run` the functions: importing a submodule sets it as its package's attribute."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
