"""Tasks that sample nothing: which of the given texts does the model find likelier?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.common.batch import Sequence, pack
from posttrain.common.files import short_hash
from posttrain.data.render import Renderer
from posttrain.data.rows import Row
from posttrain.evaluation.scores.choices import bbq, crows_pairs, truthfulqa
from posttrain.evaluation.statistics import Figures
from posttrain.model.language_model import LanguageModel
from posttrain.model.models import Models


@dataclass(frozen=True)
class LikelihoodTask:
    data: dict[str, Any]
    """A data section whose rows have `choices`, a list of texts, and perhaps a `prompt`."""
    evaluate: Callable[[list[Row], list[list[float]]], tuple[dict[str, Any], list[dict[str, Any]]]]
    """Rows, and the log-prob of each choice of each row, to metrics and a record of each row."""


LIKELIHOOD_TASKS: dict[str, LikelihoodTask] = {
    "bbq": LikelihoodTask({"name": "bbq", "split": "test"}, bbq),
    "crows_pairs": LikelihoodTask({"name": "crows_pairs", "split": "test"}, crows_pairs),
    "truthfulqa": LikelihoodTask({"name": "truthfulqa", "split": "test"}, truthfulqa),
}


def to_sequences(renderer: Renderer, rows: list[Row], most: int) -> dict[int, list[Sequence]]:
    """A sequence for each choice of a row, by the row's place; without the rows of which one has
    more than `most` tokens."""
    sequences = {i: _sequences(renderer, row, i + 1) for i, row in enumerate(rows)}
    kept = {i: found for i, found in sequences.items() if max(map(len, found)) <= most}
    if not kept:
        raise ValueError(f"none of the {len(rows)} rows fits into the model's {most} positions")
    if len(kept) < distributed.num_ranks():
        raise ValueError(f"{len(kept)} rows are fewer than there are ranks: start fewer")
    return kept


def prompt_hash(sequences: Iterable[list[Sequence]]) -> str:
    """Of all ids."""
    ids = [[sequence.input_ids.tolist() for sequence in found] for found in sequences]
    return short_hash(ids)


def evaluate_likelihood(
    policy: LanguageModel,
    task: LikelihoodTask,
    rows: list[Row],
    sequences: dict[int, list[Sequence]],
    micro_batch_tokens: int,
) -> tuple[Figures, list[dict[str, Any]]]:
    """Return the task's figures over those of `rows` that have sequences, with num_rows,
    dropped_rows and prompt_hash, and a record of each row.

    Rows are shared out over the ranks; each returns the records of all. A collective.
    """
    kept = list(sequences)
    mine = kept[distributed.rank() :: distributed.num_ranks()]
    own = dict(zip(mine, _sums(policy, [sequences[i] for i in mine], micro_batch_tokens)))
    logprobs = {i: sums for part in distributed.all_gather(own) for i, sums in part.items()}
    metrics, records = task.evaluate([rows[i] for i in kept], [logprobs[i] for i in kept])
    metrics |= {
        "num_rows": len(kept),
        "dropped_rows": len(rows) - len(kept),
        "prompt_hash": prompt_hash(sequences.values()),
    }
    whole = [
        {"kind": "eval", "row": i + 1, **found, "logprobs": logprobs[i]}
        for i, found in zip(kept, records)
    ]
    return metrics, whole


def continuation(renderer: Renderer, prompt: str, text: str) -> Sequence:
    """Prompt and text as in training, without the stop token that training adds: what is asked for
    is how likely the text is, not that nothing follows it.

    Without a chat template a space stands between the two, unless the tokenizer begins every text
    with one.
    """
    joint = "" if renderer.chat or _begins_with_space(renderer) else " "
    row = {"prompt": prompt, "completion": joint + text}
    sequence = renderer.training_sequence(row)
    stop = int(sequence.loss_mask.nonzero()[-1])
    assert int(sequence.input_ids[stop]) in renderer.stop_token_ids
    return Sequence(sequence.input_ids[:stop], sequence.loss_mask[:stop])


def whole_text(renderer: Renderer, text: str) -> Sequence:
    """A text on its own, every token of it scored, outside of any chat template.

    The first token needs one before it: the tokenizer's BOS, or the stop token where it has none,
    since that is what stands before a text in pre-training.
    """
    *ids, _ = renderer.text_ids(text)
    bos = renderer.tokenizer.bos_token_id
    start = renderer.turn_end if bos is None else bos
    if not ids or ids[0] != start:
        ids = [start, *ids]
    return Sequence(torch.tensor(ids), torch.arange(len(ids)) > 0)


def _begins_with_space(renderer: Renderer) -> bool:
    """Whether the tokenizer writes "x" as it does in the middle of a text after a space."""
    tokenizer = renderer.tokenizer
    first = tokenizer("x", add_special_tokens=False)["input_ids"][0]
    return str(tokenizer.convert_ids_to_tokens(first)).startswith(
        ("\N{LOWER ONE EIGHTH BLOCK}", "Ġ")
    )


def _sequences(renderer: Renderer, row: Row, number: int) -> list[Sequence]:
    found = []
    for choice in row["choices"]:
        try:
            if "prompt" in row:
                sequence = continuation(renderer, row["prompt"], choice)
            else:
                sequence = whole_text(renderer, choice)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        if not sequence.loss_mask.any():
            raise ValueError(f"row {number}: the tokenizer makes no token of {choice!r}")
        found.append(sequence)
    return found


def _sums(
    policy: LanguageModel, sequences: list[list[Sequence]], micro_batch_tokens: int
) -> list[list[float]]:
    """The sum of the log-probs of the tokens under the loss mask, for each sequence of each row."""
    batch = pack([sequence for row in sequences for sequence in row])
    batch = batch.to(next(policy.parameters()).device)
    models = Models(policy, tokenizer=None, stop_token_ids=[])
    logprobs = models.logprobs(batch, micro_batch_tokens)
    sums = iter(batch.sum_per_seq(logprobs.double()).tolist())
    return [[next(sums) for _ in row] for row in sequences]
