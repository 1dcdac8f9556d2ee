"""The record of a step's completions in samples.jsonl, with what training made of each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.common.batch import Batch
from posttrain.rewards.score import parts_of, verdict_of
from posttrain.rollout.sampler import Rollout

HALF = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no whole character yet."""
LONGEST = 8  # tokens of one character at most: a token of damaged bytes is shown after that many
PER_TOKEN = {
    "sampler_logprobs": "sampler_logprobs",
    "old_logprobs": "old_logprobs",
    "ref_logprobs": "ref_logprobs",
    "old_values": "values",
    "returns": "returns",
    "advantages": "advantages",
}
"""Values of a batch for each token, and their names in the record."""


@dataclass
class Recorder:
    """Writes a step's completions, once their advantages are known."""

    write: Callable[[dict[str, Any]], None]
    tokenizer: Any
    num_prompts: int
    """Prompts of each step, over all ranks, whose completions are recorded token by token."""
    texts: dict[tuple[int, ...], str] = field(default_factory=dict)

    def record(self, step: int, groups: Sequence[Any], batch: Batch) -> None:
        """Write every completion of the groups; `batch` is the step's after `prepare`.

        A completion that `prepare` has left out of the batch is recorded as not trained.
        """
        names = zip(batch.per_seq["group"].tolist(), batch.per_seq["member"].tolist())
        index = {(int(place), int(k)): i for i, (place, k) in enumerate(names)}
        members = [(group, k) for group in groups for k in range(len(group.rollouts))]
        shown = [
            (group.place, k)
            for group, k in members
            if group.place < self.num_prompts and (group.place, k) in index
        ]
        tokens = dict(zip(shown, token_values(batch, [index[name] for name in shown])))
        advantages, trained = summary(batch)
        for group, k in members:
            rollout, value = group.rollouts[k], group.scores[k]
            i = index.get((group.place, k))
            record = {
                "step": step,
                "kind": "rollout",
                "prompt": self.tokenizer.decode(rollout.prompt_ids),
                "completion": group.texts[k],
                "reward": value,
                "verdict": verdict_of(value),
                "rewards": parts_of(value),
                "finish_reason": rollout.finish_reason,
                "answer": group.prompt.row.get("answer"),
                "advantage": None if i is None else advantages[i],
                "trained": i is not None and trained[i],
                "num_tokens": len(rollout.response_ids),
            }
            if group.place < self.num_prompts:
                record["tokens"] = self._tokens(rollout, tokens.get((group.place, k)))
            self.write(record)

    def _tokens(self, rollout: Rollout, values: dict[str, list[float]] | None) -> dict[str, Any]:
        """Return a list for each quantity, over the completion's tokens with the stop token."""
        texts = self._pieces([*rollout.prompt_ids[-1:], *rollout.response_ids])
        if values is None:  # left out of the batch
            logprobs = [rounded(x) for x in rollout.logprobs]
            values = {"sampler_logprobs": logprobs, "mask": [0] * len(logprobs)}
        count = len(rollout.response_ids)
        shown = {name: values_[len(values_) - count :] for name, values_ in values.items()}
        return {"ids": rollout.response_ids, "texts": texts[len(rollout.prompt_ids[-1:]) :]} | shown

    def _pieces(self, ids: list[int]) -> list[str]:
        """Return the text that each token adds; a character of several tokens is its last one's."""
        pieces: list[str] = []
        start = done = 0
        for end in range(1, len(ids) + 1):
            before, now = self._decode(ids[start:done]), self._decode(ids[start:end])
            if now.endswith(HALF) and end < len(ids) and end - done < LONGEST:
                pieces.append("")
                continue
            pieces.append(now[len(before) :])
            start, done = done, end
        return pieces

    def _decode(self, ids: list[int]) -> str:
        # a tokenizer takes 20 us for a call, and the same few tokens come again and again
        if (text := self.texts.get(tuple(ids))) is None:
            if len(self.texts) > 200_000:
                self.texts.clear()
            text = self.texts[tuple(ids)] = str(self.tokenizer.decode(ids)) if ids else ""
        return text


def summary(batch: Batch) -> tuple[list[float], list[bool]]:
    """Return the mean advantage over the trained tokens of each sequence, and if it is trained."""
    if not batch.num_sequences:
        return [], []
    counts = batch.tokens_per_seq()
    means = batch.sum_per_seq(batch.per_token["advantages"]) / counts.clamp(min=1)
    active = batch.per_seq.get("active", counts).bool() & (counts > 0)
    return [rounded(x) for x in means.tolist()], active.tolist()


def token_values(batch: Batch, indices: list[int]) -> list[dict[str, list[float]]]:
    """Return the values of every token, prompt included, of the sequences at `indices`."""
    part = batch.select(indices)
    names = {name: shown for name, shown in PER_TOKEN.items() if name in part.per_token}
    columns: dict[str, list[float]] = {
        shown: [rounded(x) for x in part.per_token[name].tolist()] for name, shown in names.items()
    }
    columns["mask"] = [int(x) for x in part.loss_mask.tolist()]
    rows, start = [], 0
    for length in part.lengths:
        rows.append({name: x[start : start + length] for name, x in columns.items()})
        start += length
    return rows


def rounded(value: float) -> float:
    """Return a value to five digits, which keeps the file small."""
    return float(f"{value:.5g}")
