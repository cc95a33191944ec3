"""pdopt: constrained optimisation by primal-dual methods in JAX.

One saddle-point step, written once, solves linear and quadratic programs, games and constrained programs; see
`pdopt.rules.saddle`. Importing this package changes no JAX configuration and creates no array.
"""

from pdopt.types import Memory, Pair, Residuals, Solution, Status, Steps, Visit, record

__all__ = ["Memory", "Pair", "Residuals", "Solution", "Status", "Steps", "Visit", "record"]
