"""Micro-batches side by side on a CPU: the same numbers, whatever the number of workers."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import tiny
import torch
from damage import save_model_folder
from hypothesis import given
from hypothesis import strategies as st
from repeats import choice
from test_adapter_kinds import OFFERED, ROWS, load, settings
from test_invariants import updated_batch
from test_resume import assert_same_bits, metrics, run, run_killed_and_resumed

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import algorithm_named
from posttrain.common.batch import pack
from posttrain.common.parts import Group, cut
from posttrain.evaluation.loading import load_for_sampling
from posttrain.evaluation.loss import evaluate_loss
from posttrain.model import workers
from posttrain.model.forward import forward
from posttrain.model.kernels.quantized import quantised_layers
from posttrain.model.load import load_policy
from posttrain.model.workers import (
    add_gradients,
    micro_batches,
    on_workers,
    run_parts,
    twin,
    use_workers,
)
from posttrain.rollout.generation import Generation
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams
from posttrain.runs.config import parse_config
from posttrain.runs.memory import measure
from posttrain.runs.plan import plan
from posttrain.runs.train import train
from posttrain.sizing.forecast import Network, of_other_workers

METHODS = list(ALGORITHMS)


@pytest.fixture
def threads():
    """Set the number of threads, until the test has ended."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def with_workers(name, number, threads, **model_keys):
    """A trainer whose weights are the same for every number of workers."""
    keys = {"micro_batch_tokens": 90}
    trainer = tiny.trainer_of(name, tiny.models(**model_keys), **keys)
    threads(number)
    use_workers(trainer.models.policy)
    found = trainer.models.policy.workers
    assert (1 if found is None else found.number) == number
    return trainer


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_does_not_depend_on_the_number(name, threads):
    alone = with_workers(name, 1, threads)
    expected = tiny.gradients(alone, updated_batch(alone))
    for number in (2, 3):
        several = with_workers(name, number, threads)
        batch = updated_batch(several)  # prepared by workers as well
        found = tiny.gradients(several, batch)
        tiny.assert_same(expected, found)
        again = tiny.gradients(several, batch)
        assert all(torch.equal(found[key], again[key]) for key in found), "the bits of one number"


