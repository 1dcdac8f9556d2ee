"""Faults of evaluation, classification and data sets, put in on purpose as in
test_seeded_faults.py; most are an edit of one function's source."""

from __future__ import annotations

import csv
import inspect

import pytest
import test_claims as claims
import test_classification as classifying
import test_convert as preparing
import test_datasets as data_sets
import test_decontamination as overlap
import test_download as downloads
import test_evaluation as counting
import test_evaluation_command as commands
import test_evaluation_during as in_training
import test_evaluation_kinds as kinds
import test_likelihood as likelihoods
import test_safety
import test_seeded_faults
import test_templates
import test_text_metrics
from seeded import edit

from posttrain.algorithms.classification import (
    add_scores,
    balanced,
    confusion,
    cross_entropy,
    with_labels,
)
from posttrain.data import download, templates
from posttrain.data.kinds import labelled
from posttrain.data.labels import label_tokens
from posttrain.data.prepare import convert, decontamination, digests
from posttrain.data.sets import competition_math, fever, liar, mbpp, semeval2020_task11
from posttrain.evaluation import (
    answers,
    compare,
    gate,
    generation,
    likelihood,
    problems,
    ready,
    statistics,
    store,
)
from posttrain.evaluation.scores import choices, safety, text

FAULTS: list[tuple] = []
# what tests below are given
model, tasks, trained = kinds.model, kinds.tasks, commands.trained
stories, server = likelihoods.stories, downloads.server


def caught_by(test, **keys):
    """Adds a fault, and the test that is to catch it; its fixtures are there before the fault."""
    return lambda fault: FAULTS.append((fault, test, keys))


# --- statistics and counting ----------------------------------------------------------------------


@caught_by(counting.test_pass_at_k_and_the_majority_by_hand)
def pass_at_k_is_that_of_the_rate(patch):
    old = "math.comb(n - num_correct, k) / math.comb(n, k)"
    edit(patch, statistics.pass_at, old, "(1 - num_correct / n) ** k")


@caught_by(counting.test_wilsons_bounds_by_their_definition, successes=1, n=29)
def wilsons_interval_has_the_share_in_its_middle(patch):
    edit(patch, statistics._wilson, "(share + z * z / (2 * n)) / (1 + z * z / n)", "share")


@caught_by(counting.test_pass_at_k_and_the_majority_by_hand)
def intervals_have_the_completion_as_their_unit(patch):
    edit(patch, generation.count, "interval(means, n)", "interval([r['correct'] for r in judged])")


@caught_by(counting.test_with_one_sample_each_it_is_mcnemars, only_a=3, only_b=9)
def the_paired_test_has_one_side(patch):
    edit(patch, statistics.sign_flip_test, "numpy.abs(", "(")


@caught_by(counting.test_with_one_sample_each_it_is_mcnemars, only_a=3, only_b=9)
def what_was_observed_is_not_in_the_tail(patch):
    edit(patch, statistics.sign_flip_test, "sums >= observed", "sums > observed")


@caught_by(commands.test_comparing_by_hand)
def one_right_completion_solves_a_problem(patch):
    edit(patch, compare.solved, 'outcome.count("1"), len(outcome)', 'int("1" in outcome)')


@caught_by(counting.test_a_majority_and_its_ties)
def completions_without_an_answer_vote(patch):
    edit(patch, answers.majority, " if vote is not None", "")


@caught_by(counting.test_pass_at_k_and_the_majority_by_hand)
def strict_asks_for_the_form_alone(patch):
    edit(patch, generation.count, 'r["correct"] and r["in_format"]', 'r["in_format"]')


@caught_by(counting.test_the_best_by_a_reward_model)
def the_worst_is_the_best(patch):
    edit(patch, generation.count, "[max(group, key=", "[min(group, key=")


@caught_by(counting.test_what_is_cut_off_and_what_has_no_score)
def what_has_no_score_is_counted_nowhere(patch):
    edit(patch, generation.count, "is None for r in records", "is None for r in judged")


