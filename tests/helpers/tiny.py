"""Tiny random models, batches and trainers that the tests share."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from posttrain.algorithms.base import Algorithm, algorithm_named
from posttrain.common.batch import Batch, Example, Sequence, pack, sequences_of
from posttrain.model.config import ModelConfig
from posttrain.model.heads import add_scoring_head, add_value_head, score_label_tokens
from posttrain.model.load import prepare_policy
from posttrain.model.models import Models
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams
from posttrain.rollout.source import to_sequence
from posttrain.training.trainer import Trainer

VOCAB = 61
STOP = 3
CPU = torch.device("cpu")


def causal_lm(kind: str = "qwen2", seed: int = 0, **changes: Any) -> Any:
    """Two layers of width 32 with grouped-query attention, weights large enough to matter."""
    torch.manual_seed(seed)
    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[kind]
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": kind == "qwen2",
        "eos_token_id": STOP,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    return model_class(config_class(**(shape | changes)))


def model_config(name: str, **keys: Any) -> ModelConfig:
    """A model section that trains all weights unless the keys name an adapter."""
    full = {} if keys.keys() & {"adapter", "use_lora"} else {"adapter": "none"}
    return ModelConfig.model_validate({"name": name, **full, **keys})


def models(kind: str = "qwen2", seed: int = 0, **model_keys: Any) -> Models:
    config = model_config("tiny", **model_keys)
    policy = prepare_policy(causal_lm(kind, seed), config, CPU, torch.float32, seed)
    return Models(policy, tokenizer=None, stop_token_ids=[STOP])


def random_sequences(n: int = 7, seed: int = 0) -> list[Sequence]:
    """Ragged lengths, each with a prompt that is not trained on."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        length = int(torch.randint(4, 20, (1,), generator=generator))
        prompt = int(torch.randint(1, length - 1, (1,), generator=generator))
        ids = torch.randint(4, VOCAB, (length,), generator=generator)
        rows.append(Sequence(ids, torch.arange(length) >= prompt))
    return rows


