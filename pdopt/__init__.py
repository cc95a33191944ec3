"""pdopt: constrained optimisation by primal-dual methods in JAX.

One saddle-point step, written once, solves linear and quadratic programs, games and constrained programs; see
`pdopt.rules.saddle`. Importing this package changes no JAX configuration and creates no array.
"""

from pdopt.geometry.entropic import Entropic
from pdopt.geometry.moves import Euclidean
from pdopt.methods.augmented_lagrangian import AugmentedLagrangian
from pdopt.methods.dual_ascent import DualAscent
from pdopt.methods.mirror_descent import MirrorDescent
from pdopt.methods.pdhg import PDHG
from pdopt.problems.game import MatrixGame
from pdopt.problems.linear import LinearProgram
from pdopt.problems.quadratic import QuadraticProgram
from pdopt.rules.loop import HISTORY
from pdopt.solve import solve
from pdopt.types import Memory, Pair, Residuals, Solution, Status, Steps, Visit, record

__all__ = [
    "HISTORY",
    "PDHG",
    "AugmentedLagrangian",
    "DualAscent",
    "Entropic",
    "Euclidean",
    "LinearProgram",
    "MatrixGame",
    "Memory",
    "MirrorDescent",
    "Pair",
    "QuadraticProgram",
    "Residuals",
    "Solution",
    "Status",
    "Steps",
    "Visit",
    "record",
    "solve",
]
