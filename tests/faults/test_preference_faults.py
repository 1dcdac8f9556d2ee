"""Faults of preference methods, put in on purpose as in test_seeded_faults.py: losses, metrics, the
reference and the KL."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from types import SimpleNamespace

import pytest
import test_invariants
import test_preference_data as rows
import test_preference_runs as runs
import test_preferences as losses
import test_resume
import test_seeded_faults
import torch
from test_render import renderer

from posttrain.algorithms import ALGORITHMS, pair_losses, preference
from posttrain.algorithms.base import UNITS, Loss, algorithm_named
from posttrain.data.kinds import unpaired
from posttrain.model.models import Models
from posttrain.runs import train
from posttrain.training import checkpoint

FAULTS = []
caught_by = partial(test_seeded_faults.caught_by, FAULTS)
PLAIN, LORA = renderer("plain"), {"use_lora": True}
PACKING = partial(
    test_invariants.test_gradient_does_not_depend_on_micro_batch_size_or_packing,
    keys={},
    kind="llama",
)


def change(patch, method, **parts):
    patch.setitem(ALGORITHMS, method, dataclasses.replace(algorithm_named(method), **parts))


def change_per_seq(patch, method, values):
    """The method's loss reads what `values(out, batch)` gives in per_seq."""
    loss = algorithm_named(method).loss

    def changed(out, batch, config):
        batch = copy.copy(batch)
        batch.per_seq = batch.per_seq | values(out, batch)
        return loss(out, batch, config)

    change(patch, method, loss=changed)


# --- losses ---------------------------------------------------------------------------------------


@caught_by(losses.test_dpo_equals_trl, loss_type="sigmoid", beta=0.1)
def chosen_and_rejected_change_places_in_the_metrics(patch):
    metrics = preference.pair_metrics
    patch.setattr(preference, "pair_metrics", lambda x: metrics(x.view(-1, 2).flip(1).flatten()))


@caught_by(losses.test_dpo_equals_trl, loss_type="sigmoid", beta=0.1)
def dpo_takes_means(patch):
    patch.setattr(preference, "AVERAGED", (*preference.AVERAGED, "sigmoid"))


@caught_by(losses.test_dpo_equals_trl, loss_type="ipo", beta=0.1)
def ipo_takes_sums(patch):
    patch.setattr(preference, "AVERAGED", ())


@caught_by(PACKING, name="dpo")
def each_micro_batch_takes_its_own_mean(patch):
    loss = algorithm_named("dpo").loss

    def mean(out, batch, config):
        found = loss(out, batch, config)
        return Loss({unit: x / UNITS[unit](batch) for unit, x in found.terms.items()})

    change(patch, "dpo", loss=mean)


@caught_by(losses.test_by_hand)
def simpo_forgets_gamma(patch):
    patch.setitem(pair_losses.PAIR_LOSSES, "simpo", pair_losses.sigmoid)


@caught_by(losses.test_dpo_equals_trl, loss_type="robust", beta=0.1)
def robust_adds_the_flipped_loss(patch):
    patch.setitem(pair_losses.PAIR_LOSSES, "robust", pair_losses.cdpo)


@caught_by(losses.test_cdpo_is_the_mean_loss_under_flips)
def cdpo_takes_the_flipped_loss_off(patch):
    patch.setitem(pair_losses.PAIR_LOSSES, "cdpo", pair_losses.robust)


@caught_by(losses.test_log1mexp_near_both_ends)
def log1mexp_cancels_near_0(patch):
    def log1mexp(x):
        return torch.log1p(-torch.exp(x.clamp(max=-1e-7)))

    for module in (pair_losses, losses):
        patch.setattr(module, "log1mexp", log1mexp)


@caught_by(losses.test_log1mexp_near_both_ends)
def log1mexp_cancels_far_from_0(patch):
    for module in (pair_losses, losses):
        patch.setattr(module, "log1mexp", lambda x: torch.log(-torch.expm1(x.clamp(max=-1e-7))))


@caught_by(runs.test_the_methods_page_has_the_defaults)
def orpo_reads_the_completion_alone_by_default(patch):
    plain = algorithm_named("orpo").config
    change(patch, "orpo", config=partial(plain, nll_over="completion"))


@caught_by(losses.test_orpo_equals_trl, nll_over="prompt_and_completion")
def orpo_never_reads_the_prompt(patch):
    never = property(lambda config: {"train_prompt": False})
    patch.setattr(algorithm_named("orpo").config, "row_options", never)


@caught_by(losses.test_reward_model_written_out)
def the_margin_is_ignored(patch):
    def none(out, batch):
        return {"margin": torch.zeros_like(batch.per_seq["margin"])}

    change_per_seq(patch, "reward_model", none)


# --- the reference, and the KL of kto -------------------------------------------------------------


@caught_by(runs.test_the_reference_is_the_policy_at_the_start, method="dpo", model_keys={})
def the_reference_is_the_policy_of_now(patch):
    def of_now(batch, models, config):
        batch.per_token["ref_logprobs"] = models.logprobs(batch, config.token_budget)

    patch.setattr(preference, "add_reference_logprobs", of_now)


