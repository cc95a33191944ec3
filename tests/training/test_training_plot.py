"""The picture of a run: which panels it has, that limits are dashed, that every reported number is drawn."""

import json

import numpy as np
import pytest

from pdopt.errors import InvalidFile
from pdopt.training import training_plot
from pdopt.training.training_plot import plot_training, read_metrics


@pytest.fixture
def figures(monkeypatch):
    """The figures that were to be written; laying them out and drawing takes a second each."""
    from matplotlib.figure import Figure

    made = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **settings: made.append(figure))
    return made


def write(path, steps, extra=lambda step: {}):
    rows = [
        {
            "step": step, "reward": step / steps, "entropy": 1.0, "kl_k3": None if step == 1 else 0.1, "length": 20.0,
            "constraint/short/value": 30.0 - step, "constraint/short/limit": 24.0,
            "constraint/short/multiplier": 0.1 * step, **extra(step),
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def panel(figure, title):
    return next(axis for axis in figure.axes if axis.get_title() == title)


def test_panels_and_lines(tmp_path, figures):
    write(tmp_path / "m.jsonl", 20, lambda step: {"evaluation/accuracy": 0.5} if step % 10 == 0 else {})
    plot_training(tmp_path / "m.jsonl", tmp_path / "run.png", title="a run")
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes if axis.axison] == [
        "reward", "constraint: short", "multipliers", "KL to the reference (nats a token)", "entropy (nats a token)",
        "completion length (tokens)",
    ]  # fmt: skip
    training, accuracy = panel(figure, "reward").lines
    np.testing.assert_allclose(training.get_ydata(), np.arange(1, 21) / 20)
    assert accuracy.get_xdata().tolist() == [10, 20]
    value, limit = panel(figure, "constraint: short").lines
    assert (value.get_linestyle(), limit.get_linestyle()) == ("-", "--")
    assert limit.get_ydata().tolist() == [24.0] * 20
    assert panel(figure, "KL to the reference (nats a token)").lines[0].get_xdata().tolist() == list(range(2, 21))
    assert panel(figure, "multipliers").get_ylim()[0] == 0.0


def test_long_series_get_a_running_mean_and_multipliers_do_not(tmp_path, figures, monkeypatch):
    monkeypatch.setattr(training_plot, "MANY", 10)
    write(tmp_path / "m.jsonl", 300)
    plot_training(tmp_path / "m.jsonl", tmp_path / "run.svg")
    raw, smooth = panel(figures[0], "reward").lines
    assert len(raw.get_xdata()) == len(smooth.get_xdata()) == 300
    np.testing.assert_allclose(smooth.get_ydata()[3:-3], raw.get_ydata()[3:-3])  # a straight line is its own mean
    assert smooth.get_ydata()[0] == pytest.approx(np.mean(raw.get_ydata()[:4]))
    assert len(panel(figures[0], "multipliers").lines) == 1


def test_metrics_without_known_names_are_drawn_all_the_same(tmp_path, figures):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "strange": 2.0, "note": "text"}\n')
    plot_training(tmp_path / "m.jsonl", tmp_path / "run.png")
    assert [axis.get_title() for axis in figures[0].axes if axis.axison] == ["strange"]
    assert read_metrics(tmp_path / "m.jsonl")["strange"].tolist() == [[1.0, 2.0]]


def test_the_picture_is_written(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "reward": 2.0}\n')
    plot_training(tmp_path / "m.jsonl", tmp_path / "run.png", title="a run")
    assert (tmp_path / "run.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_nothing_to_draw_is_an_error(tmp_path):
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(InvalidFile, match="no metrics were reported"):
        plot_training(tmp_path / "m.jsonl", tmp_path / "run.png")
