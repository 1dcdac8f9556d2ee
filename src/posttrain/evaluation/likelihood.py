"""Tasks that compare the likelihoods of given texts; nothing is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.common import distributed, mesh
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
    """A task that asks which of a row's texts the model finds likelier."""

    data: dict[str, Any]
    """Data section whose rows have `choices`, a list of texts, and optionally a `prompt`."""
    evaluate: Callable[[list[Row], list[list[float]]], tuple[dict[str, Any], list[dict[str, Any]]]]
    """(rows, log-prob of each choice of each row) -> (figures, a record of each row)."""


LIKELIHOOD_TASKS: dict[str, LikelihoodTask] = {
    "bbq": LikelihoodTask({"name": "bbq", "split": "test"}, bbq),
    "crows_pairs": LikelihoodTask({"name": "crows_pairs", "split": "test"}, crows_pairs),
    "truthfulqa": LikelihoodTask({"name": "truthfulqa", "split": "test"}, truthfulqa),
}


def to_sequences(renderer: Renderer, rows: list[Row], most: int) -> dict[int, list[Sequence]]:
    """Return the sequences of a row's choices, by row index; rows that do not fit are left out.

    A row does not fit if one of its sequences has more than `most` tokens. Raises ValueError if
    fewer rows remain than there are ranks.
    """
    sequences = {i: _sequences(renderer, row, i + 1) for i, row in enumerate(rows)}
    kept = {i: choices for i, choices in sequences.items() if max(map(len, choices)) <= most}
    if not kept:
        raise ValueError(f"none of the {len(rows)} rows fits into the model's {most} positions")
    if len(kept) < distributed.num_ranks():
        raise ValueError(f"{len(kept)} rows are fewer than there are ranks: start fewer ranks")
    return kept


def prompt_hash(sequences: Iterable[list[Sequence]]) -> str:
    """Return a hash of the token ids of all sequences."""
    ids = [[sequence.input_ids.tolist() for sequence in choices] for choices in sequences]
    return short_hash(ids)


def evaluate_likelihood(
    policy: LanguageModel,
    task: LikelihoodTask,
    rows: list[Row],
    sequences: dict[int, list[Sequence]],
    micro_batch_tokens: int,
) -> tuple[Figures, list[dict[str, Any]]]:
    """Return the task's figures over those of `rows` that have sequences, and a record of each.

    num_rows, dropped_rows and prompt_hash are added to the figures. Rows are split over the ranks;
    each returns the records of all. A collective.
    """
    kept = list(sequences)
    mine = kept[mesh.share() :: mesh.num_shares()]
    local = dict(zip(mine, _sums(policy, [sequences[i] for i in mine], micro_batch_tokens)))
    logprobs = {i: sums for part in mesh.gather_shares(local) for i, sums in part.items()}
    metrics, records = task.evaluate([rows[i] for i in kept], [logprobs[i] for i in kept])
    metrics |= {
        "num_rows": len(kept),
        "dropped_rows": len(rows) - len(kept),
        "prompt_hash": prompt_hash(sequences.values()),
    }
    whole = [
        {"kind": "eval", "row": i + 1, **record, "logprobs": logprobs[i]}
        for i, record in zip(kept, records)
    ]
    return metrics, whole


def continuation(renderer: Renderer, prompt: str, text: str) -> Sequence:
    """Return prompt and text as in training, without the stop token that training adds.

    The score is how likely the text is, not how likely it is to end there. Without a chat template
    a space is put between the two.
    """
    joint = "" if renderer.chat else " "
    row = {"prompt": prompt, "completion": joint + text}
    sequence = renderer.training_sequence(row)
    stop = int(sequence.loss_mask.nonzero()[-1])
    assert int(sequence.input_ids[stop]) in renderer.stop_token_ids
    return Sequence(sequence.input_ids[:stop], sequence.loss_mask[:stop])


def whole_text(renderer: Renderer, text: str) -> Sequence:
    """Return a text on its own, outside any chat template, with every token of it scored.

    The first token needs one before it: the tokenizer's BOS, or the stop token if it has none,
    since that is what precedes a text in pre-training.
    """
    *ids, _ = renderer.text_ids(text)
    bos = renderer.tokenizer.bos_token_id
    start = renderer.turn_end if bos is None else bos
    if not ids or ids[0] != start:
        ids = [start, *ids]
    return Sequence(torch.tensor(ids), torch.arange(len(ids)) > 0)


def _sequences(renderer: Renderer, row: Row, number: int) -> list[Sequence]:
    sequences = []
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
        sequences.append(sequence)
    return sequences


def _sums(
    policy: LanguageModel, sequences: list[list[Sequence]], micro_batch_tokens: int
) -> list[list[float]]:
    """Return the summed log-probs under the loss mask, for each sequence of each row."""
    batch = pack([sequence for row in sequences for sequence in row])
    batch = batch.to(policy.device)
    models = Models(policy, tokenizer=None, stop_token_ids=[])
    logprobs = models.logprobs(batch, micro_batch_tokens)
    sums = iter(batch.sum_per_seq(logprobs.double()).tolist())
    return [[next(sums) for _ in row] for row in sequences]
