"""pdopt: constrained optimisation by primal-dual methods in JAX.

One saddle-point step, written once, solves linear and quadratic programs, games and constrained programs; see
`pdopt.rules.saddle`. Importing this package changes no JAX configuration and creates no array.
"""

from pdopt.methods.pdhg import PDHG
from pdopt.problems.linear import LinearProgram
from pdopt.rules.loop import HISTORY
from pdopt.solve import solve
from pdopt.types import Memory, Pair, Residuals, Solution, Status, Steps, Visit, record

__all__ = [
    "HISTORY",
    "PDHG",
    "LinearProgram",
    "Memory",
    "Pair",
    "Residuals",
    "Solution",
    "Status",
    "Steps",
    "Visit",
    "record",
    "solve",
]