def rollout_sequences(policy_models: Models, groups: int = 3, size: int = 4) -> list[Sequence]:
    """Completions sampled from the policy, with random rewards; the last group all alike."""
    sampler = NativeSampler(policy_models.policy, max_num_seqs=64)
    prompts = [[4 + g, 9, 5 + 2 * g] for g in range(groups) for _ in range(size)]
    params = SamplingParams(max_new_tokens=12, stop_token_ids=(STOP,))
    rollouts = sampler.generate(prompts, params, list(range(len(prompts))))
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i, rollout in enumerate(rollouts):
        alike = i // size == groups - 1
        reward = 1.0 if alike else float(torch.rand((), generator=generator))
        rows.append(to_sequence(rollout, reward, i // size, i % size, params.max_new_tokens))
    return rows


def random_pairs(train_prompt: bool = False, score_only: bool = False, n: int = 5) -> list[Example]:
    """Chosen and rejected completions of ragged lengths, each pair after one prompt."""
    generator = torch.Generator().manual_seed(3)
    pairs = []
    for i in range(n):
        prompt = torch.randint(4, VOCAB, (2 + i,), generator=generator)
        sides = []
        for side in (0, 1):
            length = int(torch.randint(1, 9, (1,), generator=generator))
            ids = torch.cat([prompt, torch.randint(4, VOCAB, (length,), generator=generator)])
            own = torch.arange(len(ids)) >= len(prompt)
            mask = torch.arange(len(ids)) > 0 if train_prompt and side == 0 else own
            mask = mask & (not score_only)
            sides.append(Sequence(ids, mask, {"completion": own.float()}, {"margin": 0.1 * i}))
        pairs.append(tuple(sides))
    return pairs


def judged_rows(with_unrelated: bool) -> list[Example]:
    """Completions of either label, each with the completion of the row before it."""
    found = []
    rows = random_pairs(n=6)
    for i, (own, other) in enumerate(rows):
        for row in (own, other):
            row.per_token, row.per_seq = {}, {"label": float(i % 3 == 0)}
        found.append((own, other) if with_unrelated else (own,))
    return found


def labelled_steps(n: int = 7) -> list[Sequence]:
    """Rows of several steps, right and wrong; every other one ends in its last step."""
    rows = random_sequences(n)
    generator = torch.Generator().manual_seed(4)
    for i, row in enumerate(rows):
        ends = torch.rand(len(row), generator=generator) < 0.3
        row.loss_mask = ends & row.loss_mask
        row.loss_mask[-1 - i % 2] = True
        row.per_token["label"] = (torch.rand(len(row), generator=generator) < 0.5).float()
    return rows


def labelled_rows(config: Any, n: int = 7) -> list[Sequence]:
    """Texts with one of the labels, or with some of them."""
    rows = random_sequences(n)
    for i, row in enumerate(rows):
        row.loss_mask = torch.zeros(len(row), dtype=torch.bool)
        row.per_seq = {"label": float(i % len(config.names))}
        if config.multi_label:
            row.per_seq = {f"label/{k}": float((i >> k) & 1) for k in range(len(config.names))}
    return rows


def raw_batch(algorithm: Algorithm, policy_models: Models, config: Any = None) -> Batch:
    """What the method's source would hand over."""
    config = config or config_of(algorithm.config.model_fields["type"].default)
    if algorithm.online:
        return pack(rollout_sequences(policy_models))
    if algorithm.rows == "pair":
        return pack(sequences_of(random_pairs(**config.row_options)))
    if algorithm.rows == "unpaired":
        return pack(sequences_of(judged_rows(**config.row_options)))
    if algorithm.rows == "steps":
        return pack(labelled_steps())
    if algorithm.rows == "labelled":
        return pack(labelled_rows(config))
    return pack(random_sequences())


def config_of(name: str, **keys: Any) -> Any:
    if name == "classification":
        keys = {"labels": ["a", "b", "c"]} | keys
    return algorithm_named(name).config(max_steps=4, learning_rate=1e-2, **keys)


def add_label_head(policy: Any, config: Any) -> None:
    if config.mode == "head":
        add_scoring_head(policy, None, "labels", len(config.names))
    else:
        score_label_tokens(policy, list(range(5, 5 + len(config.names))))


def trainer_of(name: str, policy_models: Models, **keys: Any) -> Trainer:
    """A trainer without files; its source is never asked."""
    nothing: Any = SimpleNamespace(newest=lambda: None)
    config = config_of(name, **keys)
    algorithm = algorithm_named(name)
    if config.head is not None and policy_models.policy.head is None:
        if algorithm.rows == "labelled":
            add_label_head(policy_models.policy, config)
        elif config.head == "score":
            add_scoring_head(policy_models.policy, None)
        else:
            add_value_head(policy_models.policy, config.own_value_network)
        torch.manual_seed(11)  # a value model that has learned something
        if policy_models.policy.head is not None:
            torch.nn.init.normal_(policy_models.policy.head.weight, std=0.1)
    if config.needs_reference:
        policy_models.keep_reference()
    return Trainer(policy_models, nothing, algorithm, config, nothing, nothing, num_steps=4)


def prepared(trainer: Trainer, batch: Batch) -> Batch:
    return trainer.algorithm.prepare(batch, trainer.models, trainer.config)


def gradients(trainer: Trainer, batch: Batch) -> dict[str, torch.Tensor]:
    """The gradients of one update, taken before clipping; the weights stay as they are."""
    taken: dict[str, torch.Tensor] = {}

    def take(parameters: list[torch.nn.Parameter]) -> float:
        for name, p in trainer.models.trainable().items():
            taken[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
            p.grad = None
        return 0.0

    trainer._clip = take  # type: ignore[method-assign]
    trainer.update(batch)
    return taken


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], rtol: float = 1e-5) -> None:
    """Equal up to rounding, relative to the largest entry of each tensor; and not all zero."""
    assert a.keys() == b.keys()
    assert any(x.abs().max() > 0 for x in a.values()), "all gradients are zero: nothing is tested"
    for name in a:
        scale = max(float(a[name].abs().max()), 1e-6)
        difference = float((a[name] - b[name]).abs().max())
        assert difference <= rtol * scale, f"{name}: {difference} of {scale}"


def run_config(tmp_path: Path, method: str = "sft", **trainer_keys: Any) -> dict[str, Any]:
    """A whole runnable config tree on word problems, small enough for seconds."""
    tmp_path.mkdir(exist_ok=True)
    tree: dict[str, Any] = {
        "model": {
            "scratch": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_layers": 2,
                "num_heads": 2,
                "num_kv_heads": 1,
                "vocab_size": 400,
                "max_length": 256,
            }
        },
        "data": {"name": "word_problems", "options": {"num_rows": 40}},
        "trainer": {
            "type": method,
            "output_dir": str(tmp_path),
            "run_name": method,
            "max_steps": 6,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "logger": [],
        },
    }
    if method == "pretrain":
        text = tmp_path / "text.jsonl"
        text.write_text("".join(f'{{"text": "row {i} counts to {i * i}"}}\n' for i in range(20)))
        tree["data"] = {"path": str(text)}
    if algorithm_named(method).rows in ("pair", "unpaired"):
        pairs = tmp_path / "pairs.jsonl"
        rows = [
            {"prompt": f"{i} and {i + 1}?", "chosen": f"{2 * i + 1}", "rejected": f"{3 * i} maybe"}
            for i in range(20)
        ]
        pairs.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        tree["data"] = {"path": str(pairs)}
    if algorithm_named(method).rows == "steps":
        solved = tmp_path / "steps.jsonl"
        rows = [
            {
                "prompt": f"{i} and {i + 1}?",
                "labels": [True, i % 2 == 1],
                "completions": [f"{i} + {i + 1}", f"{2 * i + 1}" if i % 2 else f"{3 * i} maybe"],
            }
            for i in range(20)
        ]
        solved.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        tree["data"] = {"path": str(solved)}
    if algorithm_named(method).rows == "labelled":
        texts = tmp_path / "texts.jsonl"
        rows = [{"text": f"{i} and {i + 1}", "label": ["odd", "even"][i % 2]} for i in range(20)]
        texts.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        tree["data"] = {"path": str(texts)}
    if algorithm_named(method).online:
        tree["rollout"] = {"group_size": 4, "max_new_tokens": 16}
        # a reward that random weights do get: short completions
        reward = tmp_path / "reward.py"
        reward.write_text(
            "def reward(prompts, completions, completion_ids, **columns):\n"
            "    return [len(set(ids)) / 16 for ids in completion_ids]\n"
        )
        tree["reward"] = {"type": "custom", "path": str(reward)}
    tree["trainer"] |= trainer_keys
    return tree
