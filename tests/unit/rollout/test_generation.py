"""Completions are scored while others are sampled, and sampled while the step before trains."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from test_resume import assert_same_bits, metrics, run, run_killed_and_resumed, samples

from posttrain.data.kinds.prompt import Prompt
from posttrain.model.folder import checkpoints_in
from posttrain.rewards.base import each_row_alone
from posttrain.rewards.scoring import combine_scores, delegate, score_each
from posttrain.rollout.config import RolloutConfig
from posttrain.rollout.native.copied import CopySampler
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import EngineError, Rollout, SamplingParams
from posttrain.rollout.source import RolloutSource
from posttrain.runs.config import parse_config
from posttrain.training.trainer_state import STATE

PATIENCE = 20.0  # seconds until a test that waits in vain gives up
AHEAD = {"one_step_off": True}


def wait_for(event: threading.Event, what: str) -> None:
    assert event.wait(PATIENCE), f"{what} never happened"


class Engine:
    """Answers with the tokens [place, stop]; `before` is called ahead of each completion."""

    def __init__(self, before: Any = lambda calls, place: None) -> None:
        self.policy = SimpleNamespace(version=0)
        self.given: int | None = None
        self.before, self.calls = before, 0

    def update_weights(self) -> None:
        self.given = self.policy.version

    def generate(self, prompts: Any, params: Any, seeds: Any, finished: Any) -> list[Rollout]:
        self.calls += 1
        rollouts = []
        version = self.given
        for place, prompt in enumerate(prompts):
            self.before(self.calls, place)
            rollouts.append(Rollout(list(prompt), [place % 50, 3], [-1.0, -1.0], "stop", version))
            finished(place, rollouts[-1])
        return rollouts


def rewarded(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
    return [float(ids[0]) for ids in completion_ids]


def source_of(
    sampler: Any, reward: Any = rewarded, num_steps: int = 9, beside: bool = True, **keys: Any
) -> Any:
    prompts = [Prompt([10 + i, 5], {"prompt": "?"}) for i in range(8)]
    renderer: Any = SimpleNamespace(
        decode=str, stop_token_ids=(3,), tokenizer=SimpleNamespace(decode=str)
    )
    config = RolloutConfig(group_size=4, max_new_tokens=8, **keys)
    return RolloutSource(
        prompts, renderer, sampler, reward, config, 2, num_steps, 0, lambda row: None, beside
    )


def test_a_group_is_scored_while_another_is_sampled():
    scored = threading.Event()

    def before(calls: int, place: int) -> None:
        if place == 4:  # the second group
            wait_for(scored, "the first group's score")

    def reward(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        assert len(completions) == 4, "a call holds one group"
        assert threading.current_thread() is threading.main_thread()
        scored.set()
        return rewarded(prompts, completions, completion_ids)

    batch, found = source_of(Engine(before), reward).next_batch()
    assert batch.per_seq["rewards"].tolist() == list(range(8))
    assert found["reward"] == (28.0, 8.0)


def test_only_what_a_score_adds_is_counted_as_its_time():
    def slow(seconds: float) -> Any:
        def reward(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
            time.sleep(seconds)
            return rewarded(prompts, completions, completion_ids)

        return reward

    def before(calls: int, place: int) -> None:
        time.sleep(0.1)

    beside = source_of(Engine(before), slow(0.3)).next_batch()[1]
    # 8 completions of 0.1 s; the first group's 0.3 s lie within, the second's come after
    assert beside["time/generate"][0] == pytest.approx(0.8, abs=0.15)
    assert beside["time/score"][0] == pytest.approx(0.3, abs=0.15)


def test_the_next_step_is_sampled_while_this_one_trains():
    training = threading.Event()

    def before(calls: int, place: int) -> None:
        if calls == 2:
            wait_for(training, "training beside the sampling")

    engine = Engine(before)
    source = source_of(engine, num_steps=3, **AHEAD)
    ages = []
    for _ in range(3):
        _, found = source.next_batch()
        ages.append(found["sampling/staleness"])
        training.set()
        engine.policy.version += 2  # two updates on each batch
    assert ages == [(0.0, 8.0), (16.0, 8.0), (16.0, 8.0)]
    assert engine.calls == 3, "nothing is sampled beyond the last step"


def test_by_default_nothing_is_sampled_ahead():
    engine = Engine()
    source = source_of(engine)
    for calls in (1, 2):
        _, found = source.next_batch()
        assert engine.calls == calls
        assert "sampling/staleness" not in found


def test_weights_that_were_not_taken_over_are_caught_at_once():
    engine = Engine()
    source = source_of(engine)
    source.next_batch()
    engine.policy.version = 1
    engine.update_weights = lambda: None  # type: ignore[method-assign]
    with pytest.raises(
        EngineError, match=r"version 0, but the policy had version 1: .*not delivered"
    ):
        source.next_batch()


def test_a_reward_that_fails_ends_the_sampling():
    ended = threading.Event()

    def before(calls: int, place: int) -> None:
        if place == 4:
            wait_for(ended, "the reward's failure")

    def reward(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        ended.set()
        raise KeyError("no such thing")

    others = set(threading.enumerate())  # of servers in other tests
    engine = Engine(before)
    source = source_of(engine, reward)
    with pytest.raises(ValueError, match=r"row 1 .*KeyError"):
        source.next_batch()
    left = set(threading.enumerate()) - others
    assert not [t for t in left if t.daemon and t.name.startswith("Thread")]


def test_sampling_that_is_not_beside_is_in_the_main_thread():
    def before(calls: int, place: int) -> None:
        assert threading.current_thread() is threading.main_thread()

    source = source_of(Engine(before), beside=False)
    batch, found = source.next_batch()
    assert batch.per_seq["rewards"].tolist() == list(range(8))
    assert found["time/generate"][0] >= 0


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_a_failed_generation_leaves_the_step_to_be_done(ahead, beside):
    failing = {"call": 2}

    def before(calls: int, place: int) -> None:
        if calls == failing["call"] and place == 5:
            raise EngineError("server down")

    engine = Engine(before)
    source = source_of(engine, one_step_off=ahead, beside=beside)
    source.next_batch()
    if ahead:
        assert source.state_dict()["ahead"] is None
    with pytest.raises(EngineError, match="server down"):
        source.next_batch()
    assert source.step == 1
    batch, _ = source.next_batch()
    assert source.step == 2
    assert batch.num_sequences == 8


def test_closing_ends_what_is_sampled_ahead():
    go_on = threading.Event()

    def before(calls: int, place: int) -> None:
        if calls == 2:
            wait_for(go_on, "the end")

    source = source_of(Engine(before), **AHEAD)
    source.next_batch()
    threading.Timer(0.2, go_on.set).start()
    source.close()
    assert len(source.ahead.pending[2].generation.rollouts) == 0, "it went on"


def test_calls_of_an_async_reward_wait_together():
    import asyncio

    waiting = 0
    most = 0

    async def reward(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.05)
        waiting -= 1
        return [float(text) for text in completions]

    calls = [(["?"] * 2, [str(i), str(i + 1)], [[1]] * 2, [{}] * 2) for i in range(5)]
    assert score_each(reward, calls) == [[i, i + 1] for i in range(5)]
    assert most == 5


@pytest.mark.parametrize(
    ("parts", "num_calls"),
    [(["marked"], 1), (["marked", "marked"], 1), (["marked", "unmarked"], 3), (["unmarked"], 3)],
)
def test_rewards_that_look_at_one_row_at_a_time_get_all_groups_in_a_call(parts, num_calls):
    asked: list[list[str]] = []

    def unmarked(
        prompts: Any, completions: Any, completion_ids: Any, *, answer: Any, **columns: Any
    ) -> list[float]:
        asked.append(completions)
        return [float(text == a) for text, a in zip(completions, answer)]

    @each_row_alone
    def marked(
        prompts: Any, completions: Any, completion_ids: Any, *, answer: Any, **columns: Any
    ) -> list[float]:
        return unmarked(prompts, completions, completion_ids, answer=answer)

    kinds = {"marked": marked, "unmarked": unmarked}
    inner = {f"{name} {i}": kinds[name] for i, name in enumerate(parts)}

    def whole(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
        def total(found: dict[str, Any]) -> list[float]:
            return [sum(scores) for scores in zip(*found.values())]

        return combine_scores(inner, prompts, completions, completion_ids, columns, total)

    reward = delegate(whole, inner.values())
    calls = [
        (["?"] * 2, ["1", str(i)], [[1]] * 2, [{"answer": "1"}, {"answer": "1", "more": i}])
        for i in range(3)
    ]
    assert score_each(reward, calls) == [[len(parts), len(parts) * (i == 1)] for i in range(3)]
    assert len(asked) == num_calls * len(parts)


def test_the_first_failure_ends_the_others():
    import asyncio

    async def reward(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        if completions[0] == "bad":
            raise KeyError("gone")
        await asyncio.sleep(PATIENCE)
        return [0.0] * len(completions)

    calls = [([""], [text], [[1]], [{}]) for text in ("slow", "bad", "slow")]
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"row 1 .*KeyError.*'bad'"):
        score_each(reward, calls)
    assert time.perf_counter() - started < PATIENCE / 2


def test_a_model_that_is_loaded_meanwhile_changes_no_completion():
    """Loading sets torch's default dtype, which is everybody's."""
    policy = tiny.models().policy
    arguments = ([[5, 9], [6, 9]] * 8, SamplingParams(12, (tiny.STOP,)), range(16))
    expected = NativeSampler(policy, 8).generate(*arguments)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = NativeSampler(policy, 8).generate(*arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected


def test_a_failing_call_among_async_ones_is_named():
    async def reward(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        return [1 / (text != "bad") for text in completions]

    calls = [([""] * 2, ["good", text], [[1]] * 2, [{}] * 2) for text in ("good", "bad")]
    with pytest.raises(ValueError, match=r"row 2 .*ZeroDivisionError.*'bad'"):
        score_each(reward, calls)


@pytest.mark.parametrize("max_num_seqs", [3, 64])
def test_every_completion_is_told_of_once_when_it_has_ended(max_num_seqs):
    policy = tiny.models().policy
    told: dict[int, Rollout] = {}

    def finished(place: int, rollout: Rollout) -> None:
        assert place not in told
        ids = rollout.response_ids
        assert (ids[-1] == tiny.STOP) == (rollout.finish_reason == "stop")
        assert ids[-1] == tiny.STOP or len(ids) == 12
        told[place] = rollout

    prompts = [[5 + i % 7, 9] for i in range(20)]
    params = SamplingParams(12, (tiny.STOP,))
    rollouts = NativeSampler(policy, max_num_seqs).generate(prompts, params, range(20), finished)
    assert [told[i] for i in range(20)] == rollouts
    order = list(told)
    assert order != sorted(order), "all ended together: nothing is tested"


def test_the_copy_stays_with_the_weights_it_was_given():
    models = tiny.models()
    whole = tiny.models().policy
    sampler = CopySampler(models.policy, whole, 8)
    arguments = ([[5, 9]] * 6, SamplingParams(12, (tiny.STOP,)), range(6))
    before = sampler.generate(*arguments)
    with torch.no_grad():
        for parameter in models.policy.parameters():
            parameter.add_(0.1)
    models.policy.version = 1
    assert sampler.generate(*arguments) == before
    sampler.update_weights()
    after = sampler.generate(*arguments)
    assert [r.response_ids for r in after] != [r.response_ids for r in before]
    assert after == NativeSampler(models.policy, 8).generate(*arguments)


def off_tree(folder: Path, method: str, **keys: Any) -> dict[str, Any]:
    tree = tiny.run_config(folder, method, sampler_correction="token", **keys)
    tree["rollout"]["one_step_off"] = True
    return tree


@pytest.mark.parametrize("method", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_run_one_step_off_resumes_bit_for_bit(method, tmp_path, monkeypatch):
    """What was sampled ahead comes from weights that are gone: it is in the checkpoint."""
    tree = off_tree(tmp_path, method, save_steps=1, keep_checkpoints=9, eval_steps=2)
    tree["rollout"]["max_resamples"] = 1
    tree["eval"] = {"max_samples": 4, "max_new_tokens": 8}
    tree["trainer"]["output_dir"] = str(tmp_path / "whole")
    whole = run(tree)
    ages = [line.get("sampling/staleness") for line in metrics(whole)]
    updates = parse_config(tree, "test").trainer.num_inner_epochs
    first, *later = [age for age in ages if age is not None]
    assert first == 0
    # where groups without signal are replaced, it is by completions of the newest weights
    assert len(later) == 5
    assert all(0 < age <= updates for age in later)
    assert updates in later
    differences = [
        line["sampling/sampling_logp_difference/mean"]
        for line in metrics(whole)
        if "sampling/staleness" in line
    ]
    assert differences[0] < 1e-5
    assert min(differences[1:]) > 1e-4, "the completions are not from older weights"
    tree["trainer"]["output_dir"] = str(tmp_path / "parts")
    parts = run_killed_and_resumed(tree, 3, monkeypatch)
    assert metrics(whole) == metrics(parts)
    assert samples(whole) == samples(parts)
    assert_same_bits(whole, parts)
    state = torch.load(checkpoints_in(whole)[2] / STATE, weights_only=True)["source"]
    assert list(state["ahead"]) == ["4"], "not the step after the third"
    assert sorted(state["ahead"]["4"]) == ["0", "1", "2", "3"]


def test_older_completions_without_a_correction_are_an_error(tmp_path):
    tree = off_tree(tmp_path, "grpo")
    tree["trainer"]["sampler_correction"] = "none"
    with pytest.raises(ValueError, match=r"older weights: set trainer.sampler_correction.* token"):
        parse_config(tree, "test")
    tree = off_tree(tmp_path, "grpo")
    tree["rollout"]["engine"] = "vllm"
    with pytest.raises(ValueError, match=r"one_step_off: vLLM .* use rollout.engine: server"):
        parse_config(tree, "test")
