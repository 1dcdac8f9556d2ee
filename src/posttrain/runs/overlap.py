"""Rows of the evaluation that are also trained on."""

from __future__ import annotations

from posttrain.common.batch import Example
from posttrain.data.kinds.prompt import Prompt
from posttrain.runs.config import Config
from posttrain.runs.data import Data, eval_label


def overlap_lines(config: Config, data: Data) -> list[str]:
    """Return a note if rows of the evaluation are also trained on, token for token."""
    if data.eval_examples:
        trained = {_key(example) for example in data.examples}
        shared, total = sum(_key(x) in trained for x in data.eval_examples), len(data.eval_examples)
    else:
        trained = {_key(prompt) for prompt in data.prompts}
        shared, total = sum(_key(x) in trained for x in data.eval_prompts), len(data.eval_prompts)
    if not shared:
        return []
    return [
        f"note: {shared:,} of the {total:,} evaluation rows ({eval_label(config)}) are also "
        "trained on: they do not show how the model does on new ones"
    ]


def _key(row: Example | Prompt) -> int:
    """Return a hash of the tokens of a prompt or of all sequences of an example."""
    if isinstance(row, Prompt):
        return hash(tuple(row.input_ids))
    return hash(tuple(s.input_ids.numpy().tobytes() for s in row))
