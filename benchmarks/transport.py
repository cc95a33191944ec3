"""Optimal transport: pdopt against OTT-JAX and POT on colour clouds and digit images, at equal true accuracy."""

import importlib
import importlib.util
from typing import Any

from benchmarks import transport_clouds, transport_colour, transport_digits
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.report import Report

ABOUT = "optimal transport against OTT-JAX and POT"
# Each section returns (records, claims, tables, pictures).
SECTIONS = (
    transport_clouds.section, transport_clouds.agreement, transport_digits.section, transport_digits.neighbours,
    transport_colour.section,
)  # fmt: skip
# Further sections in modules of their own, `section(options, say)`, taken where present.
MODULES = ("transport_sparse", "transport_memory")


def run(options: Options, say: Any = print) -> Report:
    """All sections, one after the other."""
    parts = [section(options, say) for section in (*SECTIONS, *_further())]
    records, claims, tables, pictures = ([item for part in parts for item in part[k]] for k in range(4))
    notes = [
        "Every answer is judged by the L1 error of both marginals, in float64, from the potentials or the plan returned; "
        "a peer's threshold is tightened until that is within the target.",
        "CPU seconds of warm runs; compilation apart. A peer's run that reached its limit of sweeps is 'cut' and counts "
        "as at least the time it took; nothing is extrapolated.",
    ]
    return Report("transport", records, claims, tables, [p for p in pictures if p is not None], machine(), notes)


def _further() -> list[Any]:
    found = [name for name in MODULES if importlib.util.find_spec(f"benchmarks.{name}") is not None]
    return [importlib.import_module(f"benchmarks.{name}").section for name in found]
