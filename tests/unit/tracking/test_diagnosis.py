"""Each sign is said once when it appears, in the words of its cause, and not in a healthy run."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.tracking.diagnosis import WINDOW, Diagnosis

HEALTHY = {
    "loss": 0.01,
    "grad_norm": 0.5,
    "reward": 0.4,
    "reward_std": 0.5,
    "frac_reward_zero_std": 0.5,
    "completions/clipped_ratio": 0.1,
    "completions/mean_length": 50.0,
    "entropy": 0.4,
    "kl": 0.01,
    "clip_ratio/low_mean": 0.01,
    "clip_ratio/high_mean": 0.02,
    "verdicts/correct": 40.0,
    "verdicts/wrong": 60.0,
}
FLAT = {"frac_reward_zero_std": 1.0, "reward_std": 0.0}


def said(*changes: dict[str, Any]) -> list[str]:
    diagnosis = Diagnosis()
    return [text for change in changes for text in diagnosis.step({**HEALTHY, **change})]


def test_a_healthy_run_is_left_in_peace():
    assert said(*[{}] * (2 * WINDOW)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({**FLAT, "verdicts/wrong": 0.0}, "all completions are right"),
        ({**FLAT, "verdicts/correct": 0.0}, "all completions are wrong"),
        ({**FLAT, "completions/clipped_ratio": 1.0}, "cut off: raise rollout.max_new_tokens"),
        ({"frac_reward_zero_std": 1.0}, "some prompts are always solved and the others never"),
        ({"loss": 0.0}, "the loss is 0 while the gradient is not"),
        ({"kl": 3.0}, "is 3.0 nats per token away from its reference"),
        ({"clip_ratio/low_mean": 0.4}, "42% of the tokens are outside the clip range"),
    ],
)
def test_a_lasting_sign_is_said_once(change, words):
    found = said(*[{}] * 5, *[change] * 2)
    assert found == [], "two steps are not lasting"
    found = said(*[{}] * 5, *[change] * 20)
    assert len(found) == 1
    assert words in found[0]
    found = said(*[change] * 5, *[{}] * 5, *[change] * 5)
    assert len(found) == 2, "gone and come again"


PAIRS = {"loss": 0.6, "grad_norm": 1.0, "rewards/accuracies": 0.7}


def pairs_said(rewards: list[tuple[float, float]], **more: float) -> list[str]:
    diagnosis = Diagnosis()
    return [
        text
        for chosen, rejected in rewards
        for text in diagnosis.step(
            PAIRS | {"rewards/chosen": chosen, "rewards/rejected": rejected} | more
        )
    ]


def test_both_rewards_fall():
    falling = [(-0.02 * i, -0.05 * i) for i in range(2 * WINDOW)]
    (text,) = pairs_said(falling)
    assert "both fall (to -1.09 and -2.73)" in text
    assert pairs_said([(0.01 * i, -0.05 * i) for i in range(2 * WINDOW)]) == []


def test_pairs_that_are_told_apart_at_once():
    (text,) = pairs_said([(1.0, 0.0)] * 20, **{"rewards/accuracies": 1.0})
    assert "ranked correctly from the start" in text
    assert pairs_said([(1.0, 0.0)] * 20) == []


def test_the_kl_of_whole_completions_is_not_taken_for_one_of_tokens():
    assert pairs_said([(0.1, 0.0)] * 20, kl=12.0) == []


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("entropy", (0.5, 0.01), "entropy fell from 0.500 to 0.010"),
        ("completions/mean_length", (50.0, 180.0), "completions grew from 50 to 180"),
        ("completions/mean_length", (50.0, 10.0), "completions shrank from 50 to 10"),
    ],
)
def test_a_drift_is_said_once(name, values, words):
    before, after = values
    found = said(*[{name: before}] * 40, *[{name: after}] * 20)
    assert len(found) == 1
    assert words in found[0]


def test_reward_up_and_accuracy_down():
    diagnosis = Diagnosis()
    found = []
    for reward, accuracy in ((0.3, 0.5), (0.5, 0.45), (0.7, 0.4)):
        for _ in range(10):
            diagnosis.step({**HEALTHY, "reward": reward})
        found += diagnosis.evaluation({"eval_accuracy": accuracy})
    assert len(found) == 1
    assert "held-out accuracy falls" in found[0]


MISMATCH = "sampling/sampling_logp_difference/mean"


def test_weights_that_no_longer_arrive_are_said_at_once():
    usual = [{MISMATCH: 2e-4}] * 5
    assert said(*usual, {MISMATCH: 9e-4}) == []
    (found,) = said(*usual, {MISMATCH: 6e-3})
    assert "disagree by 0.006 nats" in found
    assert "check that new weights still reach the sampler" in found
    assert said(*usual, {MISMATCH: 6e-3, "sampling/staleness": 1.0}) == [], "older by right"


def test_completions_that_are_too_old():
    old = {MISMATCH: 0.08, "sampling/staleness": 1.0}
    assert said(*[old] * 2) == []
    (found,) = said(*[old] * 9)
    assert "rollout.one_step_off costs more than it saves" in found


def test_a_resumed_run_remembers_what_it_saw_and_said():
    diagnosis = Diagnosis()
    lines = [{**HEALTHY, "kl": 3.0}] * 4 + [{"eval_accuracy": 0.4}]
    diagnosis.replay(lines[:2])
    assert len(diagnosis.step(lines[2])) == 1, "two of the three steps were before the resume"
    diagnosis = Diagnosis()
    diagnosis.replay(lines)
    assert diagnosis.step(lines[3]) == [], "said before the resume"
    assert len(diagnosis.evaluations) == 1
