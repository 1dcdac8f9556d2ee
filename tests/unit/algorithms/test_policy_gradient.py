"""Advantages, returns and presets against definitions written out here, sequence by sequence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch

from posttrain.algorithms.advantages import advantages_of, gae, to_go, whiten
from posttrain.algorithms.base import UNITS, algorithm_named
from posttrain.algorithms.presets import PRESETS
from posttrain.common.batch import Batch, Sequence, pack
from posttrain.model.forward import Output

LENGTHS = [2, 1, 4, 3, 2, 2]
GROUP = torch.tensor([0, 0, 0, 1, 1, 1])
REWARDS = torch.tensor([1.0, 0.0, 0.5, 2.0, -1.0, 0.5], dtype=torch.float64)


def batch_of(prompt: int = 2, **per_token: list[list[float]]) -> Batch:
    """Completions of LENGTHS tokens after prompts of 2."""
    rows = []
    for i, n in enumerate(LENGTHS):
        row = Sequence(
            torch.ones(prompt + n, dtype=torch.int64), torch.arange(prompt + n) >= prompt
        )
        row.per_token = {
            name: torch.tensor([0.0] * prompt + values[i], dtype=torch.float64)
            for name, values in per_token.items()
        }
        row.per_seq = {"rewards": float(REWARDS[i]), "group": int(GROUP[i]), "max_new_tokens": 5}
        row.per_seq["truncated"] = i == 2
        rows.append(row)
    return pack(rows)


def draws(seed: int) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, generator=generator) * 0.4 - 1).tolist() for n in LENGTHS]


def by_sequence(x: torch.Tensor, batch: Batch) -> list[list[float]]:
    return [part[2:].tolist() for part in x.split(batch.lengths)]


def test_leave_one_out_by_hand():
    found = advantages_of(REWARDS, GROUP, "leave_one_out", "none", 1, 0.0)
    assert found.tolist() == pytest.approx([0.75, -0.75, 0.0, 2.25, -2.25, 0.0])


def test_no_baseline_leaves_the_reward():
    assert advantages_of(REWARDS, GROUP, "none", "none", 1, 0.0).tolist() == REWARDS.tolist()


@pytest.mark.parametrize("ddof", [0, 1])
def test_scales_by_definition(ddof):
    means = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    stds = [torch.std(REWARDS[g == GROUP], correction=ddof) for g in (0, 0, 0, 1, 1, 1)]
    expected = [(float(r) - m) / (float(s) + 1e-4) for r, m, s in zip(REWARDS, means, stds)]
    assert advantages_of(REWARDS, GROUP, "group_mean", "group", ddof, 1e-4).tolist() == (
        pytest.approx(expected)
    )
    whole = float(torch.std(REWARDS, correction=ddof))
    expected = [(float(r) - m) / (whole + 1e-4) for r, m in zip(REWARDS, means)]
    assert advantages_of(REWARDS, GROUP, "group_mean", "batch", ddof, 1e-4).tolist() == (
        pytest.approx(expected)
    )


def test_leave_one_out_deviation_by_definition():
    """NeMo RL: baseline and deviation of the other members; no division where that is 0."""
    found = advantages_of(REWARDS, GROUP, "leave_one_out", "leave_one_out", 1, 1e-6)
    for i, reward in enumerate(REWARDS):
        others = torch.stack([REWARDS[j] for j in range(6) if GROUP[j] == GROUP[i] and j != i])
        expected = float(reward - others.mean()) / (float(others.std()) + 1e-6)
        assert float(found[i]) == pytest.approx(expected)
    alike = torch.tensor([1.0, 1.0, 3.0]).double()
    found = advantages_of(alike, torch.zeros(3).long(), "leave_one_out", "leave_one_out", 1, 1e-6)
    assert float(found[2]) == pytest.approx(2.0), "the others do not deviate"
    pair = advantages_of(alike[1:], torch.zeros(2).long(), "leave_one_out", "leave_one_out", 1, 0.0)
    assert pair.tolist() == pytest.approx([-2.0, 2.0]), "a pair has no deviation"


def test_unscored_completions_take_no_part():
    rewards = REWARDS.clone()
    rewards[0] = float("nan")
    for baseline in ("group_mean", "leave_one_out", "none"):
        for scale in ("group", "leave_one_out", "batch", "none"):
            found = advantages_of(rewards, GROUP, baseline, scale, 1, 1e-6)
            assert found[0] == 0.0
            apart = advantages_of(rewards[1:], GROUP[1:], baseline, scale, 1, 1e-6)
            torch.testing.assert_close(found[1:], apart)


def test_reward_to_go():
    values = draws(1)
    batch = batch_of(x=values)
    found = by_sequence(to_go(batch.per_token["x"], batch), batch)
    for row, expected in zip(found, values):
        assert row == pytest.approx([sum(expected[t:]) for t in range(len(expected))])


def test_whitening():
    batch = batch_of(x=draws(2))
    found = whiten(batch.per_token["x"], batch.loss_mask)[batch.loss_mask]
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(found.std()) == pytest.approx(1.0, rel=1e-6)
    assert whiten(batch.per_token["x"], batch.loss_mask)[~batch.loss_mask].abs().max() == 0


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.8, 0.0), (0.97, 0.6)])
def test_gae_is_the_sum_of_discounted_errors(gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l}, the definition, not the recursion."""
    rewards, values = draws(3), draws(4)
    batch = batch_of(rewards=rewards, values=values)
    bootstrap = torch.tensor([0.0, 0.0, 0.7, 0.0, -0.3, 0.0]).double()
    advantages, returns = gae(
        batch.per_token["rewards"], batch.per_token["values"], bootstrap, batch, gamma, lam
    )
    for i, row in enumerate(by_sequence(advantages, batch)):
        v = [*values[i], float(bootstrap[i])]
        deltas = [r + gamma * v[t + 1] - v[t] for t, r in enumerate(rewards[i])]
        expected = [
            sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(row))
        ]
        assert row == pytest.approx(expected)
        assert by_sequence(returns, batch)[i] == pytest.approx(
            [a + value for a, value in zip(expected, values[i])]
        )


