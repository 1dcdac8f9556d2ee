"""Every architecture of docs/architectures.md: transformers' loss, gradients, text and scores.

One representative of each mechanism runs always, the others with the slow tests.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import architectures
import pytest
import tiny
import torch
from architectures import ARCHITECTURES, STOP, causal_lm, policy, rows, verdict

from posttrain.common.batch import Sequence, pack, sequences_of
from posttrain.model.config import ModelConfig
from posttrain.model.forward import forward
from posttrain.model.load import prepare_policy
from posttrain.model.models import Models
from posttrain.model.trial import check_saving
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
FAST = {
    "GPT-2": "positions are learnt, layers are Conv1D",
    "GPT-J": "calls no attention function, so prompts cannot be shared",
    "Phi-3 (longrope)": "the rotation depends on the length",
    "Llama (dynamic rope)": "the rotation remembers longer rows",
    "Llama 4 (text)": "chunks, and a prefix that names no module",
    "Mixtral": "experts are saved under other names",
    "PhiMoE": "a router that is an nn.Linear",
    "Gemma 2": "soft cap and windows",
    "gpt-oss": "sinks",
    "DeepSeek-V3": "values narrower than keys, a persistent buffer",
    "Cohere": "logit scale",
    "Doge": "hands its own mask to attention",
    "Falcon (alibi)": "alibi",
    "Mamba": "a state instead of attention",
}
EVERY = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow, id=name)
    for name in ARCHITECTURES
]
REFUSED = {("Falcon", True)}
"""Layers that read their dropout from the config, in the mode that recomputation needs."""
every = pytest.mark.parametrize("name", EVERY)


def table() -> dict[str, list[str]]:
    """The cells of each architecture's row on the page."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells if row[0] in ARCHITECTURES}


@every
def test_is_as_in_transformers_and_as_the_page_says(name):
    """Log-probs, gradients, greedy text, scores, and a checkpoint that can be read back."""
    measured = verdict(name)
    kind, trains, samples, packed, reward = table()[name][:5]
    assert (kind, trains) == (f"`{measured.model_type}`", "yes")
    assert (samples, packed, reward) == (measured.samples, measured.packed, measured.reward_model)


def test_the_page_has_every_architecture_and_counts_them():
    assert list(table()) == list(ARCHITECTURES)
    count = re.search(r"(\d+) of (\d+) architectures", PAGE.read_text())
    assert count is not None
    assert count[1] == count[2] == str(len(ARCHITECTURES))


@every
def test_a_new_adapter_starts_as_the_base_and_trains(name):
    adapted = policy(name, use_lora=True)
    batch = pack(rows())
    out = forward(adapted, batch)
    with torch.no_grad():
        torch.testing.assert_close(
            out.logprobs, forward(policy(name), batch).logprobs, rtol=0, atol=1e-4
        )
    out.logprobs.sum().backward()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in n for n in trained)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    check_saving(architectures.models_of(adapted))


@every
def test_preference_and_rl_start_where_they_should(name):
    """DPO at ln 2, and GRPO at a ratio of 1, with the log-probs of the sampler."""
    model = policy(name)
    models = Models(model, tokenizer=None, stop_token_ids=[STOP])
    trainer = tiny.trainer_of("dpo", models)
    batch = tiny.prepared(trainer, pack(sequences_of(tiny.random_pairs())))
    assert abs(trainer.update(batch)["loss"][0] - math.log(2)) < 1e-5
    prompts = [[5, 9, 7], [5, 9, 7], rows()[4].input_ids[:30].tolist()]
    sampled = NativeSampler(model, 2).generate(prompts, SamplingParams(8, (STOP,)), [1, 2, 3])
    texts = [torch.tensor(r.prompt_ids + r.response_ids) for r in sampled]
    masks = [torch.arange(len(t)) >= len(r.prompt_ids) for t, r in zip(texts, sampled)]
    batch = pack([Sequence(t, mask) for t, mask in zip(texts, masks)])
    ours = models.logprobs(batch, 4096)[batch.loss_mask]
    theirs = torch.tensor([x for rollout in sampled for x in rollout.logprobs])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "Falcon", "PhiMoE"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_off_where_it_is_turned_off(name, checkpointing):
    """In training mode too, layers that read it from their config included."""
    from posttrain.model.dropout import noises, turn_off

    config = ModelConfig(name="tiny", gradient_checkpointing=checkpointing, use_lora=False)
    model = causal_lm(name, dropout=True)
    if name == "Falcon":
        model.config.hidden_dropout = model.config.attention_dropout = 0.1
    noisy = prepare_policy(model, config, tiny.CPU, torch.float32, 0)
    assert noises(noisy)
    batch = pack(rows())
    with torch.no_grad():
        quiet = forward(noisy.eval(), batch).logprobs
        on = forward(noisy.train(), batch).logprobs
        assert (quiet - on).abs().max() > 1e-3, "dropout did not apply: nothing is tested"
    if (name, checkpointing) in REFUSED:
        with pytest.raises(ValueError, match="gradient_checkpointing"):
            turn_off(noisy)
        return
    turn_off(noisy)
    off = forward(noisy.train(), batch).logprobs
    torch.testing.assert_close(off, quiet, rtol=0, atol=1e-6)
    off.sum().backward()


def test_packing_does_not_change_rows_of_other_lengths():
    """A batch with a long row gives every row what it has alone, whatever the micro-batch."""
    model = policy("Phi-3 (longrope)").eval()
    given = rows()
    with torch.no_grad():
        packed = forward(model, pack(given)).logprobs
        alone = torch.cat([forward(model, pack([row])).logprobs for row in given])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    assert model.packs([48, 48])
    assert not model.packs([48, 49])


def test_sequences_one_at_a_time_cannot_be_sharded():
    from posttrain.training.sharding import shard

    with pytest.raises(ValueError, match=r"MambaForCausalLM .*distributed\.strategy: ddp"):
        shard(policy("Mamba"))


def test_a_short_window_that_sees_later_tokens_is_refused(monkeypatch):
    """transformers' Doge chooses the keys of its window among later ones as well."""
    monkeypatch.setitem(ARCHITECTURES, "Doge", ("doge", {"keep_window_size": 8}))
    with pytest.raises(ValueError, match=r"DogeForCausalLM .* is not a causal language model"):
        policy("Doge")


def test_a_model_that_sees_later_tokens_is_refused():
    model = causal_lm("Llama 1, 2")
    plain = type(model).forward

    def sees_all(self, *args, **kwargs):
        out = plain(self, *args, **kwargs)
        out.logits = out.logits + out.logits.mean(1, keepdim=True)
        return out

    model.forward = sees_all.__get__(model)
    with pytest.raises(ValueError, match="is not a causal language model"):
        prepare_policy(model, ModelConfig(name="tiny", use_lora=False), tiny.CPU, torch.float32, 0)
