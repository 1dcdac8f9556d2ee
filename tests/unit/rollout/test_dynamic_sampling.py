"""Groups without signal are replaced by those of other prompts; the step keeps its size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.data.kinds.prompt import Prompt
from posttrain.rollout.config import RolloutConfig
from posttrain.rollout.sampler import Rollout
from posttrain.rollout.source import RolloutSource

NUM_PROMPTS, PER_STEP, GROUP_SIZE = 40, 8, 4
HARD = set(range(0, NUM_PROMPTS, 2))  # every completion of these prompts is wrong


class Answers:
    """A sampler whose completions are the seed that each was asked with."""

    policy = SimpleNamespace(version=0)

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def update_weights(self) -> None:
        pass

    def generate(self, prompts: Any, params: Any, seeds: Any, finished: Any) -> list[Rollout]:
        self.seeds += seeds
        return [
            Rollout(list(p), [seed % 97, 3], [-1.0, -1.0], "stop", 0)
            for p, seed in zip(prompts, seeds)
        ]


def reward(prompts: Any, completions: Any, completion_ids: Any, number: list[int]) -> list[float]:
    return [0.0 if n in HARD else float(ids[0] % 2) for n, ids in zip(number, completion_ids)]


def source(max_resamples: int) -> tuple[RolloutSource, Answers]:
    prompts = [Prompt([10 + i, 5], {"prompt": "?", "number": i}) for i in range(NUM_PROMPTS)]
    tokenizer = SimpleNamespace(decode=lambda ids: str(ids))
    renderer: Any = SimpleNamespace(decode=str, tokenizer=tokenizer, stop_token_ids=(3,))
    sampler = Answers()
    config = RolloutConfig(group_size=GROUP_SIZE, max_new_tokens=8, max_resamples=max_resamples)
    made = RolloutSource(
        prompts, renderer, sampler, reward, config, PER_STEP, 99, 7, lambda row: None, False
    )
    return made, sampler


def flat_groups(batch: Any) -> int:
    rewards = batch.per_seq["rewards"].view(-1, GROUP_SIZE)
    return int((rewards.std(dim=1) == 0).sum())


def test_flat_groups_are_replaced_and_the_step_keeps_its_size():
    batch, metrics = source(0)[0].next_batch()
    assert flat_groups(batch) >= 2, "the test needs something to replace"
    assert "num_resampled" not in metrics
    found, sampler = source(20)
    batch, metrics = found.next_batch()
    assert flat_groups(batch) == 0
    assert batch.num_sequences == PER_STEP * GROUP_SIZE
    assert batch.per_seq["group"].unique(return_counts=True)[1].tolist() == [GROUP_SIZE] * PER_STEP
    assert metrics["num_resampled"][0] == len(sampler.seeds) / GROUP_SIZE - PER_STEP
    assert len(set(sampler.seeds)) == len(sampler.seeds), "a completion drew another's noise"


def test_it_gives_up_after_so_many_times():
    found, sampler = source(2)
    HARD.update(range(NUM_PROMPTS))
    try:
        batch, _ = found.next_batch()
    finally:
        HARD.difference_update(range(1, NUM_PROMPTS, 2))
    assert flat_groups(batch) == PER_STEP
    assert len(sampler.seeds) == 3 * PER_STEP * GROUP_SIZE


def test_groups_with_signal_stay_where_they_are():
    plain, other = source(0)[0], source(20)[0]
    kept = {}
    for made in (plain, other):
        batch, _ = made.next_batch()
        kept[made.config.max_resamples] = batch.input_ids.view(-1, 4)[::GROUP_SIZE, 0].tolist()
    same = [a == b for a, b in zip(kept[0], kept[20])]
    assert any(same)
    assert [b - 10 in HARD for b in kept[20]] == [False] * PER_STEP


def test_a_resumed_source_goes_on_with_the_next_substitutes():
    through, _ = source(20)
    through.next_batch()
    state = through.state_dict()
    expected = through.next_batch()[0]
    resumed, _ = source(20)
    resumed.load_state_dict(state)
    assert resumed.next_batch()[0].input_ids.tolist() == expected.input_ids.tolist()
    again, _ = source(20)
    again.load_state_dict({**state, "num_substitutes": 0})
    assert again.next_batch()[0].input_ids.tolist() != expected.input_ids.tolist()


def test_a_failed_generation_is_done_again_in_whole(monkeypatch: pytest.MonkeyPatch):
    expected = source(20)[0].next_batch()[0]
    found, sampler = source(20)
    generate, calls = sampler.generate, []

    def failing(*args: Any) -> list[Rollout]:
        calls.append(args)
        if len(calls) == 2:  # while it replaces groups
            raise RuntimeError("the server is gone")
        return generate(*args)

    monkeypatch.setattr(sampler, "generate", failing)
    with pytest.raises(RuntimeError):
        found.next_batch()
    assert found.state_dict() == source(20)[0].state_dict()
    assert found.next_batch()[0].input_ids.tolist() == expected.input_ids.tolist()