def test_gae_skips_tokens_between_two_actions():
    """A tool's answer lies between two actions: the second action's value follows the first's."""
    mask = torch.tensor([False, True, False, False, True])
    row = Sequence(torch.ones(5, dtype=torch.int64), mask)
    row.per_token = {"r": torch.tensor([0.0, 0.1, 9.0, 9.0, 1.0]), "v": torch.ones(5) * 0.5}
    batch = pack([row])
    found, _ = gae(batch.per_token["r"], batch.per_token["v"], torch.zeros(1), batch, 1.0, 1.0)
    assert found.tolist() == pytest.approx([0.0, 0.1 + 1.0 - 0.5, 0.0, 0.0, 1.0 - 0.5])


class Fixed:
    """Stands for the models: outputs that are given."""

    def __init__(self, **outputs: torch.Tensor) -> None:
        self.given, self.is_reference = outputs, False

    def logprobs(self, batch: Batch, max_tokens: int) -> torch.Tensor:
        return self.given["ref" if self.is_reference else "old"]

    def outputs(self, batch: Batch, max_tokens: int, values: bool = False) -> Output:
        found = self.given
        return Output(found["old"], values=found["values"], last_values=found["last_values"])

    def reference(self) -> Any:
        return self

    def __enter__(self) -> None:
        self.is_reference = True

    def __exit__(self, *error: object) -> None:
        self.is_reference = False


def prepared(method: str, **keys: Any) -> tuple[Batch, dict[str, list[list[float]]]]:
    names = ("old", "ref", "values", "sampler")
    drawn = {name: draws(seed) for seed, name in enumerate(names, 10)}
    batch = batch_of(**drawn)
    given = {name: batch.per_token.pop(name) for name in drawn}
    batch.per_token["sampler_logprobs"] = given["sampler"]
    last = torch.tensor([0.3, -0.2, 0.9, 0.1, 0.4, -0.6]).double()
    models: Any = Fixed(**given, last_values=last)
    config = tiny.config_of(method, **keys)
    return algorithm_named(method).prepare(batch, models, config), drawn


