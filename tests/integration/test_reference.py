"""A reference that is another model, or that follows the policy."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import pytest
import test_resume
import tiny
import torch
from safetensors.torch import load_file
from trainer_states import trainer_tensors

from posttrain.algorithms.base import algorithm_named
from posttrain.common.batch import pack, sequences_of
from posttrain.model.config import ReferenceConfig
from posttrain.model.folder import checkpoints_in
from posttrain.runs.config import parse_config
from posttrain.runs.plan import plan
from posttrain.runs.train import add_reference_logprobs

METHODS = ["dpo", "kto", "kto_pair", "grpo", "ppo"]
"""Each of the places that ask for the reference."""


def tree_of(tmp_path: Path, method: str, **keys) -> dict:
    tree = tiny.run_config(tmp_path, method, **keys)
    tree["model"]["device"] = "cpu"  # the tests hand it batches on the CPU
    if algorithm_named(method).online:
        tree["trainer"]["beta"] = 0.1
    return tree


def another_model(tmp_path: Path, method: str) -> str:
    """A run of the same start with other weights."""
    return str(test_resume.run(tree_of(tmp_path, method, max_steps=3, learning_rate=3e-2)))


@pytest.mark.parametrize("method", METHODS)
def test_another_model_is_the_reference(method, tmp_path):
    """The log-probs are that model's, before and after the policy moved, and it stays."""
    tree = tree_of(tmp_path / "run", method) | {
        "reference": {"name": another_model(tmp_path / "base", method)}
    }
    models = plan(parse_config(tree, "test")).models
    saved = load_file(checkpoints_in(Path(tree["reference"]["name"]))[-1] / "model.safetensors")
    direct = copy.deepcopy(models.policy)
    missing, _ = direct.model.load_state_dict(saved, strict=False)
    assert not [name for name in missing if "lm_head" not in name]
    batch = pack(tiny.random_sequences())
    expected, own = models.logprobs(batch, 10**6), models.policy
    models.policy = direct
    expected, before = models.logprobs(batch, 10**6), expected
    models.policy = own
    assert not torch.allclose(expected, before, atol=1e-3)
    trainer = tiny.trainer_of(method, models, **({"beta": 0.1} if method != "kto_pair" else {}))
    trainer.models.start = {}  # nobody needs it
    update = tiny.prepared(trainer, tiny.raw_batch(trainer.algorithm, models, trainer.config))
    trainer.update(update)
    with models.reference():
        assert models.policy is models.other
        torch.testing.assert_close(models.logprobs(batch, 10**6), expected)
    assert models.policy is own
    assert not any(p.requires_grad for p in models.other.parameters())


def test_another_model_in_advance(tmp_path):
    """precompute_reference asks it once, and it is gone before the first step."""
    name = another_model(tmp_path / "base", "dpo")
    runs = {}
    for where in ("each_step", "in_advance"):
        tree = tree_of(tmp_path / where, "dpo") | {"reference": {"name": name}}
        tree["trainer"]["precompute_reference"] = where == "in_advance"
        runs[where] = test_resume.run(tree)
    first, second = (test_resume.metrics(run) for run in runs.values())
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    planned = plan(parse_config(tree, "test"))
    assert planned.models.other is not None
    add_reference_logprobs(planned.models, planned.data, 10**6)
    sequences = sequences_of(planned.data.examples)[:3]
    with planned.models.reference():
        expected = planned.models.logprobs(pack(sequences), 10**6)
    found = torch.cat([sequence.per_token["ref_logprobs"] for sequence in sequences])
    torch.testing.assert_close(found, expected)