@caught_by(counting.test_what_is_cut_off_and_what_has_no_score)
def what_is_cut_off_is_right(patch):
    old = "None if value is None else is_correct(value)"
    new = f'{old} or record["finish_reason"] == "length"'
    edit(patch, generation.complete, old, new)


@caught_by(counting.test_text_ends_where_the_next_question_begins)
def what_ends_before_a_question_is_cut_off(patch):
    edit(patch, generation.complete, '[0], "stop"', "[0], reason")


@caught_by(counting.test_completions_have_noise_of_their_own)
def every_chunk_draws_the_same_noise(patch):
    edit(patch, generation.complete, "for place in places", "for place in range(len(places))")


# --- shots, results and gates ---------------------------------------------------------------------


@caught_by(counting.test_shots_that_can_not_be_shown)
def a_problem_is_its_own_shot(patch):
    edit(patch, problems.to_problems, "in evaluated:", "in ():")


@caught_by(kinds.test_only_the_same_rows_are_compared)
def problems_are_compared_by_their_place(patch):
    edit(patch, ready.ReadyLikelihood.run, "problem_ids(self.rows)", "[*map(str, range(9))]")


@caught_by(kinds.test_finished_tasks_are_not_run_again)
def results_of_other_settings_are_taken(patch):
    edit(patch, store.is_finished, "differing(before, settings)", "[]")


@caught_by(kinds.test_finished_tasks_are_not_run_again)
def other_rows_are_no_other_settings(patch):
    edit(patch, ready._ready_likelihood, 'hash_of({"rows": rows})', "len(rows)")


@caught_by(kinds.test_a_result_that_was_deleted_is_made_anew)
def completions_of_a_deleted_result_are_taken(patch):
    edit(patch, store.begin, "file.unlink(missing_ok=True)", "pass")


@caught_by(commands.test_kill_and_resume_give_the_result_of_one_go)
def what_a_kill_left_stays_in_the_file(patch):
    edit(patch, generation.kept, 'write_text(file, "".join(lines))', "pass")


@caught_by(in_training.test_gates_by_hand)
def a_gate_fails_what_has_risen(patch):
    edit(patch, gate.lost, "before - now > gate.max_drop", "now - before > gate.max_drop")


@caught_by(in_training.test_gates_by_hand)
def a_gate_compares_with_the_evaluation_before(patch):
    edit(patch, gate.lost, "first = evaluations[0]", 'first = evaluations[-2] | {"step": 0}')


# --- likelihoods and texts ------------------------------------------------------------------------


@caught_by(likelihoods.test_a_continuation_is_that_of_training_without_its_stop_token, name="plain")
def the_stop_token_is_scored(patch):
    old = "sequence.input_ids[:stop], sequence.loss_mask[:stop]"
    edit(patch, likelihood.continuation, old, "sequence.input_ids, sequence.loss_mask")


@caught_by(likelihoods.test_every_token_of_a_whole_text_is_scored, name="plain")
def the_first_token_of_a_sentence_is_not_scored(patch):
    edit(patch, likelihood.whole_text, "> 0", "> 1")


@caught_by(likelihoods.test_crows_pairs_of_a_real_model_are_those_of_transformers)
def likelihoods_are_means_over_tokens(patch):
    old = "batch.sum_per_seq(logprobs.double())"
    edit(patch, likelihood._sums, old, f"({old} / batch.sum_per_seq(batch.loss_mask.double()))")


@caught_by(likelihoods.test_bbq_equals_a_count_by_hand)
def the_bias_of_bbq_is_not_turned_where_the_question_is_not_negative(patch):
    edit(patch, choices.bbq, ' == (row["polarity"] == "neg")', "")


@caught_by(likelihoods.test_bbq_equals_a_count_by_hand)
def the_bias_of_ambiguous_contexts_is_scaled_by_the_accuracy(patch):
    edit(patch, choices._bbq, '1 - metrics[f"accuracy', 'metrics[f"accuracy')