kl_logprobs = pytest.mark.parametrize(("source", "of"), [("sampler", "sampler"), ("policy", "old")])


@kl_logprobs
def test_reinforce_plus_plus(source, of):
    """R less beta times the k1 of this and all later tokens, whitened over the step's tokens."""
    batch, drawn = prepared("reinforce", beta=0.2, kl_logprobs=source)
    assert ("old_logprobs" in batch.per_token) == (source == "policy"), "a forward pass too many"
    raw = []
    for i, (old, ref) in enumerate(zip(drawn[of], drawn["ref"])):
        kl = [a - b for a, b in zip(old, ref)]
        raw += [float(REWARDS[i]) - 0.2 * sum(kl[t:]) for t in range(len(kl))]
    mean = sum(raw) / len(raw)
    std = math.sqrt(sum((x - mean) ** 2 for x in raw) / (len(raw) - 1) + 1e-8)
    expected = [(x - mean) / std for x in raw]
    found = batch.per_token["advantages"][batch.loss_mask]
    assert found.tolist() == pytest.approx(expected)


@kl_logprobs
def test_rloo_takes_the_penalty_off_the_reward_before_its_baseline(source, of):
    batch, drawn = prepared("rloo", beta=0.2, kl_logprobs=source)
    whole = [
        float(REWARDS[i]) - 0.2 * sum(a - b for a, b in zip(old, ref))
        for i, (old, ref) in enumerate(zip(drawn[of], drawn["ref"]))
    ]
    for i, row in enumerate(by_sequence(batch.per_token["advantages"], batch)):
        others = [whole[j] for j in range(6) if GROUP[j] == GROUP[i] and j != i]
        assert row == pytest.approx([whole[i] - sum(others) / 2] * LENGTHS[i])


def test_ppo_advantages_and_returns():
    """The reward at the last token, a penalty at each, a value where the completion was cut off."""
    batch, drawn = prepared("ppo", beta=0.2, whiten_advantages=False, missing_eos_penalty=0.5)
    for i in range(6):
        old, ref, values = (drawn[name][i] for name in ("old", "ref", "values"))
        rewards = [-0.2 * (a - b) for a, b in zip(old, ref)]
        rewards[-1] += float(REWARDS[i]) - 0.5 * (i == 2)
        v = [*values, 0.9 if i == 2 else 0.0]
        advantage, expected = 0.0, []
        for t in reversed(range(LENGTHS[i])):
            advantage = rewards[t] + v[t + 1] - v[t] + 0.95 * advantage
            expected.insert(0, advantage)
        assert by_sequence(batch.per_token["advantages"], batch)[i] == pytest.approx(expected)
        returns = [a + b for a, b in zip(expected, values)]
        assert by_sequence(batch.per_token["returns"], batch)[i] == pytest.approx(returns)


def total(method: str, out: Output, batch: Batch, **keys: Any) -> torch.Tensor:
    loss = algorithm_named(method).loss(out, batch, tiny.config_of(method, **keys))
    terms = [term / UNITS[unit](batch) for unit, term in loss.terms.items()]
    return torch.stack(terms).sum()


def moved(batch: Batch, seed: int) -> torch.Tensor:
    """Log-probs away from the old ones, by enough for the clip."""
    noise = torch.randn(batch.num_tokens, generator=torch.Generator().manual_seed(seed)) * 0.3
    return (batch.per_token["old_logprobs"] + noise.double()) * batch.loss_mask


