"""The reference and KTO's KL where the policy has moved, and preference runs that are resumed."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from conftest import ROOT
from test_resume import assert_same_bits, metrics, run, run_killed_and_resumed

from posttrain.algorithms.base import algorithm_named
from posttrain.common.batch import Batch
from posttrain.model.forward import forward
from posttrain.model.models import Models
from posttrain.training.trainer import Trainer


def move(models: Models) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for p in models.trainable().values():
            p.add_(0.05 * torch.randn_like(p))


def prepared(trainer: Trainer) -> Batch:
    raw = tiny.raw_batch(trainer.algorithm, trainer.models, trainer.config)
    return tiny.prepared(trainer, raw)


@pytest.mark.parametrize("model_keys", [{}, {"use_lora": True}])
@pytest.mark.parametrize("method", ["dpo", "ipo", "kto_pair", "kto"])
def test_the_reference_is_the_policy_at_the_start(method, model_keys):
    """Also where that is an adapter that has learned something."""
    models = tiny.models(**model_keys)
    move(models)
    trainer = tiny.trainer_of(method, models)
    start = copy.deepcopy(models.policy)
    move(trainer.models)
    batch = prepared(trainer)
    with torch.no_grad():
        expected, now = (forward(policy, batch).logprobs for policy in (start, models.policy))
    found = batch.per_token["ref_logprobs"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (now - expected).abs().max() > 0.1


@pytest.mark.parametrize("method", ["kto", "kto_pair"])
def test_the_kl_is_not_below_zero(method):
    trainer = tiny.trainer_of(method, tiny.models())
    move(trainer.models)
    found = [prepared(trainer).per_seq["kl"]]
    trainer.models._exchange()  # policy and reference change places, and the log-ratio its sign
    found.append(prepared(trainer).per_seq["kl"])
    least, most = torch.minimum(*found), torch.maximum(*found)
    assert (least == 0).all()
    assert (most > 0.01).all()


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_precomputed_reference_is_the_reference(method, tmp_path, monkeypatch):
    """Of every row, and after a resume still that of the start."""
    trees = [
        tiny.run_config(tmp_path / name, method, save_steps=1, precompute_reference=name != "live")
        for name in ("live", "once", "resumed")
    ]
    live, once = map(run, trees[:2])
    assert metrics(live)[-1]["rewards/margins"] > 0.01
    for step, same in zip(metrics(live), metrics(once), strict=True):
        assert same == pytest.approx(step, rel=1e-3, abs=1e-5)
    resumed = run_killed_and_resumed(trees[2], 3, monkeypatch)
    assert metrics(resumed) == metrics(once)
    assert_same_bits(resumed, once)


def test_a_reward_model_with_lora_resumes(tmp_path, monkeypatch):
    base = run(tiny.run_config(tmp_path / "base", "sft", max_steps=2))
    trees = [tiny.run_config(tmp_path / name, "reward_model", save_steps=1) for name in "ab"]
    for tree in trees:
        tree["model"] = {"name": str(base), "use_lora": True, "lora": {"r": 4, "dropout": 0.1}}
    whole = run(trees[0])
    parts = run_killed_and_resumed(trees[1], 3, monkeypatch)
    assert metrics(whole) == metrics(parts)
    assert_same_bits(whole, parts)


def test_the_methods_page_has_the_defaults():
    page = (ROOT / "docs/methods.md").read_text()
    table = page.partition("| | `loss_type` | reference | `beta`")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    cells = [[cell.strip(" `") for cell in row] for row in rows]
    found = []
    for method, *_ in cells:
        default = algorithm_named(method).config()
        found.append(
            [
                method,
                default.loss_type,
                "no" if default.reference_free else "yes",
                f"{default.beta:.1f}",
                f"{default.gamma:.1f}" if default.gamma else "",
                f"{default.sft_coef:.0f}",
                default.nll_over,
            ]
        )
    assert len(found) == 6
    assert found == cells
