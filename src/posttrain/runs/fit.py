"""Whether the data, the tokenizer and the model of a run fit together."""

from __future__ import annotations

from posttrain.common.batch import sequences_of
from posttrain.model.models import Models
from posttrain.model.vocabulary import check_ids
from posttrain.runs.data import Data


def check_rows(models: Models, data: Data) -> None:
    """Raise ValueError if a token of the data has no row in a model's embedding."""
    rows = [s.input_ids.tolist() for s in sequences_of(data.examples + data.eval_examples)]
    rows += [prompt.input_ids for prompt in data.prompts + data.eval_prompts]
    highest = max((max(ids, default=0) for ids in rows), default=0)
    for model in (models.policy, models.other):
        if model is not None:
            check_ids(model.causal_lm(), highest, models.tokenizer)
