"""What the figures were measured on: processor, cores, memory, Python, packages, revision."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "highspy",
    "ortools",
    "mpax",
    "clarabel",
    "osqp",
    "ott-jax",
    "POT",
    "sif2jax",
    "ipyopt",
)


def machine() -> dict[str, str]:
    """Facts for the records and the report; "not installed" for an absent peer."""
    facts = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load": " ".join(f"{v:.1f}" for v in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "revision": _revision(),
    }
    for name in PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _revision() -> str:
    """The commit of this checkout, with "+" when files differ from it; "unknown" outside one."""
    root = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    if found.returncode != 0:
        return "unknown"
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")
