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
    from pdopt.geometry.entropic import Entropic
    from pdopt.geometry.moves import Euclidean
    from pdopt.methods.augmented_lagrangian import AugmentedLagrangian
    from pdopt.methods.average_spectrum import AverageSpectrum
    from pdopt.methods.dual_ascent import DualAscent
    from pdopt.methods.mirror_descent import MirrorDescent
    from pdopt.methods.pdhg import PDHG
    from pdopt.operators.dense import Dense
    from pdopt.operators.implicit import Implicit
    from pdopt.operators.sparse import Sparse
    from pdopt.problems.entropy import Entropy
    from pdopt.problems.game import MatrixGame
    from pdopt.problems.grid_cost import Grid
    from pdopt.problems.linear import LinearProgram
    from pdopt.problems.mps import read_model, read_mps
    from pdopt.problems.point_costs import LowRank, SqEuclidean
    from pdopt.problems.quadratic import QuadraticProgram
    from pdopt.problems.solution_file import read_solution, write_solution
    from pdopt.problems.transport import Transport
    from pdopt.rules.loop import HISTORY
    from pdopt.run import run
    from pdopt.solve import solve
    from pdopt.types import Memory, Pair, Residuals, Solution, Status, Steps, Visit, record

# Public name -> the module it is imported from at its first use.
_HOMES = {
    "HISTORY": "rules.loop",
    "Entropy": "problems.entropy",
    "Grid": "problems.grid_cost",
    "LowRank": "problems.point_costs",
    "SqEuclidean": "problems.point_costs",
    "Transport": "problems.transport",
    "PDHG": "methods.pdhg",
    "AverageSpectrum": "methods.average_spectrum",
    "assign": "assign",
    "AugmentedLagrangian": "methods.augmented_lagrangian",
    "Dense": "operators.dense",
    "DualAscent": "methods.dual_ascent",
    "Entropic": "geometry.entropic",
    "Euclidean": "geometry.moves",
    "Implicit": "operators.implicit",
    "LinearProgram": "problems.linear",
    "MatrixGame": "problems.game",
    "Memory": "types",
    "MirrorDescent": "methods.mirror_descent",
    "Pair": "types",
    "QuadraticProgram": "problems.quadratic",
    "Residuals": "types",
    "Solution": "types",
    "Sparse": "operators.sparse",
    "Status": "types",
    "Steps": "types",
    "Visit": "types",
    "read_model": "problems.mps",
    "read_mps": "problems.mps",
    "read_solution": "problems.solution_file",
    "record": "types",
    "run": "run",
    "solve": "solve",
    "write_solution": "problems.solution_file",
}

__all__ = [
    "HISTORY",
    "PDHG",
    "AugmentedLagrangian",
    "AverageSpectrum",
    "Dense",
    "DualAscent",
    "Entropic",
    "Entropy",
    "Euclidean",
    "Grid",
    "Implicit",
    "LinearProgram",
    "LowRank",
    "MatrixGame",
    "Memory",
    "MirrorDescent",
    "Pair",
    "QuadraticProgram",
    "Residuals",
    "Solution",
    "Sparse",
    "SqEuclidean",
    "Status",
    "Steps",
    "Transport",
    "Visit",
    "assign",
    "read_model",
    "read_mps",
    "read_solution",
    "record",
    "run",
    "solve",
    "write_solution",
]


_FOLDERS = ("errors", "geometry", "methods", "operators", "problems", "rules", "runtime", "types")


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