def test_ppo_loss_written_out():
    batch, _ = prepared("ppo", whiten_advantages=False)
    new, values = moved(batch, 5), batch.per_token["old_values"] + moved(batch, 6) + 1
    policy, value = [], []
    for t in batch.loss_mask.nonzero()[:, 0].tolist():
        a, g, v0 = (float(batch.per_token[n][t]) for n in ("advantages", "returns", "old_values"))
        r = math.exp(float(new[t]) - float(batch.per_token["old_logprobs"][t]))
        policy.append(-min(r * a, min(max(r, 0.8), 1.2) * a))
        v = float(values[t])
        near = v0 + min(max(v - v0, -0.2), 0.2)
        value.append(0.5 * max((v - g) ** 2, (near - g) ** 2))
    assert len({round(x, 6) for x in value}) == len(value)
    n = len(policy)
    expected = sum(policy) / n + 0.5 * sum(value) / n
    found = total("ppo", Output(new, values=values), batch)
    assert float(found) == pytest.approx(expected)


def test_gspo_written_out():
    batch, _ = prepared("grpo", preset="gspo", num_inner_epochs=2)
    new = moved(batch, 5) * 0.001 + batch.per_token["old_logprobs"] * 0.999
    rows = []
    ratios, olds = by_sequence(new, batch), by_sequence(batch.per_token["old_logprobs"], batch)
    for i, (now, old) in enumerate(zip(ratios, olds)):
        s = math.exp(sum(a - b for a, b in zip(now, old)) / len(now))
        a = by_sequence(batch.per_token["advantages"], batch)[i][0]
        rows.append(-min(s * a, min(max(s, 1 - 3e-4), 1 + 4e-4) * a))
    found = total("grpo", Output(new), batch, preset="gspo")
    assert float(found) == pytest.approx(sum(rows) / 6)


def test_cispo_gradient_is_the_weighted_score():
    """Its value means nothing; its gradient is min(r, 5) A / N for every token, none is cut off."""
    batch, _ = prepared("grpo", preset="cispo", num_inner_epochs=2)
    old = batch.per_token["old_logprobs"]
    new = (old + 8 * (moved(batch, 5) - old) * batch.loss_mask).requires_grad_()
    total("grpo", Output(new), batch, preset="cispo").backward()
    ratio = (new.detach() - old).exp()
    count = int(batch.loss_mask.sum())
    expected = -ratio.clamp(max=5.0) * batch.per_token["advantages"] / count
    torch.testing.assert_close(new.grad[batch.loss_mask], expected[batch.loss_mask])
    assert (ratio[batch.loss_mask] > 5).any(), "the bound is not met"


# Per-token loss of each framework's default, written from its definition; sums over all tokens.
def verl(r: float, a: float, d: float) -> float:
    clipped = max(-r * a, -min(max(r, 0.8), 1.2) * a)
    return min(clipped, -3.0 * a) if a < 0 else clipped


def plain(r: float, a: float, d: float) -> float:
    return -min(r * a, min(max(r, 0.8), 1.2) * a)


def nemo(r: float, a: float, d: float) -> float:
    return plain(r, a, d) + 0.01 * (math.exp(-d) - 1 + d)


def by_group(rewards: list[float], i: int, eps: float) -> float:
    group = rewards[:3] if i < 3 else rewards[3:]
    mean = sum(group) / 3
    return (rewards[i] - mean) / (math.sqrt(sum((x - mean) ** 2 for x in group) / 2) + eps)


def by_others(rewards: list[float], i: int) -> float:
    others = [x for j, x in enumerate(rewards) if (j < 3) == (i < 3) and j != i]
    mean = sum(others) / 2
    return (rewards[i] - mean) / (math.sqrt(sum((x - mean) ** 2 for x in others)) + 1e-6)


