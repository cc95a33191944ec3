"""CUTEst problems in JAX (`sif2jax`) as plain functions, with inequalities as `<= 0` by a table of signs.

`sif2jax` documents `c_I(x) >= 0`, and a sizeable minority of its problems do not keep to it; some stored optimal values
are wrong. `cutest.toml` beside this file says for each problem how its rows are signed and which value is expected. A
problem's own module is imported alone: the package's `__init__` builds all 849 problems, which takes a minute.
"""

import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

TABLE = Path(__file__).with_suffix(".toml")
PACKAGE = "sif2jax"


class Program(NamedTuple):
    """One problem on a flat x: `min f` subject to `equality = 0`, `inequality <= 0`, `lower <= x <= upper`.

    `f`, `equality` and `inequality` are traceable; the latter two are None where the problem has none. `expected` is
    the known optimal value, or None.
    """

    name: str
    f: Callable[[Any], Any]
    start: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    equality: Callable[[Any], Any] | None
    inequality: Callable[[Any], Any] | None
    expected: float | None


def table() -> dict[str, dict[str, Any]]:
    """Problem name -> its entry: `set` ("equality" or "inequality"), `signs` of the inequality rows, `value`."""
    return tomllib.loads(TABLE.read_text())


def names(kind: str) -> list[str]:
    """The problems of a set, in the table's order."""
    return [name for name, entry in table().items() if entry["set"] == kind]


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("equinox") is not None and _folder() is not None


def load(name: str) -> Program:
    """The problem of that name, in float64; call it and its functions with JAX's 64-bit mode on.

    Raises:
        KeyError: a name that the package does not have.
    """
    made = _class(name)()
    entry = table().get(name, {})
    start, shaped = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), made.y0))
    args = made.args
    bounds = made.bounds
    low, high = (np.full(start.size, -np.inf), np.full(start.size, np.inf)) if bounds is None else (
        np.asarray(ravel_pytree(b)[0], float) for b in bounds
    )  # fmt: skip
    parts = jax.eval_shape(lambda x: made.constraint(shaped(x)), start)
    signs = entry.get("signs", ">=")

    def f(x: Any) -> Any:
        return jnp.asarray(made.objective(shaped(x), args)).reshape(())

    def equality(x: Any) -> Any:
        return ravel_pytree(made.constraint(shaped(x))[0])[0]

    def inequality(x: Any) -> Any:
        rows = ravel_pytree(made.constraint(shaped(x))[1])[0]
        return rows * _factors(signs, rows.size)

    has = [part is not None and sum(int(np.prod(s.shape)) for s in jax.tree.leaves(part)) > 0 for part in parts]
    return Program(
        name, f, np.asarray(start), np.clip(low, -np.inf, np.inf), high, equality if has[0] else None,
        inequality if has[1] else None, entry.get("value"),
    )  # fmt: skip


def _factors(signs: str, size: int) -> np.ndarray:
    """What the rows are multiplied by to be `<= 0`: `>=`, `<=`, or a letter for each row, + for `>=`."""
    if signs in (">=", "<="):
        return np.full(size, -1.0 if signs == ">=" else 1.0)
    if len(signs) != size:
        raise ValueError(f"signs {signs!r} are for {len(signs)} rows; the problem has {size}")
    return np.array([-1.0 if sign == "+" else 1.0 for sign in signs])


def _folder() -> Path | None:
    found = importlib.util.find_spec(PACKAGE) if PACKAGE not in sys.modules else sys.modules[PACKAGE].__spec__
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def _class(name: str) -> Any:
    """The class of a problem, from the one module that defines it."""
    folder = _folder()
    if folder is None:
        raise KeyError(f"{PACKAGE} is not installed")
    wanted = name.replace("-", "_")
    pattern = re.compile(rf"^class {re.escape(wanted)}\(", re.MULTILINE)
    for path in sorted(folder.glob("cutest/_*/**/*.py")):
        if pattern.search(path.read_text()):
            _bare(folder, path)
            parts = path.relative_to(folder).with_suffix("").parts
            return getattr(importlib.import_module(".".join((PACKAGE, *parts))), wanted)
    raise KeyError(f"{PACKAGE} has no problem {name}")


def _bare(folder: Path, path: Path) -> None:
    """The packages above a module, without running their `__init__`."""
    parts = path.relative_to(folder).parent.parts
    for depth in range(len(parts) + 1):
        full = ".".join((PACKAGE, *parts[:depth]))
        if full not in sys.modules:
            module = ModuleType(full)
            module.__path__ = [str(folder.joinpath(*parts[:depth]))]
            module.__spec__ = importlib.util.spec_from_file_location(
                full, folder.joinpath(*parts[:depth], "__init__.py"), submodule_search_locations=module.__path__
            )
            sys.modules[full] = module
