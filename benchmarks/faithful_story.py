"""`python -m benchmarks.faithful_story FOLDER FILE`: what the notebook `faithful_grpo` tells, out of one run's results.

FOLDER is that of `python -m benchmarks faithful` (`benchmark-results/faithful`); FILE becomes JSON with the final
figures of every method, the curves of three of them, and completions of the same prompts by three policies.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.faithful_methods import PLAIN, RECOMMENDED

CURVES = (PLAIN, "dual ascent 0.05, separate", RECOMMENDED)
FIGURES = ("accuracy", "consistency", "grounding", "right_for_right", "hinted", "no_hint")


def story(folder: Path) -> dict[str, Any]:
    """The contents of the file."""
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    curves = json.loads((folder / "faithful.json").read_text())
    told = [r for r in records if r["kind"] in ("reference", "method")]
    figures: dict[str, dict[str, list[float]]] = {}
    for record in told:
        row = figures.setdefault(record.get("method", "reference"), {name: [] for name in FIGURES})
        for name in FIGURES:
            row[name].append(round(record[name], 4))
    first = [r for r in told if r["seed"] == told[0]["seed"]]
    texts = {r.get("method", "reference"): r["texts"] for r in first if r.get("method") in (None, PLAIN, RECOMMENDED)}
    return {
        "seeds": list(dict.fromkeys(r["seed"] for r in told)),
        "figures": figures,
        "curves": {method: curves[method] for method in CURVES if method in curves},
        "texts": texts,
        "machine": {name: records[0]["machine"][name] for name in ("processor", "jax", "revision")},
    }


def main(arguments: list[str]) -> None:
    """Write the file."""
    folder, file = map(Path, arguments)
    file.write_text(json.dumps(story(folder)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
