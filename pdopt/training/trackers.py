"""Reporters for tools that show runs: TensorBoard's event files, and Weights and Biases.

Both packages are optional and imported when a reporter is made. TensorBoard's own writer is used, which needs neither
torch nor tensorflow.
"""

import importlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdopt.errors import InvalidOption
from pdopt.training.metric_files import samples_page
from pdopt.training.reporters import Samples, Scalars

RUN_FILE = "wandb-run.json"


class TensorBoard:
    """A reporter that writes event files; look at them with `tensorboard --logdir FOLDER`.

    Args:
        folder: of the event files.
        resume: the next step of a run that is continued: TensorBoard hides what is at or after it.

    Raises:
        InvalidOption: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: str | Path, *, resume: int | None = None) -> None:
        writer = _imported("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._event = _imported("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._summary = _imported("tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._tensor = _imported("tensorboard.util.tensor_util", "tensorboard")
        self._writer = writer.EventFileWriter(str(folder))
        if resume is not None:
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._writer.add_event(self._event.Event(wall_time=time.time(), step=int(resume), session_log=start))

    def scalars(self, step: int, values: Scalars) -> None:
        """One event with all values; NaN ones are left out."""
        summary = self._summary.Summary()
        for name, value in values.items():
            if not math.isnan(value):
                summary.value.add(tag=name, simple_value=float(value))
        self._add(step, summary)

    def text(self, step: int, table: Samples) -> None:
        """The page of samples, as Markdown."""
        summary = self._summary.Summary()
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        summary.value.add(
            tag="samples",
            metadata=self._summary.SummaryMetadata(plugin_data=plugin),
            tensor=self._tensor.make_tensor_proto([samples_page(step, table).encode()]),
        )
        self._add(step, summary)

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._writer.close()

    def _add(self, step: int, summary: Any) -> None:
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=int(step), summary=summary))


class WeightsAndBiases:
    """A reporter that logs to Weights and Biases; project, entity and mode come from its own variables (`WANDB_...`).

    The run's id is kept in the folder, so that a resumed run continues it. Values are plotted against our own step, so
    steps that are done again after a resume are drawn twice there, unlike in `metrics.jsonl`.

    Args:
        folder: of the run.
        config: shown beside the run.
        resume: continue the run that the folder knows.

    Raises:
        InvalidOption: the package `wandb` is not installed.
    """

    def __init__(self, folder: str | Path, *, config: Mapping[str, Any] | None = None, resume: bool = False) -> None:
        self._wandb = _imported("wandb", "wandb")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / RUN_FILE
        earlier = json.loads(known.read_text(encoding="utf-8"))["id"] if resume and known.exists() else None
        self._run = self._wandb.init(dir=str(folder), config=dict(config or {}), id=earlier, resume="allow")
        known.write_text(json.dumps({"id": self._run.id}), encoding="utf-8")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Scalars) -> None:
        """One row of values."""
        self._run.log({"step": int(step), **values})

    def text(self, step: int, table: Samples) -> None:
        """A table of samples."""
        columns = list(dict.fromkeys(name for sample in table for name in sample))
        rows = [[sample.get(name) for name in columns] for sample in table]
        self._run.log({"step": int(step), "samples": self._wandb.Table(columns=columns, data=rows)})

    def close(self) -> None:
        """Send what waits, and end the run."""
        self._run.finish()


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidOption(f"the reporter needs the package {package}: pip install {package} ({error})") from error
