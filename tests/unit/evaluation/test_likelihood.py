"""Scores by likelihood: against a count by hand, and against transformers alone."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import test_render
import tiny
import torch
from conftest import shared

from posttrain.data.config import DataConfig
from posttrain.data.load import load_rows
from posttrain.data.render import make_renderer
from posttrain.data.sets import DATASETS
from posttrain.evaluation.likelihood import (
    LIKELIHOOD_TASKS,
    continuation,
    evaluate_likelihood,
    to_sequences,
    whole_text,
)
from posttrain.evaluation.scores.choices import bbq, crows_pairs, truthfulqa
from posttrain.evaluation.statistics import wilson
from posttrain.model.config import ModelConfig
from posttrain.model.load import load_policy, load_tokenizer

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def stories() -> Any:
    """Policy and renderer of a real pre-trained model."""
    name = str(shared("models/stories260k"))
    config = ModelConfig(name=name, dtype="float32", use_lora=False)
    policy = load_policy(config, name, torch.device("cpu"), 0)
    return policy, make_renderer(load_tokenizer(name))


def real_rows(name: str, every: int) -> Rows:
    path = str(shared(f"data/{name}"))
    return load_rows(DataConfig(name=name, split="test", path=path))[::every]


def run(stories: Any, name: str, rows: Rows, tokens: int = 2048) -> tuple[dict[str, Any], Rows]:
    task = LIKELIHOOD_TASKS[name]
    policy, renderer = stories
    sequences = to_sequences(renderer, rows, 512)
    return evaluate_likelihood(policy, task, rows, sequences, tokens)


# --- BBQ by hand ----------------------------------------------------------------------------------

# condition, polarity, target, label, chosen; the options are the target (0), the other (1) and
# unknown (2). What follows is what a reader counts: correct, and biased (None: not counted).
BBQ: list[tuple[str, str, int | None, int, int, bool, bool | None]] = [
    ("ambig", "neg", 0, 2, 0, False, True),
    ("ambig", "neg", 0, 2, 0, False, True),
    ("ambig", "neg", 0, 2, 1, False, False),
    ("ambig", "neg", 0, 2, 2, True, None),
    ("ambig", "neg", 0, 2, 2, True, None),
    ("ambig", "nonneg", 0, 2, 0, False, False),
    ("ambig", "nonneg", 0, 2, 1, False, True),
    ("ambig", "nonneg", 0, 2, 1, False, True),
    ("ambig", "nonneg", 0, 2, 2, True, None),
    ("ambig", "nonneg", None, 2, 1, False, None),
    ("disambig", "neg", 0, 0, 0, True, True),
    ("disambig", "neg", 0, 1, 0, False, True),
    ("disambig", "neg", 0, 1, 1, True, False),
    ("disambig", "neg", 0, 0, 2, False, None),
    ("disambig", "neg", 0, 1, 1, True, False),
    ("disambig", "nonneg", 0, 0, 0, True, False),
    ("disambig", "nonneg", 0, 1, 1, True, True),
    ("disambig", "nonneg", 0, 0, 1, False, True),
    ("disambig", "nonneg", 0, 1, 2, False, None),
    ("disambig", "nonneg", 0, 0, 1, False, True),
]


def test_bbq_equals_a_count_by_hand() -> None:
    rows = [
        {
            "prompt": "?",
            "choices": ["a", "b", "?"],
            "unknown": 2,
            "target": target,
            "label": label,
            "condition": condition,
            "polarity": polarity,
            "category": "Religion" if i % 2 else "Age",
        }
        for i, (condition, polarity, target, label, *_) in enumerate(BBQ)
    ]
    logprobs = [[-5.0 + 2.0 * (i == chosen) for i in range(3)] for *_, chosen, _, _ in BBQ]
    metrics, records = bbq(rows, logprobs)
    assert [(r["correct"], r["biased"]) for r in records] == [row[-2:] for row in BBQ]
    # ambiguous: 3 of 10 right; 6 answers that count, 4 of them biased: (1 - 0.3) (8 / 6 - 1)
    assert metrics["accuracy_ambiguous"] == 0.3
    assert metrics["accuracy_ambiguous_ci95"] == wilson(3, 10)
    assert metrics["bias_ambiguous"] == pytest.approx(0.7 / 3)
    # disambiguated: 5 of 10 right; 8 answers that count, 5 of them biased: 10 / 8 - 1
    assert metrics["accuracy_disambiguated"] == 0.5
    assert metrics["bias_disambiguated"] == 0.25
    assert metrics["without_target"] == 1
    age = metrics["by_category"]["Age"]
    assert set(metrics["by_category"]) == {"Age", "Religion"}
    assert (age["num_ambiguous"], age["num_disambiguated"]) == (5, 5)
    # Age, disambiguated: 4 of 5 right; 4 answers that count, 2 of them biased
    assert (age["accuracy_disambiguated"], age["bias_disambiguated"]) == (0.8, 0.0)


@pytest.mark.parametrize(("chosen", "bias"), [(0, 1.0), (1, -1.0), (2, math.nan)])
def test_the_ends_of_the_bias_score(chosen: int, bias: float) -> None:
    rows = [
        {
            "prompt": "?",
            "choices": ["a", "b", "?"],
            "unknown": 2,
            "target": 0,
            "label": 2,
            "condition": "ambig",
            "polarity": "neg",
            "category": "Age",
        }
    ] * 4
    metrics, _ = bbq(rows, [[float(i == chosen) for i in range(3)]] * 4)
    assert metrics["bias_ambiguous"] == pytest.approx(bias, nan_ok=True)
    assert math.isnan(metrics["accuracy_disambiguated"])


# --- CrowS-Pairs and TruthfulQA by hand -----------------------------------------------------------


def test_crows_pairs_equals_a_count_by_hand() -> None:
    # the more stereotypical sentence is likelier (+), less likely (-) or neither (0)
    stereo, antistereo = "++-+-0+-++-+-+", "-+--+-"
    signs = stereo + antistereo
    rows = [
        {
            "choices": ["a", "b"],
            "direction": "stereo" if i < 14 else "antistereo",
            "bias_type": "age" if i % 5 == 0 else "gender",
        }
        for i in range(20)
    ]
    gap = {"+": 0.5, "-": -0.25, "0": 0.0}
    metrics, records = crows_pairs(rows, [[-8.0 + gap[s], -8.0] for s in signs])
    assert metrics["stereotype_preferred"] == 10 / 20
    assert metrics["stereotype_preferred_ci95"] == wilson(10, 20)
    assert metrics["num_ties"] == 1
    assert metrics["mean_difference"] == pytest.approx((10 * 0.5 - 9 * 0.25) / 20)
    directions = metrics["by_direction"]
    assert directions["stereo"]["stereotype_preferred"] == 8 / 14
    assert directions["antistereo"]["stereotype_preferred"] == 2 / 6
    # ages are rows 0, 5, 10 and 15: + 0 - +
    assert metrics["by_bias_type"]["age"]["stereotype_preferred"] == 2 / 4
    assert metrics["by_bias_type"]["gender"]["num_pairs"] == 16
    assert [r["prefers_stereotype"] for r in records] == [s == "+" for s in signs]


def test_mc1_and_mc2_by_hand() -> None:
    labels = {"mc1_labels": [1, None, 0, 0], "mc2_labels": [1, 1, 0, 0]}
    row = {"prompt": "Q: ?\nA:", "choices": ["a", "b", "c", "d"], **labels}
    shares = [
        [0.4, 0.1, 0.3, 0.2],  # the true answer is likeliest; 0.5 of 1
        [0.2, 0.05, 0.2, 0.55],  # it is as likely as a false one, and another is likelier
        [0.1, 0.6, 0.2, 0.1],  # the likeliest is true, but no answer of MC1
        [0.3, 0.2, 0.3, 0.2],  # no likelier than the likeliest false one
    ]
    logprobs = [[math.log(p) for p in values] for values in shares]
    metrics, records = truthfulqa([row] * 4, logprobs)
    assert [r["mc1"] for r in records] == [True, False, False, False]
    assert [r["mc2"] for r in records] == pytest.approx([0.5, 0.25, 0.7, 0.5])
    assert [r["chosen"] for r in records] == [0, 3, 2, 0]
    assert metrics["mc1"] == pytest.approx(1 / 4)
    assert metrics["mc1_ci95"] == wilson(1, 4)
    assert metrics["mc2"] == pytest.approx((0.5 + 0.25 + 0.7 + 0.5) / 4)
    # probabilities far below what a float holds
    two = row | {"choices": ["a", "b"], "mc1_labels": [1, 0], "mc2_labels": [1, 0]}
    far, _ = truthfulqa([two], [[-2000.0, -2001.0]])
    assert far["mc2"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert truthfulqa([two], [[-1.0, -2000.0]])[0]["mc2"] == 1


# --- likelihoods ----------------------------------------------------------------------------------


def test_crows_pairs_of_a_real_model_are_those_of_transformers(stories: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = shared("models/stories260k")
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(name)

    @torch.no_grad()
    def direct(sentence: str) -> float:
        ids = tokenizer(sentence, return_tensors="pt").input_ids
        assert ids[0, 0] == tokenizer.bos_token_id
        logp = model(ids).logits[0, :-1].double().log_softmax(-1)
        return float(logp.gather(1, ids[0, 1:, None]).sum())

    rows = real_rows("crows_pairs", 37)
    assert len(rows) > 36
    metrics, records = run(stories, "crows_pairs", rows)
    expected = [[direct(sentence) for sentence in row["choices"]] for row in rows]
    for record, values in zip(records, expected, strict=True):
        assert record["logprobs"] == pytest.approx(values, abs=2e-3)
    preferred = sum(more > less for more, less in expected)
    assert metrics["stereotype_preferred"] == preferred / len(rows)


@pytest.mark.parametrize(("name", "every"), [("crows_pairs", 150), ("bbq", 700)])
def test_a_likelihood_does_not_depend_on_its_batch(stories: Any, name: str, every: int) -> None:
    rows = real_rows(name, every)
    whole, one = run(stories, name, rows, 4096)
    _, apart = run(stories, name, rows, 1)
    _, turned = run(stories, name, rows[::-1], 700)
    for a, b, c in zip(one, apart, turned[::-1], strict=True):
        assert b["logprobs"] == pytest.approx(a["logprobs"], abs=1e-3)
        assert c["logprobs"] == pytest.approx(a["logprobs"], abs=1e-3)
        assert all(value < 0 for value in a["logprobs"])
    alone, _ = run(stories, name, rows[:1])
    assert alone["prompt_hash"] != whole["prompt_hash"]
    json.dumps([whole, one])


@pytest.mark.parametrize("name", list(LIKELIHOOD_TASKS))
def test_every_task_runs_on_its_data(stories: Any, name: str) -> None:
    assert LIKELIHOOD_TASKS[name].data["name"] in DATASETS
    rows = real_rows(name, 333)  # an odd stride: both kinds of contexts of BBQ
    metrics, records = run(stories, name, rows)
    assert metrics["num_rows"] == len(rows) == len(records)
    assert metrics["dropped_rows"] == 0
    assert [record["row"] for record in records] == list(range(1, len(rows) + 1))
    shares = [key for key in metrics if f"{key}_ci95" in metrics]
    assert shares
    for key in shares:
        low, high = metrics[f"{key}_ci95"]
        assert 0 <= low <= metrics[key] <= high <= 1


def test_a_row_that_is_too_long_is_dropped_and_counted(stories: Any) -> None:
    rows = [{"choices": ["a cat", "a dog"], "direction": "stereo", "bias_type": "age"}] * 2
    long = rows[0] | {"choices": ["a cat " * 600, "a dog"]}
    metrics, records = run(stories, "crows_pairs", [rows[0], long, rows[1]])
    assert (metrics["num_rows"], metrics["dropped_rows"]) == (2, 1)
    assert [record["row"] for record in records] == [1, 3]
    with pytest.raises(ValueError, match=r"none of the 1 rows fits into the model's 512"):
        run(stories, "crows_pairs", [long])
    with pytest.raises(ValueError, match=r"^row 1: the tokenizer makes no token of ''"):
        run(stories, "crows_pairs", [rows[0] | {"choices": ["", "a dog"]}])


def test_every_rank_needs_a_row(stories: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"choices": ["a cat", "a dog"], "direction": "stereo", "bias_type": "age"}
    monkeypatch.setattr("posttrain.common.distributed.num_ranks", lambda: 2)
    with pytest.raises(ValueError, match="1 rows are fewer than there are ranks"):
        run(stories, "crows_pairs", [row])


def test_the_policy_is_left_in_its_mode() -> None:
    policy = tiny.models().policy
    renderer = test_render.renderer("plain")
    policy.causal_lm().resize_token_embeddings(len(renderer.tokenizer))
    row = {"choices": ["a", "b"], "direction": "stereo", "bias_type": "age"}
    policy.train()
    sequences = to_sequences(renderer, [row], 100)
    evaluate_likelihood(policy, LIKELIHOOD_TASKS["crows_pairs"], [row], sequences, 100)
    assert policy.training


# --- texts to ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(test_render.TOKENIZERS))
def test_a_continuation_is_that_of_training_without_its_stop_token(name: str) -> None:
    renderer = test_render.renderer(name)
    sequence = continuation(renderer, "Q: 1+1?\nA:", "two")
    scored = sequence.input_ids[sequence.loss_mask].tolist()
    assert renderer.tokenizer.decode(scored) == ("two" if renderer.chat else " two")
    prompt = renderer.prompt_ids({"prompt": "Q: 1+1?\nA:"})
    assert sequence.input_ids.tolist() == prompt + scored
    assert not set(scored) & set(renderer.stop_token_ids)


def test_no_second_space_where_the_tokenizer_writes_one(stories: Any) -> None:
    _, renderer = stories
    sequence = continuation(renderer, "Lily said:", "hello there")
    whole = renderer.tokenizer("Lily said: hello there")["input_ids"]
    assert renderer.tokenizer.decode(sequence.input_ids) == renderer.tokenizer.decode(whole)


@pytest.mark.parametrize("name", list(test_render.TOKENIZERS))
def test_every_token_of_a_whole_text_is_scored(name: str) -> None:
    renderer = test_render.renderer(name)
    sequence = whole_text(renderer, "two words")
    first, *rest = sequence.input_ids.tolist()
    assert sequence.loss_mask.tolist() == [False] + [True] * len(rest)
    assert renderer.tokenizer.decode(rest) == "two words"
    bos = renderer.tokenizer.bos_token_id
    assert first == (renderer.turn_end if bos is None else bos)
