"""Products by oneDNN: torch's own up to rounding, with gradients, and only where they suit."""

from __future__ import annotations

import copy

import pytest
import test_invariants
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from posttrain.model.kernels import linear as module
from posttrain.model.kernels.linear import Linear, linear, product, reusable, use_onednn

pytestmark = pytest.mark.skipif(not module.available(), reason="this torch has no oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """The shapes that oneDNN was given."""
    found = []
    onednn = module._onednn

    def counted(x, weight, bias=None):
        found.append((tuple(x.shape), tuple(weight.shape)))
        return onednn(x, weight, bias)

    monkeypatch.setattr(module, "_onednn", counted)
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(300, 96), (4, 75, 96), (2, 3, 50, 96)])
def test_equals_torch_with_gradients(shape, bias, calls):
    x, weight = torch.randn(shape), torch.randn(128, 96)
    b = torch.randn(128) if bias else None
    leaves = [t.clone().requires_grad_() for t in (x, weight, b) if t is not None]
    found = linear(*leaves)
    upstream = torch.randn_like(found)
    mine = torch.autograd.grad(found, leaves, upstream)
    assert len(calls) == 3
    expected = F.linear(*leaves)
    theirs = torch.autograd.grad(expected, leaves, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)


def test_no_gradient_is_made_that_nobody_asks_for(calls):
    x, weight = torch.randn(300, 96), torch.randn(128, 96, requires_grad=True)
    linear(x, weight).sum().backward()
    assert len(calls) == 2, "forward, and the weight's gradient"


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(3, 96), torch.randn(128, 96)),
        (torch.randn(300, 96).double(), torch.randn(128, 96).double()),
        (torch.randn(300, 96).bfloat16(), torch.randn(128, 96).bfloat16()),
    ],
)
def test_what_does_not_suit_goes_torchs_way(x, weight, calls):
    for found in (linear(x, weight), product(x, weight), reusable(weight, None)(x)):
        assert torch.equal(found, F.linear(x, weight))
    assert calls == []


def test_autocast_is_left_alone(calls):
    x, weight = torch.randn(300, 96), torch.randn(128, 96)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert calls == []


@pytest.mark.parametrize("rows", [90, 300, 1000])
def test_a_weight_laid_out_once_serves_any_number_of_rows(rows, calls):
    weight, bias = torch.randn(128, 96), torch.randn(128)
    project = reusable(weight, bias)
    x = torch.randn(rows, 96)
    torch.testing.assert_close(project(x), F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert len(calls) == 1


def test_layers_change_their_class_and_nothing_else():
    model = nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 2))
    before = copy.deepcopy(model)
    use_onednn(model)
    assert [type(layer) for layer in model] == [Linear, nn.ReLU, Linear]
    assert model.state_dict().keys() == before.state_dict().keys()
    x = torch.randn(300, 96)
    torch.testing.assert_close(copy.deepcopy(model)(x), before(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sft", "grpo", "ppo", "reward_model", "process_reward_model"])
def test_the_invariants_hold_with_every_product(name, monkeypatch, calls):
    """Tiny models are below the size at which it pays."""
    monkeypatch.setattr(module, "MIN_SIZE", 0)
    test_invariants.test_matches_a_padded_model_with_no_code_of_ours(name, {})
    assert calls
    test_invariants.test_gradient_does_not_depend_on_micro_batch_size_or_packing(name, {}, "llama")
    test_invariants.test_gradient_checkpointing_changes_nothing(name, {})


def test_lora_on_top(calls, monkeypatch):
    monkeypatch.setattr(module, "MIN_SIZE", 0)
    trainer = tiny.trainer_of("sft", tiny.models(use_lora=True))
    trainer.update(tiny.raw_batch(trainer.algorithm, trainer.models))
    assert calls
