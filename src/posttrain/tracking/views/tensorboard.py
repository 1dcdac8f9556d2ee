"""TensorBoard: event files in the run's folder, written again from the start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.views.view import Facts, Line, State, Tracker

FLUSH_SECONDS = 5


class TensorBoardView:
    """Event files: one event for each line."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder.mkdir(exist_ok=True)
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
        self.event, self.summary = event_pb2.Event, summary_pb2.Summary
        self.writer = EventFileWriter(str(folder), flush_secs=FLUSH_SECONDS)
        # makes a TensorBoard that is open forget the points of the old files
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.writer.add_event(event_pb2.Event(step=0, session_log=start))
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        code = "".join(f"    {x}\n" for x in yaml.safe_dump(config, sort_keys=False).splitlines())
        text = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[code.encode()])
        text.tensor_shape.dim.add(size=1)
        value = summary_pb2.Summary.Value(
            tag="config", metadata=summary_pb2.SummaryMetadata(plugin_data=plugin), tensor=text
        )
        self.writer.add_event(event_pb2.Event(step=0, summary=self.summary(value=[value])))

    def add(self, lines: Sequence[Line]) -> None:
        """Write the lines."""
        for line in lines:
            values = [
                self.summary.Value(tag=name, simple_value=value)
                for name, value in line.metrics.items()
            ]
            summary = self.summary(value=values)
            self.writer.add_event(self.event(wall_time=line.time, step=line.step, summary=summary))

    def close(self, state: State) -> None:
        """Write what is still in memory."""
        self.writer.close()


def open_view(facts: Facts) -> TensorBoardView:
    """Return the view, without the points of an earlier part of the run."""
    return TensorBoardView(facts.run_dir / "tensorboard", facts.config)


def check(settings: TrackingConfig) -> None:
    """Accept everything: TensorBoard needs no key."""


TENSORBOARD = Tracker(("tensorboard",), open_view, check)
