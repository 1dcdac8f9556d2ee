"""Faults put in on purpose: each must make a named test fail, or that test proves nothing."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import test_against_trl
import test_forward
import test_generation
import test_invariants
import test_losses
import test_policy_gradient
import test_resume
import test_sampler
import tiny
import torch

from posttrain.algorithms import ALGORITHMS, kl, policy_gradient, ppo
from posttrain.data.source import OfflineSource
from posttrain.model import attention, backbone, language_model
from posttrain.model.language_model import LanguageModel
from posttrain.model.models import Models
from posttrain.rollout import source
from posttrain.rollout.native import choose, engine, sampler
from posttrain.training import trainer


def packs_whatever_comes(policy, probe):
    attention.use_attention(policy.causal_lm())


def drop_the_kl_term(patch):
    without = policy_gradient.policy_gradient

    def loss(out, batch, config):
        return without(out, batch, config.model_copy(update={"beta": 0.0}))

    patch.setitem(ALGORITHMS, "grpo", dataclasses.replace(policy_gradient.grpo, loss=loss))


def swap_the_sign_of_k3(patch):
    k3 = kl.k3
    patch.setitem(kl.ESTIMATORS, "k3", lambda logprobs, reference: k3(reference, logprobs))


def halve_a_normaliser(patch):
    count = trainer.UNITS["token"]
    patch.setitem(trainer.UNITS, "token", lambda batch: count(batch) / 2)


def mean_per_micro_batch(patch):
    def counts(batch):
        return {"token": 1.0, "sequence": 1.0}

    patch.setattr(trainer, "global_counts", counts)
    total = trainer.total_of

    def mean(loss, counts):
        return total(loss, counts) / max(1.0, float(len(loss.terms)) * mean.tokens)

    def micro_batches(self, batch):
        for part in batch.split(self.config.token_budget):
            mean.tokens = float(part.loss_mask.sum())
            yield part, 1.0

    mean.tokens = 1.0
    patch.setattr(trainer, "total_of", mean)
    patch.setattr(trainer.Trainer, "_micro_batches", micro_batches)


def predict_from_the_token_itself(patch):
    plain = backbone.last_hidden
    patch.setattr(backbone, "last_hidden", lambda *inputs: plain(*inputs).roll(-1, dims=1))
    patch.setattr("posttrain.model.load.choose_packing", packs_whatever_comes)


def rows_see_each_other(patch):
    per_sequence = attention._per_sequence

    def contaminated(query, key, value, layout, *rest):
        whole = attention.Packed([query.shape[2]], layout.cu_seqlens[[0, -1]])
        return per_sequence(query, key, value, whole, *rest)

    patch.setattr(attention, "_per_sequence", contaminated)
    patch.setattr("posttrain.model.load.choose_packing", packs_whatever_comes)


def sampler_ignores_the_temperature(patch):
    sample = choose.sample
    patch.setattr(
        choose,
        "sample",
        lambda logits, params, noise, top: sample(
            logits, dataclasses.replace(params, temperature=1.0), noise, top
        ),
    )


def sampler_keeps_old_weights(patch):
    import copy

    init = sampler.NativeSampler.__init__

    def stale(self, policy, max_num_seqs):
        init(self, copy.deepcopy(policy), max_num_seqs)

    patch.setattr(sampler.NativeSampler, "__init__", stale)


def noise_by_batch_row(patch):
    noise = engine.noise_of
    patch.setattr(
        engine,
        "noise_of",
        lambda seeds, params, device: noise(list(range(len(seeds))), params, device),
    )


def reference_follows_the_policy(patch):
    patch.setattr(Models, "_exchange", lambda self: None)


def biased_standard_deviation(patch):
    advantages = test_losses.advantages_of

    def biased(*args, **keys):
        return advantages(*args, **keys) * (4 / 3) ** 0.5

    patch.setattr(test_losses, "advantages_of", biased)


def resume_forgets_the_optimiser(patch):
    patch.setattr("posttrain.training.trainer_state.restore", lambda *args: None)


def resume_starts_the_data_over(patch):
    patch.setattr(OfflineSource, "load_state_dict", lambda self, state: None)


def rollouts_repeat_their_seeds(patch):
    patch.setattr(source, "mix", lambda seed, step, place: place % 2)


def cutting_off_is_an_end(patch):
    gae = ppo.gae

    def terminal(rewards, values, bootstrap, *rest):
        return gae(rewards, values, torch.zeros_like(bootstrap), *rest)

    patch.setattr(ppo, "gae", terminal)


def values_are_not_clipped(patch):
    loss = ppo.ppo_loss

    def without(out, batch, config):
        return loss(out, batch, config.model_copy(update={"value_clip": None}))

    patch.setitem(ALGORITHMS, "ppo", dataclasses.replace(ppo.ppo, loss=without))


def values_read_the_next_state(patch):
    plain = LanguageModel._head_outputs

    def shifted(self, *args):
        return plain(self, *args).roll(-1)

    patch.setattr(LanguageModel, "_head_outputs", shifted)


def the_own_reward_is_in_its_baseline(patch):
    advantages = policy_gradient.advantages_of

    def biased(rewards, group, baseline, *rest):
        return advantages(rewards, group, "group_mean", *rest)

    patch.setattr(policy_gradient, "advantages_of", biased)


def the_penalty_looks_back(patch):
    patch.setattr(policy_gradient, "to_go", lambda x, batch: x.cumsum(0))


def the_correction_is_upside_down(patch):
    correction = policy_gradient.correction
    patch.setattr(policy_gradient, "correction", lambda m, *rest: correction(-m, *rest))


def the_value_model_is_not_saved(patch):
    patch.setattr("posttrain.model.save.HEAD_PREFIXES", "nothing begins so")


def completions_go_on_from_another_prompt(patch):
    shared = language_model.share_prompts

    def moved(batch):
        rows = shared(batch)
        if rows.layout.prefixes is not None:
            rows.layout.prefixes = [x and 0 for x in rows.layout.prefixes]
        return rows

    patch.setattr(language_model, "share_prompts", moved)
    patch.setattr("posttrain.model.load.choose_packing", packs_whatever_comes)


def completions_do_not_see_their_prompt(patch):
    patch.setattr(
        attention, "_with_prefixes", lambda x, layout: list(x.split(layout.lengths, dim=2))
    )
    patch.setattr("posttrain.model.load.choose_packing", packs_whatever_comes)


def what_was_sampled_ahead_is_lost(patch):
    patch.setattr("posttrain.rollout.ahead.Ahead.state_dict", lambda self, group_size: None)


FAULTS = [
    (
        completions_go_on_from_another_prompt,
        lambda tmp, mp: test_invariants.test_matches_a_padded_model_with_no_code_of_ours(
            "grpo", {}
        ),
    ),
    (
        completions_do_not_see_their_prompt,
        lambda tmp, mp: test_invariants.test_matches_a_padded_model_with_no_code_of_ours(
            "grpo", {}
        ),
    ),
    (
        what_was_sampled_ahead_is_lost,
        lambda tmp, mp: test_generation.test_a_run_one_step_off_resumes_bit_for_bit(
            "grpo", tmp, mp
        ),
    ),
    (
        cutting_off_is_an_end,
        lambda tmp, mp: test_policy_gradient.test_ppo_advantages_and_returns(),
    ),
    (values_are_not_clipped, lambda tmp, mp: test_policy_gradient.test_ppo_loss_written_out()),
    (
        values_read_the_next_state,
        lambda tmp, mp: test_invariants.test_matches_a_padded_model_with_no_code_of_ours("ppo", {}),
    ),
    (
        the_own_reward_is_in_its_baseline,
        lambda tmp, mp: (
            test_policy_gradient.test_rloo_takes_the_penalty_off_the_reward_before_its_baseline(
                "sampler", "sampler"
            )
        ),
    ),
    (
        the_penalty_looks_back,
        lambda tmp, mp: test_policy_gradient.test_reinforce_plus_plus("policy", "old"),
    ),
    (
        the_correction_is_upside_down,
        lambda tmp, mp: test_against_trl.test_sampler_correction_equals_trl("token", "truncate"),
    ),
    (
        the_value_model_is_not_saved,
        lambda tmp, mp: test_resume.test_train_2n_equals_train_n_and_resume("ppo", 3, tmp, mp),
    ),
    (drop_the_kl_term, lambda tmp, mp: test_losses.test_kl_by_hand()),
    (swap_the_sign_of_k3, lambda tmp, mp: test_losses.test_kl_by_hand()),
    (
        halve_a_normaliser,
        lambda tmp, mp: test_invariants.test_matches_a_padded_model_with_no_code_of_ours("sft", {}),
    ),
    (
        mean_per_micro_batch,
        lambda tmp, mp: (
            test_invariants.test_gradient_does_not_depend_on_micro_batch_size_or_packing(
                "sft", {}, "llama"
            )
        ),
    ),
    (
        predict_from_the_token_itself,
        lambda tmp, mp: test_forward.test_logprobs_equal_transformers_own("qwen2", 1.0),
    ),
    (
        rows_see_each_other,
        lambda tmp, mp: test_invariants.test_sequences_of_a_packed_row_do_not_see_each_other(),
    ),
    (
        sampler_ignores_the_temperature,
        lambda tmp, mp: test_sampler.test_logprobs_are_the_trainers(0.5),
    ),
    (
        sampler_keeps_old_weights,
        lambda tmp, mp: test_sampler.test_output_changes_with_the_weights(),
    ),
    (noise_by_batch_row, lambda tmp, mp: test_sampler.test_a_row_does_not_depend_on_its_batch(mp)),
    (
        reference_follows_the_policy,
        lambda tmp, mp: test_invariants.test_policy_and_reference_agree_exactly_at_step_0(
            "grpo", {}
        ),
    ),
    (biased_standard_deviation, lambda tmp, mp: test_losses.test_advantages_by_hand()),
    (
        resume_forgets_the_optimiser,
        lambda tmp, mp: test_resume.test_train_2n_equals_train_n_and_resume("sft", 3, tmp, mp),
    ),
    (
        resume_starts_the_data_over,
        lambda tmp, mp: test_resume.test_train_2n_equals_train_n_and_resume("sft", 3, tmp, mp),
    ),
    (
        rollouts_repeat_their_seeds,
        lambda tmp, mp: rollouts_of_a_group_differ(tmp),
    ),
]


def rollouts_of_a_group_differ(tmp_path):
    run = test_resume.run(tiny.run_config(tmp_path, "grpo", max_steps=1))
    lines = (run / "samples.jsonl").read_text().splitlines()
    assert len(set(lines[:4])) > 2


def test_rollouts_of_a_group_differ(tmp_path):
    rollouts_of_a_group_differ(tmp_path)


def caught_by(faults, test, **keys):
    """Adds a fault, and the call of `test` that is to catch it, to `faults`."""
    wanted = inspect.signature(test).parameters

    def call(folder, patch):
        given = {"tmp_path": folder, "monkeypatch": patch}
        test(**keys, **{name: value for name, value in given.items() if name in wanted})

    def add(fault):
        faults.append((fault, call))
        return fault

    return add


def assert_caught(fault, test, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
            test(tmp_path, patch)


@pytest.mark.parametrize(("fault", "test"), FAULTS, ids=[f.__name__ for f, _ in FAULTS])
def test_a_seeded_fault_is_caught(fault, test, tmp_path, monkeypatch):
    assert_caught(fault, test, tmp_path, monkeypatch)