@pytest.mark.parametrize("name", ["trl", "verl", "openrlhf", "nemo", "dapo", "dr_grpo"])
def test_presets_are_the_frameworks_formulas(name):
    batch, drawn = prepared("grpo", preset=name, num_inner_epochs=2)
    new = moved(batch, 8) * 3 - 2 * batch.per_token["old_logprobs"]
    rewards = REWARDS.tolist()
    lines: list[float] = []
    for i, now in enumerate(by_sequence(new, batch)):
        old, ref = drawn["old"][i], drawn["ref"][i]
        for t, x in enumerate(now):
            r, d = math.exp(x - old[t]), x - ref[t]
            if name == "trl":
                lines.append(plain(r, by_group(rewards, i, 1e-4), d))
            elif name == "verl":
                lines.append(verl(r, by_group(rewards, i, 1e-6), d))
            elif name == "openrlhf":
                later = sum(a - b for a, b in zip(old[t:], ref[t:]))
                lines.append(plain(r, by_group(rewards, i, 1e-9) - 0.01 * later, d))
            elif name == "nemo":
                lines.append(nemo(r, by_others(rewards, i), d))
            elif name == "dapo":
                a = by_group(rewards, i, 1e-4)
                lines.append(-min(r * a, min(max(r, 0.8), 1.28) * a))
            else:  # dr_grpo: sum per completion over max_new_tokens = 5, mean over 6 completions
                a = rewards[i] - sum(rewards[:3] if i < 3 else rewards[3:]) / 3
                lines.append(plain(r, a, d) * sum(LENGTHS) / (5 * 6))
    expected = sum(lines) / len(lines)
    assert float(total("grpo", Output(new), batch, preset=name)) == pytest.approx(expected)


def test_a_preset_gives_way_to_a_key_and_is_written_out():
    config = tiny.config_of("grpo", preset="dapo", epsilon_high=0.3)
    assert (config.epsilon_high, config.reduction) == (0.3, "token")
    again = type(config).model_validate(config.model_dump())
    assert again == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_documented(name):
    from conftest import ROOT

    assert f"`{name}`" in (ROOT / "docs" / "methods.md").read_text()


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="no preset 'dappo'; did you mean dapo"):
        tiny.config_of("grpo", preset="dappo")


def test_ppo_takes_no_preset():
    with pytest.raises(ValueError, match=r"ppo has its value model: set the keys themselves"):
        tiny.config_of("ppo", preset="dapo")


def test_truncated_completions_leave_after_the_baseline():
    batch, _ = prepared("grpo", mask_truncated_completions=True)
    assert batch.num_sequences == 5
    whole, _ = prepared("grpo")
    rows = by_sequence(whole.per_token["advantages"], whole)
    kept = [row for i, row in enumerate(rows) if i != 2]
    assert by_sequence(batch.per_token["advantages"], batch) == kept


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.10, 0.2),  # on target
        (0.11, 0.2 * (1 + 0.1 * 0.1)),
        (0.95, 0.2 * (1 + 0.1 * 0.2)),  # the error is cut at 20 %
        (0.02, 0.2 * (1 - 0.1 * 0.2)),
        (-0.5, 0.2 * (1 - 0.1 * 0.2)),  # k1 may be negative
    ],
)
def test_beta_follows_the_kl(kl, expected):
    config = tiny.config_of("ppo", beta=0.2, kl_target=0.1)
    assert algorithm_named("ppo").adapt({"kl": kl}, config)["beta"] == pytest.approx(expected)
    assert algorithm_named("ppo").adapt({"kl": kl}, tiny.config_of("ppo", beta=0.2)) == {}


def test_the_adapted_beta_is_the_one_that_counts():
    """Two trainers, one with the coefficient in its config, the other with it as its state."""
    found = []
    for beta, adapted in ((0.3, {}), (0.1, {"beta": 0.3})):
        trainer = tiny.trainer_of("grpo", tiny.models(), beta=beta)
        trainer.adapted = adapted
        batch = tiny.raw_batch(trainer.algorithm, trainer.models, trainer.config)
        with torch.no_grad():  # away from the reference, where the penalty has a gradient
            for i, parameter in enumerate(trainer.models.policy.parameters()):
                parameter.add_(0.01 * (i % 3))
        batch = trainer.algorithm.prepare(batch, trainer.models, trainer.method_config())
        found.append(tiny.gradients(trainer, batch))
    tiny.assert_same(*found)


def test_a_target_without_a_start_is_an_error():
    with pytest.raises(ValueError, match=r"kl_target adapts beta: set trainer.beta"):
        tiny.config_of("grpo", kl_target=0.1)
