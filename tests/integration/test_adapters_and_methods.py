"""What holds for every method with every kind of adapter: the promises of full training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from repeats import choice
from safetensors.torch import load_file
from test_distributed import launch, steps
from test_invariants import prepared_batch, updated_batch
from test_resume import assert_same_bits, metrics, run, run_killed_and_resumed

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import algorithm_named
from posttrain.common.batch import pack
from posttrain.data.render import make_renderer
from posttrain.model.adapters.base import config_of
from posttrain.model.adapters.reft import ReftConfig
from posttrain.model.folder import checkpoints_in
from posttrain.model.forward import forward
from posttrain.model.heads import add_scoring_head
from posttrain.model.load import load_policy, load_tokenizer
from posttrain.rewards.build import build_reward, reward_named

# no layer reads what the last one makes of the first tokens: an edit of its own has no gradient
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 4},
    "dora": {"type": "dora", "r": 4},
    "loreft": {"type": "loreft", "rank": 3, "positions": "f2+l2"},
    "direft": {
        "type": "direft",
        "rank": 3,
        "positions": "f1+l3",
        "share_weights": False,
        "layers": [0],
    },
}
NO_PROMPTS = ("pretrain", "process_reward_model")
PAIRS = [
    (kind, method)
    for kind in KINDS
    for method in ALGORITHMS
    if not (config_of(KINDS[kind]["type"]) is ReftConfig and method in NO_PROMPTS)
]
# A kind changes the forward pass and a method the loss: each kind with three methods, each method
# with one kind, but for those whose code is another's with other defaults.
FAST = [(kind, method) for kind in KINDS for method in ("sft", "dpo", "grpo")]
FAST += [("lora", method) for method in NO_PROMPTS]
FAST += [("dora", "ppo"), ("loreft", "ppo"), ("direft", "kto"), ("dora", "kto_pair")]
FAST += [("loreft", "reward_model"), ("direft", "classification"), ("lora", "reinforce")]
pairs = pytest.mark.parametrize(("kind", "method"), choice(PAIRS, FAST))


def models_of(kind: str, **keys: Any) -> Any:
    return tiny.models("llama", adapter=KINDS[kind], **keys)


@pairs
def test_gradient_does_not_depend_on_micro_batch_size_or_packing(kind: str, method: str) -> None:
    trainer = tiny.trainer_of(method, models_of(kind), micro_batch_tokens=10**6)
    batch = updated_batch(trainer)
    expected = tiny.gradients(trainer, batch)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
    for tokens in (1, 40):
        trainer.config = trainer.config.model_copy(update={"micro_batch_tokens": tokens})
        tiny.assert_same(expected, tiny.gradients(trainer, batch))


@pairs
def test_the_reference_is_the_model_at_the_start(kind: str, method: str) -> None:
    """ln 2 for DPO, and no KL for RL, at step 0; and it stays where it was."""
    keys = {"beta": 0.1} if algorithm_named(method).online else {}
    trainer = tiny.trainer_of(method, models_of(kind), **keys)
    plain = tiny.models("llama")
    batch = prepared_batch(trainer)
    base = plain.logprobs(batch, 10**6)
    torch.testing.assert_close(trainer.models.logprobs(batch, 10**6), base, rtol=0, atol=1e-5)
    if "ref_logprobs" not in batch.per_token:
        return
    torch.testing.assert_close(batch.per_token["ref_logprobs"], base, rtol=0, atol=1e-5)
    totals = trainer.update(batch)
    if "kl" in totals:
        assert abs(totals["kl"][0]) < 1e-5
    with trainer.models.reference():
        after = trainer.models.logprobs(batch, 10**6)
    torch.testing.assert_close(after, batch.per_token["ref_logprobs"], rtol=0, atol=1e-5)


RESUMED = [("loreft", "ppo"), ("direft", "classification"), ("dora", "sft")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return run(tiny.run_config(folder / "run", "sft", max_steps=2))


@pytest.mark.parametrize(("kind", "method"), choice(PAIRS, RESUMED))
def test_train_2n_equals_train_n_and_resume(
    kind: str, method: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"save_steps": 2, "max_steps": 5}
    whole_tree, parts_tree = (
        tiny.run_config(tmp_path / name, method, **keys)
        | {"model": {"name": str(base), "adapter": KINDS[kind] | {"dropout": 0.1}}}
        for name in ("whole", "parts")
    )
    for key in ("reward", "data"):
        if key in whole_tree:
            parts_tree[key] = whole_tree[key]
    whole = run(whole_tree)
    parts = run_killed_and_resumed(parts_tree, 3, monkeypatch)
    assert metrics(whole) == metrics(parts)
    assert_same_bits(whole, parts)


@pytest.mark.slow  # test_distributed.py has a fast one, with every weight
@pytest.mark.parametrize(
    ("kind", "method", "strategy"),
    [(*p, s) for p in PAIRS for s in ("ddp", "fsdp")],
)
def test_two_ranks_equal_one(
    kind: str, method: str, strategy: str, base: Path, tmp_path: Path
) -> None:
    keys = {"max_steps": 3, "batch_size": 5, "micro_batch_tokens": 90, "learning_rate": 1e-3}
    if algorithm_named(method).online:
        keys |= {"batch_size": 3, "seed": 1}
    tree = tiny.run_config(tmp_path, method, **keys)
    tree["model"] = {"name": str(base), "adapter": KINDS[kind]}
    tree["distributed"] = {"strategy": strategy}
    one, two = (launch(tree, tmp_path / strategy, ranks) for ranks in (1, 2))
    for a, b in zip(steps(one), steps(two), strict=True):
        for name in ("loss", "grad_norm", "num_tokens", "reward", "kl", "entropy"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=5e-4, abs=1e-6), name
    left, right = (weights(checkpoints_in(r)[-1]) for r in (one, two))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(right[name], left[name], rtol=1e-3, atol=5e-5)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors in a checkpoint."""
    (file,) = (
        checkpoint / name
        for name in ("adapter_model.safetensors", "reft_model.safetensors")
        if (checkpoint / name).is_file()
    )
    return load_file(file)


@pytest.mark.parametrize("method", NO_PROMPTS)
def test_rows_without_prompts_are_refused(method: str, base: Path, tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path, method)
    tree["model"] = {"name": str(base), "adapter": "loreft"}
    with pytest.raises(ValueError, match=f"edits prompts, and the rows of {method} have none"):
        run(tree)


def test_a_reward_model_with_edits_scores_as_it_was_trained(base: Path, tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path, "reward_model", max_steps=3)
    tree["model"] = {"name": str(base), "adapter": KINDS["loreft"]}
    folder = str(checkpoints_in(run(tree))[-1])
    section = reward_named("reward_model").config.model_validate(
        {"type": "reward_model", "path": folder}
    )
    prompts, completions = ["1 and 2?", "4 and 5?", "1 and 2?"], ["3", "9 maybe, or not", "8"]
    scores = build_reward(section)(prompts, completions, None)
    policy = load_policy(tiny.model_config(folder), folder, tiny.CPU, 0, scores=True)
    add_scoring_head(policy, folder)
    renderer = make_renderer(load_tokenizer(folder), "auto", None)
    for prompt, completion, score in zip(prompts, completions, scores):
        row = renderer.training_sequence({"prompt": prompt, "completion": completion})
        with torch.no_grad():
            alone = forward(policy.eval(), pack([row]), head=True).scores
        assert score == pytest.approx(float(alone[-1]), abs=1e-5)