@caught_by(likelihoods.test_mc1_and_mc2_by_hand)
def mc2_is_not_normalised(patch):
    edit(patch, choices.truthfulqa, "mass_true / (mass_true + mass_false)", "mass_true")


@caught_by(likelihoods.test_mc1_and_mc2_by_hand)
def mc1_takes_a_tie_for_the_truth(patch):
    edit(patch, choices.truthfulqa, "true[0] > max", "true[0] >= max")


@caught_by(test_safety.test_a_word_list_of_ones_own)
def listed_words_are_found_inside_others(patch):
    edit(patch, safety._word_list, r"(?!\w)", "")


@caught_by(test_text_metrics.test_bleu_by_hand_and_by_sacrebleu)
def bleu_takes_the_references_for_what_was_said(patch):
    old = "list(predictions), [list(references)]"
    edit(patch, text.bleu, old, "list(references), [list(predictions)]")


# --- classification -------------------------------------------------------------------------------


@caught_by(classifying.test_training_steps_count_no_confusion)
def the_confusion_matrix_is_transposed(patch):
    edit(patch, confusion, "true * len(names) + predicted", "predicted * len(names) + true")


@caught_by(classifying.test_scores_are_scikit_learns)
def macro_scores_leave_out_labels_without_rows(patch):
    edit(patch, add_scores, "/ len(names)", "/ max(1, sum(a + c > 0 for a, _, c in counts))")


@caught_by(classifying.test_balanced_weights_are_scikit_learns)
def frequent_labels_weigh_more(patch):
    edit(patch, balanced, "n / (len(names) * count)", "len(names) * count / n")


@caught_by(classifying.test_one_label_by_hand)
def the_loss_is_divided_by_the_sum_of_the_weights(patch):
    edit(patch, cross_entropy, "weights[true] *", "weights[true] / weights[true].mean() *")


@caught_by(classifying.test_several_labels_by_hand)
def rows_without_a_label_have_its_weight_too(patch):
    edit(patch, cross_entropy, "pos_weight=weights", "weight=weights")


@caught_by(classifying.test_a_label_is_found_where_it_is_likelier_than_not)
def a_label_is_found_where_its_logit_is_above_a_half(patch):
    edit(patch, cross_entropy, "logits.detach() > 0)", "logits.detach() > 0.5)")


@caught_by(classifying.test_what_all_labels_begin_with_goes_to_the_prompt)
def what_all_labels_begin_with_stays_out_of_the_prompt(patch):
    edit(patch, label_tokens, "return ids[0][:shared], ", "return [], ")


@caught_by(classifying.test_labels_that_begin_alike_are_refused)
def labels_may_begin_alike(patch):
    edit(patch, label_tokens, "if word_ids[shared] in tokens:", "if False:")


@caught_by(classifying.test_what_is_too_long_keeps_its_end)
def long_texts_lose_their_end(patch):
    edit(patch, labelled.to_examples, "ids[-room:]", "ids[:room]")


@caught_by(classifying.test_labels_come_from_the_rows_or_the_model)
def labels_may_have_another_order_than_the_models(patch):
    old = 'known["labels"] != labels'
    edit(patch, with_labels, old, 'set(known["labels"]) != set(labels)')


# --- data sets ------------------------------------------------------------------------------------


@caught_by(preparing.test_messages_stay_messages_and_chats_of_one_beginning_lie_together)
def rows_are_held_out_one_by_one(patch):
    edit(patch, convert.survey, "group_of(raw, row, config)", "serialised.decode()")


@caught_by(preparing.test_prompts_that_two_groups_share_are_not_in_both_files)
def prompts_of_two_groups_lie_in_both_files(patch):
    patch.setattr(convert, "drop_prompts_of_both", lambda prompts, outcomes: None)


@caught_by(preparing.test_a_row_of_two_groups_is_trained_on_whichever_comes_first)
def the_first_of_equal_rows_stays_wherever_it_lies(patch):
    edit(patch, digests.Digests.equal, "(rows, outcomes[rows], low, high)", "(rows, low, high)")


