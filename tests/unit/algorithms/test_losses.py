"""Losses against formulas written out here on their own, and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from posttrain.algorithms.advantages import advantages_of
from posttrain.algorithms.base import UNITS, algorithm_named
from posttrain.common.batch import Batch, Sequence, pack
from posttrain.model.forward import Output


def group_advantages(rewards: torch.Tensor, group: torch.Tensor, scale: str) -> torch.Tensor:
    return advantages_of(rewards, group, "group_mean", scale, ddof=1, eps=1e-4)


def value(name: str, out: Output, batch: Batch, **keys) -> float:
    loss = algorithm_named(name).loss(out, batch, tiny.config_of(name, **keys))
    return float(sum(term / UNITS[unit](batch) for unit, term in loss.terms.items()))


def two_rollouts(
    logprobs, advantages, old=None, ref=None, max_new_tokens=4
) -> tuple[Output, Batch]:
    """Completions of 1 and of 3 tokens after prompts of 2, from nested lists."""
    rows = []
    for i, row in enumerate(logprobs):
        n = len(row)
        mask = torch.arange(2 + n) >= 2
        per_token = {"sampler_logprobs": torch.zeros(2 + n)}
        per_token["advantages"] = torch.tensor([0.0, 0.0, *[advantages[i]] * n])
        for key, values in (("old_logprobs", old), ("ref_logprobs", ref)):
            if values is not None:
                per_token[key] = torch.tensor([0.0, 0.0, *values[i]])
        per_seq = {"max_new_tokens": max_new_tokens}
        rows.append(Sequence(torch.ones(2 + n, dtype=torch.int64), mask, per_token, per_seq))
    flat = torch.cat([torch.tensor([0.0, 0.0, *row]) for row in logprobs])
    return Output(flat), pack(rows)


def test_sft_is_the_mean_over_all_trained_tokens():
    rows = tiny.random_sequences(2)
    batch = pack(rows)
    logprobs = -torch.rand(batch.num_tokens) * batch.loss_mask
    trained = [float(x) for x, m in zip(logprobs, batch.loss_mask) if m]
    assert value("sft", Output(logprobs), batch) == pytest.approx(-sum(trained) / len(trained))


def test_sft_by_hand():
    """Tokens of probability 1/2 and 1/8: (ln 2 + ln 8) / 2 = 2 ln 2."""
    row = Sequence(torch.tensor([5, 6, 7]), torch.tensor([False, True, True]))
    logprobs = torch.tensor([0.0, math.log(1 / 2), math.log(1 / 8)])
    assert value("sft", Output(logprobs), pack([row])) == pytest.approx(2 * math.log(2))


def test_grpo_by_hand():
    """Ratios 1.5 (clipped to 1.2, A = 1) and 0.5, 1, 2 (A = -1: clipped from below at 0.8).

    Surrogates: min(1.5, 1.2) = 1.2; min(-0.5, -0.8) = -0.8; -1; min(-2, -1.2) = -2.
    Their sum is -2.6, so the token mean of the loss is 2.6 / 4.
    """
    out, batch = two_rollouts(
        [[math.log(1.5)], [math.log(0.5), 0.0, math.log(2)]], [1.0, -1.0], old=[[0.0], [0.0] * 3]
    )
    assert value("grpo", out, batch) == pytest.approx(2.6 / 4)
    # per completion: -1.2 and 3.8 / 3, then the mean of the two
    assert value("grpo", out, batch, reduction="sequence") == pytest.approx((-1.2 + 3.8 / 3) / 2)
    # sums over max_new_tokens = 4: -1.2 / 4 and 3.8 / 4
    assert value("grpo", out, batch, reduction="constant") == pytest.approx((-1.2 + 3.8) / 8)
    # clip-higher at 0.6 lets 1.5 through
    assert value("grpo", out, batch, epsilon_high=0.6) == pytest.approx((-1.5 + 3.8) / 4)


def test_kl_by_hand():
    """pi = 1/4, pi_ref = 1/2: k3 = 2 - 1 - ln 2; with A = 0 the loss is beta times that."""
    out, batch = two_rollouts(
        [[math.log(1 / 4)], [0.0] * 3],
        [0.0, 0.0],
        old=[[math.log(1 / 4)], [0.0] * 3],
        ref=[[math.log(1 / 2)], [0.0] * 3],
    )
    assert value("grpo", out, batch, beta=0.1) == pytest.approx(0.1 * (1 - math.log(2)) / 4)


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("epsilon_high", [None, 0.35])
def test_grpo_equals_a_padded_implementation(reduction, beta, epsilon_high):
    """Loss and gradient against [N, L] tensors with a mask, the way the papers' code is written."""
    generator = torch.Generator().manual_seed(3)
    lengths, width, limit = [1, 4, 6, 3], 6, 9
    new, old, ref = (
        torch.randn(4, width, generator=generator).double() * 0.4 - 1 for _ in range(3)
    )
    advantages = torch.tensor([0.7, -1.1, 0.4, 0.0]).double()
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]

    padded = new.clone().requires_grad_()
    ratio = (padded - old).exp()
    low, high = 0.8, 1 + (epsilon_high or 0.2)
    a = advantages[:, None]
    per_token = -torch.minimum(ratio * a, ratio.clamp(low, high) * a)
    if beta:
        per_token = per_token + beta * ((ref - padded).exp() - (ref - padded) - 1)
    per_token = per_token * mask
    expected = {
        "token": per_token.sum() / mask.sum(),
        "sequence": (per_token.sum(1) / mask.sum(1)).mean(),
        "constant": per_token.sum() / (4 * limit),
    }[reduction]
    expected.backward()

    def cut(x: torch.Tensor) -> list[list[float]]:
        return [row[:n].tolist() for row, n in zip(x, lengths)]

    out, batch = two_rollouts(cut(new), advantages.tolist(), cut(old), cut(ref), limit)
    logprobs = out.logprobs.double().requires_grad_()
    batch.per_token = {k: v.double() for k, v in batch.per_token.items()}
    batch.per_seq = {k: v.double() for k, v in batch.per_seq.items()}
    keys = {"reduction": reduction, "beta": beta, "epsilon_high": epsilon_high}
    loss = algorithm_named("grpo").loss(Output(logprobs), batch, tiny.config_of("grpo", **keys))
    total = sum(term / UNITS[unit](batch) for unit, term in loss.terms.items())
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    total.backward()
    torch.testing.assert_close(
        logprobs.grad[batch.loss_mask], padded.grad[mask], rtol=1e-5, atol=1e-8
    )


def test_advantages_by_hand():
    """Group 1: rewards 1, 0, 0, 0: mean 1/4, unbiased std 1/2. Group 2 has no spread."""
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1]).double()
    group = torch.tensor([5, 5, 5, 5, 2, 2, 2, 2])
    scaled = group_advantages(rewards, group, "group")
    assert scaled[:4].tolist() == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3])
    assert scaled[4:].tolist() == [0.0] * 4
    assert group_advantages(rewards, group, "none")[:4].tolist() == [0.75, -0.25, -0.25, -0.25]


def test_a_reward_that_does_not_apply_takes_no_part():
    rewards = torch.tensor([1.0, float("nan"), 0.0, float("nan")]).double()
    group = torch.tensor([0, 0, 0, 1])
    assert group_advantages(rewards, group, "none").tolist() == [0.5, 0.0, -0.5, 0.0]


def test_groups_need_not_lie_together_or_be_of_one_size():
    rewards = torch.tensor([1.0, 5.0, 3.0, 2.0, 9.0])
    group = torch.tensor([0, 1, 0, 0, 1])
    expected = [1 - 2.0, 5 - 7.0, 3 - 2.0, 2 - 2.0, 9 - 7.0]
    assert group_advantages(rewards, group, "none").tolist() == expected
