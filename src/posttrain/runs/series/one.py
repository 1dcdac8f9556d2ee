"""One member of a series, trained in this process: for job arrays, and under torchrun."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from posttrain.common import distributed
from posttrain.common.interrupt import Interrupted
from posttrain.runs.series.jobs import LONGEST_ERROR, begin_record
from posttrain.runs.series.members import Member
from posttrain.runs.series.state import (
    Record,
    is_done,
    read_state,
    refuse_changed,
    training,
    write_record,
)
from posttrain.runs.train import train


def train_one(member: Member, retrain: bool = False) -> Path:
    """Train one member of a series and return its run directory; a finished one is left as it is.

    Several calls may train different members at the same time. Under torchrun every rank calls it.
    """
    distributed.start(member.config.model.device)
    folder = Path(member.config.trainer.output_dir)
    with ExitStack() as stack:
        begun: tuple[Record, Member] | ValueError | None = None
        if distributed.rank() == 0:
            try:
                stack.enter_context(training(folder, member.label))
                begun = _begin(folder, member, retrain)
            except ValueError as error:
                begun = error if distributed.num_ranks() == 1 else ValueError(str(error))
        begun = distributed.from_rank_0(begun)
        if isinstance(begun, ValueError):
            raise begun
        assert begun is not None
        record, starting = begun
        if record.state != "running":
            return folder / record.run
        started = time.monotonic()
        record.state = "interrupted"
        try:
            train(starting.config, folder / record.run)
            record.state = "finished"
        except Interrupted:
            raise  # it has saved, and is resumed by the next call
        except Exception as error:
            record.state = "failed"
            record.error = " ".join(str(error).split())[:LONGEST_ERROR] or type(error).__name__
            raise
        finally:
            record.seconds = round(record.seconds + time.monotonic() - started, 1)
            record.pid = None
            if distributed.rank() == 0:
                write_record(folder, member.label, record)
    return folder / record.run


def _begin(folder: Path, member: Member, retrain: bool) -> tuple[Record, Member]:
    """Return the record of a member's run, which is running unless it finished before."""
    if not retrain:
        refuse_changed(folder, [member])
    record = read_state(folder)[1].get(member.label)
    if record is not None and not retrain and is_done(folder, record):
        return record, member
    return begin_record(folder, member, record)
