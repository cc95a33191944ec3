"""Colour transfer between two photographs: each pixel goes where the entropic plan sends its colour, on average.

    T(c) = sum_j y_j w_j / sum_j w_j,   w_j = b_j exp((g_j - |c - y_j|^2) / epsilon)

which is the plan's barycentric map, extended from the sampled colours to all (Pooladian and Niles-Weed 2021).
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import Claim
from benchmarks.harness import Options
from benchmarks.plots import save_picture
from benchmarks.report import Table
from benchmarks.transport_clouds import photographs


def section(options: Options, say: Any) -> tuple[list[dict[str, Any]], list[Claim], list[Table], list[Any]]:
    """china.jpg in the colours of flower.jpg and back; how near the colours come, and the picture."""
    import jax.numpy as jnp

    import pdopt

    stride = 1 if options.full else 3
    images = [image[::stride, ::stride] for image in photographs()]
    rng = np.random.default_rng(options.seed)
    samples = [image.reshape(-1, 3)[rng.integers(0, image[..., 0].size, 1500)].astype(np.float32) for image in images]
    cost = pdopt.SqEuclidean(*samples)
    problem = pdopt.Transport(cost, regulariser=pdopt.Entropy(0.01 * float(cost.mean())), dtype=np.float32)
    solution = pdopt.solve(problem, gradient="none")
    epsilon = problem.regulariser.epsilon
    moved, records = [], []
    for k, (goal, potential) in enumerate(((samples[1], solution.y.g), (samples[0], solution.y.f))):
        pixels = jnp.asarray(images[k].reshape(-1, 3), jnp.float32)

        def sent(block: Any, goal: Any = jnp.asarray(goal), potential: Any = potential) -> Any:
            exponent = (potential - block) / epsilon
            weights = jnp.exp(exponent - jnp.max(exponent, axis=1, keepdims=True))
            return weights @ goal / jnp.sum(weights, axis=1, keepdims=True)

        result = np.clip(np.asarray(pdopt.SqEuclidean(pixels, jnp.asarray(goal)).rows(sent)), 0, 1)
        moved.append(result.reshape(images[k].shape))
        before, after = (_apart(c, images[1 - k]) for c in (images[k], moved[k]))
        records.append({"section": "colour", "image": ("china", "flower")[k], "before": before, "after": after})
    claims = [
        Claim(f"colour transfer of {r['image']}: distance of colour statistics after / before", r["after"] / r["before"],
              0.2, "<=")
        for r in records
    ]  # fmt: skip
    say(f"colour transfer: {int(solution.iterations)} sweeps, {solution.reason}")
    return records, claims, [], [_picture(images, moved, options.output / "colours.png", records)]


def _apart(image: np.ndarray, other: np.ndarray) -> float:
    """Distance between the mean colours and between the square roots of the covariances, by their traces."""
    stats = []
    for pixels in (image.reshape(-1, 3), other.reshape(-1, 3)):
        stats.append(np.concatenate([pixels.mean(0), pixels.std(0)]))
    return float(np.linalg.norm(stats[0] - stats[1]))


def _picture(images: list[np.ndarray], moved: list[np.ndarray], path: Path, records: list[dict[str, Any]]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    titles = ("china", "flower", "china in flower's colours", "flower in china's colours")
    for place, image, title in zip(axes.flat, (*images, *moved), titles):
        place.imshow(image)
        place.set_title(title)
        place.set_axis_off()
    return save_picture(figure, path, records)