KINDS = {
    "lora": {"adapter": {"type": "lora", "r": 2}},
    "dora": {"adapter": {"type": "dora", "r": 2}},
    "loreft": {"adapter": {"type": "loreft", "rank": 2, "positions": "f1+l1"}},
    "checkpointing": {"gradient_checkpointing": True},
    "value model": {"adapter": {"type": "lora", "r": 2}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_checkpointing(kind, threads):
    name = "ppo" if kind == "value model" else "dpo"
    alone = with_workers(name, 1, threads, **KINDS[kind])
    expected = tiny.gradients(alone, updated_batch(alone))
    several = with_workers(name, 2, threads, **KINDS[kind])
    tiny.assert_same(expected, tiny.gradients(several, updated_batch(several)))


@pytest.mark.parametrize("kind", OFFERED)
def test_a_twin_of_every_adapter(kind, threads, tmp_path):
    """Its gradients are those of the adapter, in modules of its own; or it is noticed."""
    models = load(save_model_folder(tmp_path / "model"), settings(kind))
    parts = [pack([row]) for row in ROWS]

    def backward(network, part):
        (-forward(network, part).logprobs.sum()).backward()

    models.policy.train()
    for part in parts:
        backward(models.policy, part)
    expected = {name: p.grad for name, p in models.trainable().items()}
    models.policy.zero_grad(set_to_none=True)
    threads(3)
    assert use_workers(models.policy) == "3 micro-batches at a time, 1 thread each"
    list(on_workers(models.policy, parts, backward))
    add_gradients(models.policy)
    tiny.assert_same(expected, {name: p.grad for name, p in models.trainable().items()})


def test_quantised_weights_are_not_copied(threads, tmp_path):
    folder = str(save_model_folder(tmp_path / "model"))
    config = tiny.model_config(folder, adapter="lora", quantization="int8", dtype="float32")
    policy = load_policy(config, folder, tiny.CPU, seed=0)
    other = twin(policy)
    for a, b in zip(quantised_layers(policy), quantised_layers(other), strict=True):
        assert a is not b
        assert a.weight is b.weight
    threads(2)
    assert use_workers(policy) == "2 micro-batches at a time, 1 thread each"


@pytest.mark.parametrize("name", choice(METHODS, ("sft", "dpo", "grpo", "ppo", "reward_model")))
def test_a_run_and_its_resume(name, threads, tmp_path, monkeypatch):
    """Within rounding of one worker's; killed and resumed to the bit."""

    keys = {"save_steps": 1, "keep_checkpoints": 9, "micro_batch_tokens": 300}
    tree = tiny.run_config(tmp_path, name, **keys)
    tree["trainer"]["output_dir"] = str(tmp_path / "one")
    alone = metrics(run(tree))
    threads(2)
    tree["trainer"]["output_dir"] = str(tmp_path / "two")
    whole = run(tree)
    if not algorithm_named(name).online:  # whose samples rounding may change
        losses = [[line.get("loss") for line in lines] for lines in (alone, metrics(whole))]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)
    tree["trainer"]["output_dir"] = str(tmp_path / "parts")
    parts = run_killed_and_resumed(tree, 3, monkeypatch)
    assert metrics(whole) == metrics(parts)
    assert_same_bits(whole, parts)


def test_completions_are_shared_out(threads):
    models = tiny.models()
    prompts = [[4 + g, 9, 5 + 2 * g] for g in range(9) for _ in range(4)] + [[7, 8]] * 60
    params = SamplingParams(max_new_tokens=12, stop_token_ids=(tiny.STOP,))
    seeds = list(range(len(prompts)))
    alone = NativeSampler(models.policy, 64).generate(prompts, params, seeds)
    threads(3)
    use_workers(models.policy)
    told = []
    names = set()

    def finished(place, rollout):
        told.append((place, rollout.response_ids))
        names.add(threading.current_thread().name)

    several = NativeSampler(models.policy, 64).generate(prompts, params, seeds, finished)
    assert [x.response_ids for x in alone] == [x.response_ids for x in several]
    for a, b in zip(alone, several):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert sorted(told) == [(place, x.response_ids) for place, x in enumerate(several)]
    assert len(names) == 3


def test_evaluation_is_shared_out(threads):
    results = []
    for number in (1, 2):
        trainer = with_workers("sft", number, threads)
        examples = [(row,) for row in tiny.random_sequences(23)]
        results.append(evaluate_loss(trainer.models, trainer.algorithm, trainer.config, examples))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_twins_have_the_weights_and_no_others(threads):
    policy = tiny.models(adapter={"type": "lora", "r": 2}).policy
    other = twin(policy)
    for (name, a), (_, b) in zip(policy.named_parameters(), other.named_parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr(), name
        assert (a is b) != a.requires_grad, name
    mine, others = list(policy.modules()), set(map(id, other.modules()))
    assert not any(id(module) in others for module in mine)
    with torch.no_grad():
        next(p for p in policy.parameters() if p.requires_grad).add_(1.0)
    assert workers.differs(policy, other) is None


def test_every_thread_computes_alone_and_the_number_is_restored(threads):
    threads(4)
    policy = tiny.models().policy
    assert use_workers(policy) == "4 micro-batches at a time, 1 thread each"
    counts = list(on_workers(policy, range(8), lambda network, i: torch.get_num_threads()))
    assert counts == [1] * 8
    assert list(on_workers(policy, range(2), lambda n, i: torch.get_num_threads())) == [2, 2]
    assert list(on_workers(policy, [0], lambda n, i: torch.get_num_threads())) == [4]
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_of_any_worker_ends_the_step(place, threads):
    threads(2)
    policy = tiny.models().policy
    use_workers(policy)

    def work(network, i):
        if i == place:
            raise ValueError(f"item {i}")
        return i

    with pytest.raises(ValueError, match=f"item {place}"):
        list(on_workers(policy, range(2), work))
    assert torch.get_num_threads() == 2
    assert list(on_workers(policy, range(2), lambda network, i: i)) == [0, 1]


def test_the_mode_follows_the_policy(threads):
    threads(2)
    policy = tiny.models().policy
    use_workers(policy)
    for mode in (True, False):
        policy.train(mode)
        assert list(on_workers(policy, range(2), lambda network, i: network.training)) == [mode] * 2
    with torch.no_grad():
        assert not any(on_workers(policy, range(2), lambda n, i: torch.is_grad_enabled()))


def test_who_takes_one_at_a_time_and_why(threads, monkeypatch):
    assert use_workers(tiny.models().policy) is None  # the tests have one thread
    threads(2)
    dropout = tiny.models(adapter={"type": "lora", "r": 2, "dropout": 0.1}, dropout=True).policy
    line = use_workers(dropout)
    assert line is not None
    assert line.startswith("1 micro-batch at a time, 2 threads: dropout is drawn in their order")
    assert dropout.workers is None
    monkeypatch.setattr(workers, "MOST_BYTES", 100)
    large = tiny.models().policy
    assert use_workers(large) == "1 micro-batch at a time, 2 threads: gradients of 0.0 GiB each"
    assert large.workers is None


@pytest.mark.parametrize(
    ("threads_", "gib", "number"), [(2, 0, 2), (16, 0, 16), (24, 0, 12), (16, 2, 2), (8, 5, 1)]
)
def test_their_number_is_bounded_by_memory_and_wastes_no_thread(threads_, gib, number):
    assert workers.num_workers(threads_, gib * 2**30) == number


def test_the_estimate_counts_their_gradients(threads, tmp_path):
    config = parse_config(tiny.run_config(tmp_path, "sft"), "test")
    found = {}
    for number in (1, 3):
        threads(number)
        found[number] = measure(plan(config)).fixed["gradients"]
    assert found[3] == 3 * found[1]


def test_the_plan_counts_their_gradients_and_logits(threads):
    of = {}
    for number in (1, 3):
        threads(number)
        of[number] = of_other_workers(Network(0, 10**6, 0, 1, 1, 1000), tokens=4096)
    assert of == {1: {}, 3: {"of the other workers": 8 * 10**6}}  # a chunk holds all logits
    large = of_other_workers(Network(0, 10**6, 0, 1, 1, 150_000), tokens=4096)
    assert large["of the other workers"] == 8 * 10**6 + 2 * workers.CHUNKS


def test_a_reference_of_its_own_has_workers_too(threads):
    threads(2)
    models = tiny.models()
    models.other = tiny.models(seed=1).policy
    use_workers(models.policy, models.other)
    batch = pack(tiny.random_sequences())
    with models.reference():
        assert models.policy.workers.number == 2
        found = models.logprobs(batch, 60)
        models.policy.workers = None
        assert torch.allclose(models.logprobs(batch, 60), found, rtol=1e-5)


def test_a_hook_that_keeps_to_the_original_is_noticed(threads):
    threads(2)
    policy = tiny.models().policy
    norm = policy.backbone().norm
    norm.register_forward_hook(lambda module, inputs, out: out * norm.weight)
    line = use_workers(policy)
    assert line is not None
    assert line.endswith("a copy of Qwen2ForCausalLM keeps to the weights of the original")
    assert policy.workers is None


def test_what_cannot_be_copied_is_said(threads):
    threads(2)
    policy = tiny.models().policy
    policy.backbone().norm.lock = threading.Lock()
    line = use_workers(policy)
    assert line is not None
    assert "2 threads: Qwen2ForCausalLM cannot be copied (cannot pickle" in line
    assert policy.workers is None


def test_commands_that_sample_have_workers(threads, tmp_path):
    folder = train(parse_config(tiny.run_config(tmp_path, "sft", max_steps=1), "test"))
    prompts = [[5, 6, 7 + i] for i in range(40)]
    params = SamplingParams(max_new_tokens=6, stop_token_ids=())
    found = []
    for number in (1, 2):
        threads(number)
        _, sampler, _ = load_for_sampling(str(folder), "auto", "cpu", "float32")
        assert (sampler.policy.workers is None) == (number == 1)
        rollouts = sampler.generate(prompts, params, list(range(40)))
        found.append([rollout.response_ids for rollout in rollouts])
    assert found[0] == found[1]


def test_a_twin_with_other_weights_is_an_error(threads):
    threads(2)
    policy = tiny.models().policy
    use_workers(policy)
    norm = policy.backbone().norm
    norm.weight = torch.nn.Parameter(norm.weight.detach().clone())
    with pytest.raises(AssertionError, match="a twin has other weights"):
        list(on_workers(policy, range(2), lambda network, i: i))


def test_gradients_are_those_of_the_sum(threads):
    threads(3)
    policy = tiny.models().policy
    use_workers(policy)
    weight = policy.backbone().norm.weight

    def work(network, i):
        (network.backbone().norm.weight.sum() * (i + 1)).backward()

    list(on_workers(policy, range(5), work))
    add_gradients(policy)
    assert torch.equal(weight.grad, torch.full_like(weight, 15.0))
    assert all(p.grad is None for other in policy.workers.twins for p in other.parameters())


groups = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=40
)


@given(groups, st.integers(1, 300), st.integers(1, 5))
def test_parts_hold_what_they_may(sizes, most, number):
    given_groups = [Group(tokens, tokens + more, again) for tokens, more, again in sizes]
    starts = cut(given_groups, most, number)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    largest = max(group.tokens + group.again for group in given_groups)
    together = max(1, min(number, len(given_groups), most // largest))
    for first, end in zip(starts, [*starts[1:], len(given_groups)]):
        part = given_groups[first:end]
        tokens = part[0].again + sum(group.tokens for group in part)
        assert len(part) == 1 or tokens <= most // together


@pytest.mark.parametrize(("tokens", "at_once"), [(40, 1), (80, 2), (19, 1)])
def test_no_more_run_at_a_time_than_the_limit_holds(tokens, at_once, threads):
    """Sequences of 24 tokens: two do not run at once if the limit is less than 48."""
    threads(2)
    policy = tiny.models().policy
    use_workers(policy)
    rows = [tiny.random_sequences(1)[0] for _ in range(6)]
    for row in rows:
        row.input_ids = torch.arange(24) % 50 + 4
        row.loss_mask = torch.arange(24) >= 2
    batch = pack(rows)
    running, seen = [], []

    def work(network, part):
        running.append(id(part))
        seen.append((len(running), torch.get_num_threads()))
        time.sleep(0.05)
        running.remove(id(part))

    parts = [(part, 1.0) for part in micro_batches(policy, batch, tokens)]
    list(run_parts(policy, parts, work, tokens))
    assert max(count for count, _ in seen) == at_once
    assert {number for _, number in seen} == {2 // at_once}


def test_parts_are_even():
    alike = [Group(10, 10, 0)] * 16
    assert cut(alike, 1000, 1) == [0]
    assert cut(alike, 1000, 2) == [0, 8]
    assert cut(alike, 1000, 4) == [0, 4, 8, 12]
    assert cut(alike, 100, 2) == [0, 4, 8, 12]  # 50 tokens for each
    assert cut(alike, 12, 2) == list(range(16))  # one worker: two have no room


def test_sampling_ahead_keeps_its_number_of_threads(threads):
    """A new thread would take what workers have set last, in whichever moment it begins."""
    threads(3)
    found = []

    class Sampler:
        policy = SimpleNamespace(version=0)

        def generate(self, prompts, params, seeds, finished):
            found.append(torch.get_num_threads())
            return []

    def change():
        torch.set_num_threads(1)

    other = threading.Thread(target=change)  # as a worker does
    other.start()
    other.join()
    Generation.start(Sampler(), [], None, [], beside=True).wait()
    assert found == [3]
