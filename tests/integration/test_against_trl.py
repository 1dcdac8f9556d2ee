"""Losses and gradients equal to those of TRL 1.16 on the same tensors, by calling its own code."""

from __future__ import annotations

import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from posttrain.algorithms.base import UNITS, algorithm_named
from posttrain.common.batch import Batch, Sequence, pack
from posttrain.model.forward import Output

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl", reason="parity with TRL needs trl==1.16.0")

LENGTHS, LIMIT = [1, 5, 7, 3, 6, 2], 9
WIDTH = max(LENGTHS)
MASK = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]


def tensors() -> dict[str, torch.Tensor]:
    """[N, L] log-probs far enough apart that every clip is met, and advantages [N]."""
    generator = torch.Generator().manual_seed(7)
    names = ("new", "old", "ref", "sampler", "entropy")
    found = {n: torch.randn(6, WIDTH, generator=generator).double() * 0.4 - 1 for n in names}
    found["new"] = (found["new"] + found["old"]) / 2
    found["sampler"] = found["old"] + 0.3 * found["sampler"]
    found["advantages"] = torch.tensor([0.7, -1.1, 0.4, -0.3, 1.5, -0.9]).double()
    return found


def theirs(trainer: type, given: dict[str, torch.Tensor], **keys: Any) -> tuple[float, Any]:
    """Loss and gradient [N, L] by `_compute_loss` of a TRL trainer, with logits left out."""
    new = given["new"].clone().requires_grad_()
    args = {
        "delta": None,
        "use_bias_correction_kl": False,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "steps_per_generation": 1,
    }
    one = SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        sync_gradients=True,
    )
    fake = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, given["entropy"], None),
        args=SimpleNamespace(**{k: keys.pop(k, v) for k, v in args.items()}),
        accelerator=one,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm="importance_sampling_ratio" in given,
        vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
        max_completion_length=LIMIT,
        _metrics={"train": defaultdict(list)},
        use_adaptive_entropy=False,
        get_gamma_weights=getattr(trainer, "get_gamma_weights", None),
        _entropy_bonus_enabled=keys.get("entropy_coef", 0) > 0,
        entropy_coef=0.0,
        beta=0.0,
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.2,
    )
    vars(fake).update(keys)
    none = torch.zeros(6, 0, dtype=torch.int64)
    inputs = {
        "prompt_ids": none,
        "prompt_mask": none,
        "completion_ids": MASK.long(),
        "completion_mask": MASK.long(),
        "advantages": given["advantages"],
        "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["ref"],
        "old_logps": (given["old"] * MASK).sum(1),
        "num_items_in_batch": MASK.sum().double(),
        **{k: given[k] for k in ("importance_sampling_ratio",) if k in given},
    }
    loss = trainer._compute_loss(fake, None, inputs)
    loss.backward()
    return float(loss), new.grad


def ours(method: str, given: dict[str, torch.Tensor], **keys: Any) -> tuple[float, Any]:
    def laid_out(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.cat([torch.zeros(2).double(), r[:n]]) for r, n in zip(x, LENGTHS)])

    rows = []
    for n in LENGTHS:
        rows.append(Sequence(torch.ones(2 + n, dtype=torch.int64), torch.arange(2 + n) >= 2))
        rows[-1].per_seq = {"max_new_tokens": LIMIT}
    batch: Batch = pack(rows)
    batch.per_token = {
        "old_logprobs": laid_out(given["old"]),
        "ref_logprobs": laid_out(given["ref"]),
        "sampler_logprobs": laid_out(given["sampler"]),
        "advantages": laid_out(given["advantages"][:, None].expand(6, WIDTH)),
    }
    new = given["new"].clone().requires_grad_()
    out = Output(laid_out(new), entropy=laid_out(given["entropy"]))
    loss = algorithm_named(method).loss(out, batch, tiny.config_of(method, **keys))
    total = sum(term / UNITS[unit](batch) for unit, term in loss.terms.items())
    total.backward()
    return float(total), new.grad


