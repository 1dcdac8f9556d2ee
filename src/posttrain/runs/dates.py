"""The date that chat templates write, which a run records so that it can be resumed on any day."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from posttrain.common import distributed
from posttrain.data.chat_template import is_dated, reads_date
from posttrain.data.config import DataConfig
from posttrain.model.folder import read_info, recorded_date
from posttrain.runs.config import Config


def with_date(config: Config, tokenizer: Any, resume: Path | None) -> Config:
    """Return the config with the data.date of the run, if the chat template writes a date.

    It is the config's own, that of the run that is resumed, or today's.
    """
    plain = all(section.template == "plain" for section in config.mixture)
    if plain or not is_dated(tokenizer):
        given = next((s.date for s in config.mixture if s.date is not None), None)
        if given is not None and (plain or not reads_date(tokenizer)):
            raise ValueError(f"data.date is {given}, but no chat template writes it: remove it")
        return config
    before = None if resume is None else recorded_date(read_info(resume)["config"])
    today = distributed.from_rank_0(datetime.date.today().isoformat())
    update = {"date": before or datetime.date.fromisoformat(today)}

    def dated(section: DataConfig) -> DataConfig:
        return section if section.date is not None else section.model_copy(update=update)

    data = config.data
    whole = [dated(s) for s in data] if isinstance(data, list) else dated(data)
    return config.model_copy(update={"data": whole})