@caught_by(overlap.test_the_report)
def evaluation_rows_are_touched_once_for_each_ngram(patch):
    old = "number for _, rows in matches for number in rows"
    edit(patch, decontamination.measure_overlap, old, "gram for gram, _ in matches")


@caught_by(overlap.test_rows_by_hand, row={"prompt": overlap.PROBLEM.upper()}, expected=True)
def capitals_hide_an_overlap(patch):
    edit(patch, decontamination.words_in, "value.lower()", "value")


@caught_by(claims.test_a_row_of_liar)
def the_history_of_liar_gives_labels_away(patch):
    edit(patch, liar.load, "history: bool = False", "history: bool = True")


@caught_by(claims.test_quotation_marks_of_liar_are_text)
def liar_is_read_as_csv(patch):
    def read(file):
        with file.open(newline="") as lines:
            return ["\t".join(cells) for cells in csv.reader(lines, delimiter="\t")]

    patch.setattr(liar, "read_lines", read)


@caught_by(data_sets.test_the_side_of_a_claim_does_not_change_from_one_release_to_the_next)
def fever_is_split_by_the_hash_of_the_process(patch):
    edit(patch, fever.side, 'int.from_bytes(digest, "big") % 10', "hash(text) % 10")


@caught_by(data_sets.test_mbpp_is_split_by_task_and_hides_its_tests)
def programs_of_mbpp_keep_their_carriage_returns(patch):
    edit(patch, mbpp._row, '_unix(row["code"])', 'row["code"]')


@caught_by(data_sets.test_mbpp_is_split_by_task_and_hides_its_tests)
def the_prompt_of_mbpp_shows_every_test(patch):
    edit(patch, mbpp._row, "else tests[0]", 'else "\\n".join(tests)')


@caught_by(claims.test_spans_end_before_their_end)
def spans_hold_the_character_at_their_end(patch):
    edit(patch, semeval2020_task11._span, "int(begin), int(end))", "int(begin), int(end) + 1)")


@caught_by(claims.test_offsets_count_marks_of_order_and_line_ends_too)
def line_ends_of_articles_are_made_alike(patch):
    old = 'read_bytes().decode("utf-8")'
    edit(patch, semeval2020_task11._articles, old, 'read_text("utf-8")')


@caught_by(data_sets.test_the_last_box, solution=r"\boxed{1}, no: \boxed{2}", answer="2")
def the_first_box_is_the_answer(patch):
    edit(patch, competition_math.last_box, 'rfind("\\\\boxed")', 'find("\\\\boxed")')


@caught_by(test_templates.test_braces_in_a_row_are_text)
def fields_are_filled_one_after_the_other(patch):
    old = "FIELD.sub(lambda match: str(values[match[1]]), text)"
    new = (
        "text\n    for x, value in values.items():\n"
        "        filled = filled.replace('{%s}' % x, str(value))"
    )
    edit(patch, templates.fill, old, new)


@caught_by(downloads.test_two_versions_of_a_file_are_never_joined)
def a_part_goes_on_with_another_version(patch):
    edit(patch, download._receive, 'headers["If-Range"] = version', "pass")


@caught_by(downloads.test_a_file_whose_sum_is_another_is_named)
def a_file_is_checked_by_its_size_alone(patch):
    edit(patch, download._is_intact, ' or sha256(file) != entry["sha256"]', "")


@pytest.mark.parametrize(("fault", "test", "keys"), FAULTS, ids=[f.__name__ for f, *_ in FAULTS])
def test_a_seeded_fault_is_caught(fault, test, keys, request, tmp_path, monkeypatch):
    given = inspect.signature(test).parameters.keys() - keys.keys()
    fixtures = {name: request.getfixturevalue(name) for name in given}
    monkeypatch.setenv("COLUMNS", "250")  # lines of commands are not wrapped

    def call(folder, patch):
        test(**keys, **fixtures | ({"monkeypatch": patch} if "monkeypatch" in given else {}))

    test_seeded_faults.assert_caught(fault, call, tmp_path, monkeypatch)
