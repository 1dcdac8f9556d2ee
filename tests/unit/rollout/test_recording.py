"""samples.jsonl says of every completion what the gradient was made of."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import shared
from tiny import models, raw_batch, run_config, trainer_of
from transformers import AutoTokenizer

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import algorithm_named
from posttrain.common.batch import pack
from posttrain.data.kinds.prompt import Prompt
from posttrain.rollout.recording import Recorder
from posttrain.rollout.sampler import Rollout
from posttrain.rollout.source import Group, to_sequence
from posttrain.runs.config import parse_config
from posttrain.runs.train import train

LOGPROBS = [-0.5, -0.25, -0.125]


def groups_of(tokenizer: Any, num_prompts: int = 2, size: int = 2) -> list[Group]:
    groups = []
    for place in range(num_prompts):
        rollouts = [Rollout([7, 8], [9, 10 + k, 3], LOGPROBS, "stop", 0) for k in range(size)]
        texts = [f"{place} {k}" for k in range(size)]
        groups.append(Group(place, Prompt([7, 8], {}), rollouts, texts, [1.0, 0.0]))
    return groups


def batch_of(groups: list[Group], left_out: tuple[int, int] | None = None) -> Any:
    members = [(g.place, k, r) for g in groups for k, r in enumerate(g.rollouts)]
    kept = [(place, k, r) for place, k, r in members if (place, k) != left_out]
    batch = pack([to_sequence(r, float(k), place, k, 8) for place, k, r in kept])
    values = torch.cat([torch.tensor([0.0, 0.0, k, k, k + 0.3]) for _, k, _ in kept])
    batch.per_token["advantages"] = values
    return batch


def recorded(groups: list[Group], batch: Any, num_prompts: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(f"<{i}>" for i in ids))
    Recorder(rows.append, tokenizer, num_prompts).record(5, groups, batch)
    return json.loads(json.dumps(rows))


def test_each_token_has_its_values() -> None:
    groups = groups_of(None)
    rows = recorded(groups, batch_of(groups), num_prompts=1)
    assert [row["completion"] for row in rows] == ["0 0", "0 1", "1 0", "1 1"]
    assert ["tokens" in row for row in rows] == [True, True, False, False]
    assert [row["advantage"] for row in rows] == pytest.approx([0.1, 1.1, 0.1, 1.1])
    assert rows[1]["tokens"] == {
        "ids": [9, 11, 3],
        "texts": ["<9>", "<11>", "<3>"],
        "sampler_logprobs": LOGPROBS,
        "advantages": [1.0, 1.0, 1.3],
        "mask": [1, 1, 1],
    }


def test_a_completion_that_is_left_out_is_not_trained() -> None:
    groups = groups_of(None)
    rows = recorded(groups, batch_of(groups, left_out=(0, 1)), num_prompts=2)
    assert [row["trained"] for row in rows] == [True, False, True, True]
    assert rows[1]["advantage"] is None
    assert rows[1]["tokens"]["mask"] == [0, 0, 0]
    assert rows[1]["tokens"]["sampler_logprobs"] == LOGPROBS
    assert rows[3]["tokens"]["advantages"] == [1.0, 1.0, 1.3], "the values are not shifted"


def test_a_completion_without_tokens_has_no_values() -> None:
    recorder = Recorder(print, SimpleNamespace(decode=str), 1)
    found = recorder._tokens(Rollout([7, 8], [], [], "length", 0), {"advantages": [0.0, 0.0]})
    assert found == {"ids": [], "texts": [], "advantages": []}


def test_the_values_are_those_of_the_batch_whatever_the_method() -> None:
    """Every method with advantages, from its own `prepare`."""
    for method in sorted(name for name in ALGORITHMS if algorithm_named(name).online):
        trainer = trainer_of(method, models())
        batch = raw_batch(trainer.algorithm, trainer.models, trainer.config)
        rewards = batch.per_seq["rewards"].tolist()
        group = batch.per_seq["group"].long().tolist()
        prepared = trainer.algorithm.prepare(batch, trainer.models, trainer.config)
        groups: dict[int, Group] = {}
        start = 0
        for i, length in enumerate(batch.lengths):
            ids = batch.input_ids[start : start + length].tolist()
            mask = batch.loss_mask[start : start + length].tolist()
            first = mask.index(True)
            logprobs = batch.per_token["sampler_logprobs"][start + first : start + length].tolist()
            made = groups.setdefault(group[i], Group(group[i], Prompt(ids[:first], {})))
            made.rollouts.append(Rollout(ids[:first], ids[first:], logprobs, "stop", 0))
            made.texts.append("")
            made.scores.append(rewards[i])
            start += length
        rows = recorded(list(groups.values()), prepared, num_prompts=99)
        found = [x for row in rows for x in row["tokens"]["advantages"]]
        expected = prepared.per_token["advantages"][prepared.loss_mask].tolist()
        assert found == pytest.approx(expected, rel=1e-4), method
        assert all(len(x) == row["num_tokens"] for row in rows for x in row["tokens"].values())


@pytest.mark.parametrize("text", ["naïve 漢字 🙂!", "  two  spaces\n\ttab", "", "é", "ends in 漢"])
def test_pieces_join_to_the_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared("models/stories260k"))
    ids = tokenizer.encode(f"Once{text}", add_special_tokens=False)
    pieces = Recorder(print, tokenizer, 1)._pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_run_records_as_many_prompts_as_asked(tmp_path: Any) -> None:
    recipe = run_config(tmp_path, "grpo")
    recipe["rollout"]["record_prompts"] = 1
    folder = train(parse_config(recipe, "recipe"))
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "rollout"]
    assert {row["step"] for row in rows} == set(range(1, max(r["step"] for r in rows) + 1))
    size = recipe["rollout"]["group_size"]
    for step in {row["step"] for row in rows}:
        with_tokens = [row for row in rows if row["step"] == step and "tokens" in row]
        assert len(with_tokens) == size
        assert len({row["prompt"] for row in with_tokens}) == 1
    assert '"sampler_logprobs"' not in (folder / "report.html").read_text()
