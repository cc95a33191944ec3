"""Moves (the geometry branch replaces this file)."""
from typing import Any
import jax.numpy as jnp
from pdopt.types import record


@record
class Interval:
    row_lower: Any
    row_upper: Any

    def __call__(self, y: Any, v: Any, step: Any) -> Any:
        t = y + step * v
        return t - step * jnp.clip(t / step, -self.row_upper, -self.row_lower)
