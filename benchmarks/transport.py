"""Optimal transport: pdopt against OTT-JAX and POT on colour clouds and digit images, at equal true accuracy."""

import itertools
from typing import Any

from benchmarks import transport_clouds, transport_colour, transport_digits, transport_memory, transport_sparse
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.report import Report

ABOUT = "optimal transport against OTT-JAX and POT"
# Each section returns (records, claims, tables, pictures).
SECTIONS = (
    transport_clouds.section, transport_clouds.agreement, transport_digits.section, transport_digits.neighbours,
    transport_colour.section, transport_sparse.section, transport_memory.section,
)  # fmt: skip


def run(options: Options, say: Any = print) -> Report:
    """All sections, one after the other."""
    parts = [section(options, say) for section in SECTIONS]
    records, claims, tables, pictures = (list(itertools.chain(*found)) for found in zip(*parts))
    notes = [
        "Every answer is judged by the L1 error of both marginals, in float64, from the potentials or plan returned; "
        "a peer's threshold is tightened until that is within the target.",
        "CPU seconds of warm runs; compilation apart. A peer's run that reached its limit of sweeps is 'cut' and "
        "counts as at least the time it took; nothing is extrapolated.",
    ]
    return Report("transport", records, claims, tables, [p for p in pictures if p is not None], machine(), notes)