def assert_equal(a: tuple[float, Any], b: tuple[float, Any]) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-6)
    torch.testing.assert_close(a[1], b[1] * MASK, rtol=1e-6, atol=1e-9)
    assert (a[1] != 0).sum() > 4, "nearly every token is clipped: little is tested"


CISPO = {"surrogate": "cispo", "epsilon": 1.0, "epsilon_high": 0.3}
VESPO = {"surrogate": "vespo", "ratio_level": "sequence_sum"}
LOSS_TYPES = [
    ("grpo", {}, {"reduction": "sequence"}),
    ("bnpo", {}, {"reduction": "token"}),  # one micro-batch: the same as dapo
    ("dapo", {}, {"reduction": "token"}),
    ("dr_grpo", {}, {"reduction": "constant"}),
    (
        "luspo",
        {"importance_sampling_level": "sequence"},
        {"reduction": "sequence_sum", "ratio_level": "sequence"},
    ),
    ("cispo", {"epsilon_high": 1.3}, CISPO),
    ("sapo", {}, {"surrogate": "sapo", "reduction": "sequence"}),
    ("vespo", {}, VESPO),
]


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(("loss_type", "their_keys", "our_keys"), LOSS_TYPES)
def test_grpo_equals_trl(loss_type, their_keys, our_keys, beta):
    from trl import GRPOTrainer

    given = tensors()
    if loss_type == "luspo":  # TRL leaves the ratio at [N, 1] and then multiplies it by the mask
        beta = 0.0
    expected = theirs(GRPOTrainer, given, loss_type=loss_type, beta=beta, **their_keys)
    assert_equal(ours("grpo", given, beta=beta, **our_keys), expected)


@pytest.mark.parametrize(
    ("their_keys", "our_keys"),
    [
        ({"epsilon_high": 0.28}, {"epsilon_high": 0.28}),
        ({"delta": 1.4}, {"dual_clip": 1.4}),
        (
            {"importance_sampling_level": "sequence", "loss_type": "grpo"},
            {"ratio_level": "sequence", "reduction": "sequence"},
        ),
        ({"entropy_coef": 0.3}, {"entropy_coef": 0.3}),
    ],
)
def test_choices_equal_trl(their_keys, our_keys):
    from trl import GRPOTrainer

    given = tensors()
    expected = theirs(GRPOTrainer, given, **{"loss_type": "dapo", **their_keys})
    assert_equal(ours("grpo", given, **our_keys), expected)


@pytest.mark.parametrize("level", ["token", "sequence_sum"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_sampler_correction_equals_trl(level, mode):
    """TRL's weights by its formula (its code makes them while it generates), its loss with them."""
    from trl import GRPOTrainer

    given = tensors()
    difference = (given["old"] - given["sampler"]) * MASK
    if level == "sequence_sum":
        difference = difference.sum(1, keepdim=True)
    ratio, (low, high) = difference.exp(), (0.8, 1.5)
    outside = (ratio < low) | (ratio > high)
    assert 0 < outside.sum() < outside.numel()
    weight = ratio.clamp(low, high) if mode == "truncate" else ratio.masked_fill(outside, 0.0)
    given["importance_sampling_ratio"] = weight
    expected = theirs(GRPOTrainer, given, loss_type="dapo", beta=0.1)
    keys = {
        "sampler_correction": level,
        "sampler_correction_mode": mode,
        "beta": 0.1,
        "sampler_correction_min": low,
        "sampler_correction_max": high,
    }
    assert_equal(ours("grpo", given, **keys), expected)


def test_rloo_equals_trl():
    from trl import RLOOTrainer

    given = tensors()
    given["old"] = given["new"] + 0.1 * (given["old"] - given["new"])  # some clipped, some not
    assert_equal(ours("rloo", given), theirs(RLOOTrainer, given))