def test_the_reference_follows_the_policy():
    """ref <- 0.25 policy + 0.75 ref after steps 2 and 4, worked out beside it."""
    trainer = tiny.trainer_of("dpo", tiny.models())
    trainer.reference = ReferenceConfig(sync_steps=2, sync_alpha=0.25)
    expected = {name: p.detach().clone() for name, p in trainer.models.trainable().items()}
    trainer.source = type("Same", (), {})()
    raw = tiny.raw_batch(trainer.algorithm, trainer.models, trainer.config)
    trainer.source.next_batch = lambda: (raw.select(range(raw.num_sequences)), {})
    trainer.source.prepared = lambda batch: None
    for step in range(1, 6):
        trainer.train_step()
        if step % 2 == 0:
            for name, p in trainer.models.trainable().items():
                expected[name] = 0.25 * p.detach() + 0.75 * expected[name]
        for name, tensor in trainer.models.start.items():
            torch.testing.assert_close(tensor, expected[name])
    assert any(not torch.equal(expected[n], p) for n, p in trainer.models.trainable().items())


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_resume_with_a_reference_that_follows(method, tmp_path, monkeypatch):
    """The killed run goes on with the reference as it was then, not as it was at the start."""
    trees = {}
    for name in ("whole", "parts"):
        trees[name] = tree_of(tmp_path / name, method, save_steps=1, keep_checkpoints=9)
        trees[name]["reference"] = {"sync_steps": 2, "sync_alpha": 0.5}
    for part in ("reward", "data"):
        if part in trees["whole"]:
            trees["parts"][part] = trees["whole"][part]
    whole = test_resume.run(trees["whole"])
    parts = test_resume.run_killed_and_resumed(trees["parts"], 3, monkeypatch)
    assert test_resume.metrics(whole) == test_resume.metrics(parts)
    test_resume.assert_same_bits(whole, parts)
    references = [
        {n: x for n, x in trainer_tensors(path).items() if n.startswith("reference/")}
        for path in checkpoints_in(whole)
    ]
    assert all(references)
    moved = [
        any(not torch.equal(a[name], b[name]) for name in a)
        for a, b in itertools.pairwise(references)
    ]
    assert moved == [True, False, True, False, True]  # at steps 2, 4 and 6


@pytest.mark.parametrize(
    ("method", "section", "trainer", "message"),
    [
        ("dpo", {}, {}, "give either name .* or sync_steps"),
        ("dpo", {"name": "x", "sync_steps": 2}, {}, "give either name .* or sync_steps"),
        ("dpo", {"name": "x", "sync_alpha": 0.5}, {}, "sync_alpha needs"),
        ("dpo", {"sync_steps": 2}, {"precompute_reference": True}, "keeps the reference fixed"),
        ("simpo", {"sync_steps": 2}, {}, "simpo uses no reference"),
        ("sft", {"sync_steps": 2}, {}, "sft uses no reference"),
        ("grpo", {"sync_steps": 2}, {}, "grpo uses no reference"),
        ("dpo", {"sync_steps": 2, "sync_alpha": 1.5}, {}, "sync_alpha"),
    ],
)
def test_a_reference_that_can_not_be(method, section, trainer, message, tmp_path):
    tree = tiny.run_config(tmp_path, method, **trainer) | {"reference": section}
    with pytest.raises(ValueError, match=message):
        parse_config(tree, "test")


def test_a_reference_with_another_tokenizer(tmp_path):
    name = another_model(tmp_path / "base", "sft")
    tree = tree_of(tmp_path / "run", "dpo") | {"reference": {"name": name}}
    with pytest.raises(ValueError, match="has a different tokenizer from the policy"):
        plan(parse_config(tree, "test"))


@pytest.mark.parametrize(("method", "loss"), [("dpo", math.log(2)), ("kto", 0.5)])
def test_the_reference_of_an_adapter_is_the_adapter(method, loss, tmp_path):
    """LoRA that SFT has moved away from its base: nothing lies between it and itself."""
    base = test_resume.run(tree_of(tmp_path / "base", method, max_steps=1))
    model = {"name": str(base), "use_lora": True, "lora": {"r": 4}}
    tuned = tree_of(tmp_path / "tuned", method, max_steps=4, learning_rate=3e-2) | {"model": model}
    adapter = test_resume.run(tuned)
    assert (checkpoints_in(adapter)[-1] / "adapter_config.json").is_file()
    tree = tree_of(tmp_path / "again", method, max_steps=2) | {"model": {"name": str(adapter)}}
    first, second = test_resume.metrics(test_resume.run(tree))
    assert first["loss"] == pytest.approx(loss, rel=1e-6)
    assert first.get("kl", 0.0) == 0.0
    assert second["loss"] != pytest.approx(loss, rel=1e-6)
