"""Faults of preference data, reward models and data made by a model, put in on purpose as in
test_seeded_faults.py."""

from __future__ import annotations

import itertools
import json
from functools import partial
from types import SimpleNamespace

import pytest
import test_making
import test_preference_data as rows
import test_preference_rows
import test_preference_runs as runs
import test_reward_head
import test_reward_model
import test_seeded_faults
import tiny
import torch
from test_render import renderer

from posttrain.data.kinds import pair, preference_forms
from posttrain.data.kinds.judged import Judged
from posttrain.model import save as saving
from posttrain.runs import synthesize, train
from posttrain.runs.config import parse_config

FAULTS = []
caught_by = partial(test_seeded_faults.caught_by, FAULTS)
PLAIN = renderer("plain")


def made_in_parts(tmp_path, monkeypatch):
    base = train.train(parse_config(tiny.run_config(tmp_path / "base", max_steps=2), "test"))
    rows.test_making_is_resumable_and_gives_the_same_rows(
        "preferences", base, tmp_path, monkeypatch
    )


# --- rows -----------------------------------------------------------------------------------------


@caught_by(
    rows.test_pairs_share_the_prompts_ids_and_train_on_the_completion,
    renderer=PLAIN,
)
def the_prompt_counts_as_completion(patch):
    render = pair.render

    def whole(row, renderer):
        side = render(row, renderer)
        side.sequence.loss_mask = torch.arange(len(side.sequence)) > 0
        return side

    patch.setattr(pair, "render", whole)


@caught_by(rows.test_only_the_last_turns_are_judged, chat=renderer("chatml"))
def earlier_turns_are_judged_too(patch):
    def every_turn(row, renderer):
        sequence = renderer.training_sequence({"messages": [*row["prompt"], *row["completion"]]})
        return Judged(sequence, sequence.input_ids[sequence.loss_mask].tolist())

    patch.setattr(pair, "render", every_turn)


@caught_by(
    rows.test_pairs_share_the_prompts_ids_and_train_on_the_completion,
    renderer=PLAIN,
)
def rows_of_orpo_lack_the_prompt(patch):
    final = pair._final_sequence
    patch.setattr(
        pair,
        "_final_sequence",
        lambda sequence, margin, train_prompt, scores: final(sequence, margin, False, scores),
    )


@caught_by(rows.test_useless_pairs_are_counted_and_dropped, renderer=PLAIN)
def equal_pairs_stay(patch):
    reason = pair._drop_reason

    def only_empty(*args):
        return "empty" if reason(*args) == "empty" else None

    patch.setattr(pair, "_drop_reason", only_empty)


@caught_by(rows.test_useless_pairs_are_counted_and_dropped, renderer=PLAIN)
def pairs_that_a_cut_makes_equal_stay(patch):
    cut = pair.cut

    def as_before(side, max_length):
        return Judged(cut(side, max_length).sequence, side.completion)

    patch.setattr(pair, "cut", as_before)


@caught_by(test_preference_rows.test_each_of_several_rejected_keeps_its_own_prompt)
def every_rejected_gets_the_first_ones_prompt(patch):
    as_pairs = preference_forms.as_pairs

    def of_first(row):
        pairs = as_pairs(row)
        return [pair | {"prompt": pairs[0]["prompt"]} for pair in pairs]

    patch.setattr(preference_forms, "as_pairs", of_first)


# --- the reward head ------------------------------------------------------------------------------


@caught_by(test_reward_head.test_loads_elsewhere_and_scores_the_same, lora=False)
def the_head_reads_the_first_end_of_a_turn(patch):
    forward = test_reward_head.forward

    def early(policy, batch, **keys):
        out = forward(policy, batch, **keys)
        states = policy(batch, head=True)[2]
        texts = [ids.tolist() for ids in batch.input_ids.split(batch.lengths)]
        ends = torch.tensor([ids.index(ids[-1]) for ids in texts])
        out.scores[batch.last_tokens()] = states[batch.cu_seqlens[:-1].long() + ends]
        return out

    patch.setattr(test_reward_head, "forward", early)


@caught_by(test_reward_model.test_the_last_token_is_read_whatever_the_pad_token_is, pad=5)
def the_pad_token_is_looked_for_in_the_text(patch):
    def early(model, sequences, max_tokens):
        pad, scores = model.config.pad_token_id, []
        for ids in sequences:
            states = model.model(torch.tensor([ids])).last_hidden_state[0]
            end = ids.index(pad) - 1 if pad in ids else -1
            scores.append(float(model.score.weight[0] @ states[end]))
        return scores

    patch.setattr(test_reward_model, "score_ids", early)


@caught_by(runs.test_a_reward_model_with_lora_resumes)
def an_adapter_is_saved_without_its_head(patch):
    save = saving.save_adapter
    patch.setattr(saving, "save_adapter", lambda *args: save(*args[:3]))


# --- data made by a model -------------------------------------------------------------------------


@caught_by(rows.test_pairs_by_score)
def cut_off_completions_are_chosen(patch):
    pairs_of = synthesize.pairs_of

    def of_all(scored, config):
        return pairs_of([one | {"finish_reason": "stop"} for one in scored], config)

    patch.setattr(synthesize, "pairs_of", of_all)


@caught_by(made_in_parts)
def noise_is_counted_from_the_start_of_the_process(patch):
    sample, calls = synthesize.sample_and_score, itertools.count()
    patch.setattr(
        synthesize,
        "sample_and_score",
        lambda prompts, first, *rest: sample(prompts, 40 * next(calls), *rest),
    )


@caught_by(test_making.test_every_completion_has_noise_of_its_own_and_the_settings_of_the_recipe)
def every_chunk_draws_the_same_noise(patch):
    sample = synthesize.sample_and_score
    patch.setattr(
        synthesize, "sample_and_score", lambda prompts, first, *rest: sample(prompts, 0, *rest)
    )


@caught_by(test_making.test_every_completion_has_noise_of_its_own_and_the_settings_of_the_recipe)
def data_is_made_at_temperature_1(patch):
    params = synthesize.SamplingParams
    patch.setattr(
        synthesize,
        "SamplingParams",
        lambda length, stops, temperature, *rest: params(length, stops),
    )


@caught_by(test_making.test_rows_of_equal_prompts_lie_in_one_file)
def rows_are_held_out_one_by_one(patch):
    number = itertools.count()
    plain = SimpleNamespace(dumps=lambda x, **keys: f"{json.dumps(x, **keys)} {next(number)}")
    patch.setattr(synthesize, "json", plain)


@caught_by(rows.test_pass_at_k_by_counting, n=4, correct=2, k=2)
def pass_at_k_is_that_of_the_rate(patch):
    patch.setattr(synthesize, "pass_at", lambda k, n, correct: 1 - (1 - correct / n) ** k)


@pytest.mark.parametrize(("fault", "test"), FAULTS, ids=[f.__name__ for f, _ in FAULTS])
def test_a_seeded_fault_is_caught(fault, test, tmp_path, monkeypatch):
    test_seeded_faults.assert_caught(fault, test, tmp_path, monkeypatch)
