"""Is a quadratic objective convex? What can be seen of Q before solving: symmetry, and curvature of the wrong sign.

A Q of up to `EIGENVALUES` variables is looked at whole. A larger one is looked at by what can only ever prove that it
is *not* semidefinite: a diagonal entry or a two by two minor of the wrong sign, and the smallest Ritz value of a few
Lanczos steps, which bounds the smallest eigenvalue from above.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from pdopt.errors import InvalidProblem
from pdopt.operators.dense import Dense
from pdopt.operators.diagonal import Diagonal
from pdopt.operators.sparse import Sparse
from pdopt.problems.checks import concrete
from pdopt.runtime.precision import precision_scope

# Up to this many variables the eigenvalues of a dense Q are looked at (0.1 s at 500).
EIGENVALUES = 500
LANCZOS = 40  # products with a larger Q
ROUNDING = 100  # units of rounding of the largest eigenvalue that a smallest one may lie below 0


def check_symmetric(Q: Any) -> None:
    """Raise unless Q = Q': entry by entry where they are stored whole, else by one product with a fixed vector.

    Raises:
        InvalidProblem: naming an index where they differ.
    """
    if isinstance(Q, Diagonal):
        return
    if isinstance(Q, Dense):
        there, back = concrete(Q.matrix), concrete(Q.matrix)
        back = None if back is None else back.T
    else:
        with precision_scope(Q):
            probe = jnp.asarray(np.random.default_rng(0).standard_normal(Q.shape[1]), Q.dtype)
            there, back = concrete(Q.matvec(probe)), concrete(Q.rmatvec(probe))
    if there is None or back is None or not there.size:
        return
    apart, size = np.abs(there - back), np.abs(there).max()
    if apart.max() > 100 * np.finfo(there.dtype).eps * size:
        place = tuple(int(k) for k in np.unravel_index(int(np.argmax(apart)), apart.shape))
        raise InvalidProblem(f"Q is not symmetric: Q and its transpose differ by {apart.max():g} at index {place}")


def check_definite(Q: Any, sense: float) -> None:
    """Raise where `sense Q` is seen not to be positive semidefinite, up to rounding; traced data pass.

    Raises:
        InvalidProblem: with the eigenvalue, or a number above it.

    Example:
        >>> check_definite(Diagonal(np.array([1.0, -2.0])), 1.0)
        Traceback (most recent call last):
        ...
        pdopt.errors.InvalidProblem: Q is not positive semidefinite: its smallest eigenvalue is -2; ...
    """
    entries = concrete(Q.entries) if isinstance(Q, (Dense, Sparse, Diagonal)) else None
    if entries is None or not entries.size:
        return
    n, unit = Q.shape[0], np.finfo(entries.dtype).eps
    entries = sense * entries.astype(np.float64)
    if isinstance(Q, Diagonal):
        least, largest, exact = entries.min(), np.abs(entries).max(), True
    elif n <= EIGENVALUES:
        values = np.linalg.eigvalsh(_whole(Q, entries))
        least, largest, exact = values[0], np.abs(values).max(), True
    else:
        least, largest = _ritz(_product(Q, entries), n)
        exact = False
    if least < -ROUNDING * unit * largest:
        side, which = ("positive", "smallest") if sense > 0 else ("negative", "largest")
        bound = "is" if exact else "is at most" if sense > 0 else "is at least"
        raise InvalidProblem(
            f"Q is not {side} semidefinite: its {which} eigenvalue {bound} {sense * least:g}; the problem is not convex"
        )


def _whole(Q: Any, entries: np.ndarray) -> np.ndarray:
    if isinstance(Q, Dense):
        return entries
    matrix = np.zeros(Q.shape)
    matrix[np.asarray(Q.row), np.asarray(Q.column)] = entries
    return matrix


def _product(Q: Any, entries: np.ndarray) -> Any:
    """The matrix as something NumPy multiplies by."""
    if isinstance(Q, Dense):
        return entries
    import scipy.sparse as sp

    return sp.csr_matrix((entries, (np.asarray(Q.row), np.asarray(Q.column))), shape=Q.shape)


def _ritz(Q: Any, n: int) -> tuple[float, float]:
    """Least and largest size of a Ritz value after `LANCZOS` steps from the worst column, or the worst entry if lower.

    A diagonal entry is a Rayleigh quotient too, and so is every value of a two by two minor.
    """
    diagonal = np.asarray(Q.diagonal())
    least = _least_minor(Q, diagonal)
    v = np.random.default_rng(0).standard_normal(n)
    basis, alphas, betas = [v / np.linalg.norm(v)], [], []
    for _ in range(min(LANCZOS, n)):
        image = Q @ basis[-1]
        alphas.append(float(basis[-1] @ image))
        known = np.stack(basis)
        for _ in range(2):  # orthogonal again, twice: once is not enough near convergence
            image = image - known.T @ (known @ image)
        beta = float(np.linalg.norm(image))
        if beta <= 1e-12 * max(abs(a) for a in alphas):
            break
        betas.append(beta)
        basis.append(image / beta)
    k = len(alphas)
    values = np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas[: k - 1], 1) + np.diag(betas[: k - 1], -1))
    return min(least, float(values[0])), max(float(np.abs(values).max()), float(np.abs(diagonal).max()))


def _least_minor(Q: Any, diagonal: np.ndarray) -> float:
    """The least eigenvalue of the two by two minors with an entry off the diagonal, or the least diagonal entry."""
    import scipy.sparse as sp

    entries = sp.coo_matrix(Q)
    off = entries.row < entries.col
    a, b, q = diagonal[entries.row[off]], diagonal[entries.col[off]], entries.data[off]
    minors = (a + b) / 2 - np.hypot((a - b) / 2, q)
    return float(min(diagonal.min(), minors.min(initial=np.inf)))