@caught_by(
    runs.test_the_reference_is_the_policy_at_the_start,
    method="dpo",
    model_keys=LORA,
)
def the_reference_is_the_model_without_its_adapter(patch):
    patch.setattr(Models, "reference", lambda self: self.policy.model.disable_adapter())


@caught_by(test_resume.test_train_2n_equals_train_n_and_resume, method="dpo", stop_at=3)
def a_resumed_run_keeps_its_reference_anew(patch):
    load = checkpoint.Checkpoints.load

    def anew(self, path, trainer):
        load(self, path, trainer)
        trainer.models.keep_reference()

    patch.setattr(checkpoint.Checkpoints, "load", anew)


@caught_by(runs.test_a_precomputed_reference_is_the_reference, method="dpo")
def a_resumed_run_precomputes_of_its_weights(patch):
    load = checkpoint.Checkpoints.load

    def anew(self, path, trainer):
        load(self, path, trainer)
        data = SimpleNamespace(examples=trainer.source.examples, eval_examples=[])
        train.add_reference_logprobs(trainer.models, data, 10**6)

    patch.setattr(checkpoint.Checkpoints, "load", anew)


@caught_by(runs.test_a_precomputed_reference_is_the_reference, method="dpo")
def precomputed_log_probs_are_another_rows(patch):
    add = train.add_reference_logprobs

    def misplaced(models, data, max_tokens):
        add(models, data, max_tokens)
        found = train.sequences_of(data.examples)
        means = [float(row.per_token["ref_logprobs"].mean()) for row in found]
        for row, mean in zip(found, means[2:] + means[:2]):
            row.per_token["ref_logprobs"] = torch.full((len(row),), mean)

    patch.setattr(train, "add_reference_logprobs", misplaced)


@caught_by(runs.test_the_kl_is_not_below_zero, method="kto")
def the_kl_of_kto_is_below_zero(patch):
    module = algorithm_named("kto").prepare.__globals__
    patch.setitem(module, "max", lambda zero, z: z)


@caught_by(runs.test_the_kl_is_not_below_zero, method="kto_pair")
def the_kl_of_kto_pair_is_below_zero(patch):
    prepare = algorithm_named("kto_pair").prepare

    def without_clamp(batch, models, config):
        batch = prepare(batch, models, config)
        now = models.logprobs(batch, config.token_budget)
        moved = batch.sum_per_seq(now - batch.per_token["ref_logprobs"])
        for half in (0, 1):
            batch.per_seq["kl"][half::2] = moved[half::2].mean()
        return batch

    change(patch, "kto_pair", prepare=without_clamp)


@caught_by(losses.test_kto_pair_written_out)
def kto_pair_takes_the_kl_of_the_same_half(patch):
    pairs_of = preference.pairs_of

    def exchanged(*args):
        found = pairs_of(*args)
        return dataclasses.replace(found, kl_chosen=found.kl_rejected, kl_rejected=found.kl_chosen)

    patch.setattr(preference, "pairs_of", exchanged)


@caught_by(losses.test_kto_equals_trl, labels=[1, 0, 1, 1, 0, 0])
def the_kl_has_a_gradient(patch):
    def moving(out, batch):
        logps = batch.sum_per_seq(out.logprobs)
        return {"kl": batch.per_seq["kl"] + (logps - logps.detach()).mean()}

    change_per_seq(patch, "kto", moving)


@caught_by(PACKING, name="kto")
def the_kl_is_that_of_the_micro_batch(patch):
    def own(out, batch):
        moved = batch.sum_per_seq(out.logprobs - batch.per_token["ref_logprobs"]).detach()
        return {"kl": torch.full_like(moved, float(moved.mean()))}

    change_per_seq(patch, "kto", own)


@caught_by(losses.test_kto_measures_its_kl_on_unrelated_completions)
def the_kl_is_that_of_the_rows_themselves(patch):
    prepare = algorithm_named("kto").prepare

    def own(batch, models, config):
        twice = [i - i % 2 for i in range(batch.num_sequences)]
        return prepare(batch.select(twice), models, config)

    change(patch, "kto", prepare=own)


@caught_by(rows.test_an_unrelated_completion_is_that_of_another_prompt, renderer=PLAIN)
def unrelated_completions_are_the_rows_own(patch):
    made = unpaired.to_examples

    def own(*args, **keys):
        groups, table = made(*args, **keys)
        return [(row, row) if len(others) else (row,) for row, *others in groups], table

    patch.setattr(rows, "to_judged", own)


@caught_by(losses.test_kto_equals_trl, labels=[1, 0, 1, 1, 0, 0])
def kto_exchanges_its_weights(patch):
    loss = algorithm_named("kto").loss

    def exchanged(out, batch, config):
        good, bad = config.desirable_weight, config.undesirable_weight
        update = {"desirable_weight": bad, "undesirable_weight": good}
        return loss(out, batch, config.model_copy(update=update))

    change(patch, "kto", loss=exchanged)


@pytest.mark.parametrize(("fault", "test"), FAULTS, ids=[f.__name__ for f, _ in FAULTS])
def test_a_seeded_fault_is_caught(fault, test, tmp_path, monkeypatch):
    test_seeded_faults.assert_caught(fault, test, tmp_path, monkeypatch)
