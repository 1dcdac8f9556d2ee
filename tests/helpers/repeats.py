"""Repeats of one mechanism, which take their turn in `make test-slow`."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any
from zlib import crc32

import pytest

FAST_SHARE: dict[str, dict[str, int]] = {
    "cuda/test_cuda_attention.py": {
        "test_every_version_of_torch": 6,
        "test_the_flash_kernel_where_it_fits_and_the_same_result": 6,
    },
    "cuda/test_cuda_methods.py": {
        "test_a_step": 6,
        "test_a_variant": 6,
    },
    "cuda/test_cuda_runs.py": {
        "test_evaluation_during_training": 3,
        "test_lora_with_dropout_kl_and_a_value_model": 3,
        "test_the_sampler_gives_the_cpus_completions": 6,
    },
    "faults/test_evaluation_faults.py": {
        "test_a_seeded_fault_is_caught": 3,
    },
    "faults/test_preference_data_faults.py": {
        "test_a_seeded_fault_is_caught": 2,
    },
    "faults/test_preference_faults.py": {
        "test_a_seeded_fault_is_caught": 3,
    },
    "faults/test_seeded_faults.py": {
        "test_a_seeded_fault_is_caught": 6,
    },
    "integration/test_adapters_and_methods.py": {
        "test_gradient_does_not_depend_on_micro_batch_size_or_packing": 3,
        "test_the_reference_is_the_model_at_the_start": 3,
        "test_train_2n_equals_train_n_and_resume": 2,
    },
    "integration/test_architectures.py": {
        "test_a_new_adapter_starts_as_the_base_and_trains": 3,
        "test_is_as_in_transformers_and_as_the_page_says": 3,
        "test_preference_and_rl_start_where_they_should": 3,
    },
    "integration/test_by_shards.py": {
        "test_parts_are_the_whole": 3,
    },
    "integration/test_chat_page.py": {
        "test_a_message_is_answered_as_the_api_answers_it": 2,
    },
    "integration/test_classification.py": {
        "test_classify_gives_the_labels_and_the_scores_of_the_run": 2,
    },
    "integration/test_distributed.py": {
        "test_two_ranks_equal_one": 2,
    },
    "integration/test_invariants.py": {
        "test_every_trainable_tensor_gets_a_gradient": 3,
        "test_gradient_checkpointing_changes_nothing": 3,
        "test_gradient_does_not_depend_on_micro_batch_size_or_packing": 4,
        "test_gradient_does_not_depend_on_the_order_of_sequences": 4,
        "test_loss_gradient_by_finite_differences": 4,
        "test_matches_a_padded_model_with_no_code_of_ours": 4,
        "test_overfits_one_batch": 6,
        "test_policy_and_reference_agree_exactly_at_step_0": 3,
        "test_tokens_outside_the_mask_get_no_gradient": 4,
    },
    "integration/test_meshes.py": {
        "test_what_ranks_cannot_split_is_said_before_anything_is_written": 2,
    },
    "integration/test_peft_kinds.py": {
        "test_tensors_of_several_layers_are_not_sharded": 4,
    },
    "integration/test_process_rewards.py": {
        "test_loads_elsewhere_and_says_the_same_of_every_step": 2,
    },
    "integration/test_qlora.py": {
        "test_adapters_train_on_quantised_weights_and_gradient_checkpointing_changes_nothing": 3,
        "test_gradient_does_not_depend_on_micro_batch_size_or_packing": 2,
        "test_merging_goes_into_the_unquantised_base": 3,
        "test_resume_after_an_evaluation_bit_for_bit": 2,
    },
    "integration/test_ranks_that_evaluate.py": {
        "test_other_settings_are_named": 3,
    },
    "integration/test_reference.py": {
        "test_another_model_is_the_reference": 2,
        "test_resume_with_a_reference_that_follows": 2,
    },
    "integration/test_resume.py": {
        "test_train_2n_equals_train_n_and_resume": 4,
    },
    "integration/test_workers.py": {
        "test_a_run_and_its_resume": 2,
        "test_a_twin_of_every_adapter": 3,
        "test_the_gradient_does_not_depend_on_the_number": 3,
    },
    "red_team/test_completion_fuzz.py": {
        "test_a_few_completions_end_in_verdicts": 3,
        "test_the_costliest_texts_end_in_time": 4,
    },
    "red_team/test_red_team.py": {
        "test_a_trick_scores_0_at_every_level": 6,
        "test_an_attack_scores_0_in_time_and_leaves_nothing": 6,
        "test_an_honest_solution_scores_1": 4,
    },
    "test_architecture.py": {
        "test_every_method_has_a_recipe": 3,
    },
    "unit/cli/test_cli.py": {
        "test_train_refuses": 3,
    },
    "unit/cli/test_what_people_have.py": {
        "test_a_folder_that_is_not_whole_is_one_line": 3,
    },
    "unit/common/test_environment.py": {
        "test_a_product_does_not_depend_on_where_its_operands_lie": 2,
    },
    "unit/common/test_secrets.py": {
        "test_no_error_on_the_command_line_shows_a_secret": 2,
    },
    "unit/config/test_config.py": {
        "test_keys_of_other_frameworks_give_the_hint": 4,
    },
    "unit/data/test_direct_rendering.py": {
        "test_every_method_trains_on_what_the_template_gives": 4,
    },
    "unit/data/test_programs.py": {
        "test_every_family_has_enough_tasks_on_both_sides": 3,
    },
    "unit/data/test_turns.py": {
        "test_a_row_of_each_turn_is_the_direct_rendering_of_its_prefix": 3,
        "test_one_sequence_holds_what_the_rows_of_its_turns_hold": 3,
    },
    "unit/data/test_word_problems.py": {
        "test_every_family_has_enough_problems_on_both_sides": 4,
    },
    "unit/evaluation/test_evaluation_command.py": {
        "test_kill_and_resume_give_the_result_of_one_go": 2,
    },
    "unit/export/test_combine.py": {
        "test_starts_that_change_the_base_are_refused_and_no_others": 3,
        "test_what_quantised_bases_mean_for_a_merge": 2,
    },
    "unit/model/test_adapter_kinds.py": {
        "test_a_start_does_not_take_the_embedding_along": 2,
        "test_it_begins_as_the_base_and_has_gradients_everywhere": 3,
        "test_its_checkpoint_is_what_was_trained": 3,
        "test_keys_of_a_lora": 3,
        "test_on_quantised_weights_it_is_what_peft_computes_on_the_same_weights": 3,
        "test_short_forms_ask_for_a_lora": 2,
    },
    "unit/model/test_adapters.py": {
        "test_an_adapter_is_what_peft_computes_and_is_saved_whole": 3,
        "test_resized_embeddings_are_trained_and_saved": 2,
    },
    "unit/model/test_damaged_folders.py": {
        "test_damage_is_named_or_harmless": 3,
    },
    "unit/model/test_gguf_round_trip.py": {
        "test_a_file_read_back_is_the_same_model": 3,
    },
    "unit/model/test_linear.py": {
        "test_the_invariants_hold_with_every_product": 2,
    },
    "unit/model/test_many_adapters.py": {
        "test_architectures_with_and_without_packing": 2,
    },
    "unit/model/test_parallel.py": {
        "test_architectures": 2,
    },
    "unit/model/test_quantized.py": {
        "test_adapters_compute_as_beside_the_rounded_weights": 3,
        "test_edits_are_read_on_weights_that_are_stored_otherwise": 3,
        "test_strange_weights_are_read": 3,
    },
    "unit/model/test_reft.py": {
        "test_packed_rows_are_edited_as_alone": 4,
    },
    "unit/model/test_trial.py": {
        "test_dropout_is_off_by_default_where_log_probs_are_compared": 4,
    },
    "unit/rewards/test_code_reward.py": {
        "test_partial_credit_is_the_share_of_the_tests_that_no_stub_passes": 3,
    },
    "unit/rewards/test_math_answers.py": {
        "test_a_wrong_answer_gets_no_credit": 3,
    },
    "unit/rewards/test_math_mutations.py": {
        "test_a_changed_answer_loses_its_credit": 2,
        "test_a_changed_formula_loses_its_credit": 3,
    },
    "unit/rewards/test_math_reward.py": {
        "test_hostile_text_ends_within_the_bound": 3,
    },
    "unit/rewards/test_reward_fuzz.py": {
        "test_a_mib_is_judged_in_linear_time": 3,
    },
    "unit/rollout/test_apart.py": {
        "test_a_row_does_not_depend_on_the_call_that_it_is_in": 2,
        "test_each_row_has_the_log_probs_of_a_forward_pass": 3,
    },
    "unit/rollout/test_decode.py": {
        "test_every_covered_architecture_steps_as_its_modules": 4,
        "test_in_16_bits_the_prompts_are_as_near_to_fp32_as_through_the_modules": 3,
        "test_in_16_bits_the_step_with_an_adapter_is_as_near_to_fp32_as_the_modules": 3,
        "test_prompts_through_the_written_out_layers_are_as_through_the_modules": 4,
        "test_the_way_of_sampling_does_not_show": 6,
    },
    "unit/rollout/test_server_engine.py": {
        "test_a_passing_fault_changes_nothing": 2,
        "test_every_fault_is_named_with_its_server": 5,
        "test_every_version_is_delivered_once_and_the_one_before_taken_back": 2,
        "test_rollouts_equal_the_native_samplers": 2,
    },
    "unit/runs/test_generate_file.py": {
        "test_other_settings_rows_or_weights_are_refused": 3,
    },
    "unit/runs/test_preference_runs.py": {
        "test_a_precomputed_reference_is_the_reference": 2,
    },
    "unit/runs/test_recipes.py": {
        "test_every_recipe_for_a_cpu_runs": 2,
    },
    "unit/runs/test_series.py": {
        "test_a_wrong_list_is_one_line": 3,
    },
    "unit/runs/test_sweep.py": {
        "test_a_wrong_sweep_is_one_line": 4,
    },
    "unit/sandbox/test_extract.py": {
        "test_a_hostile_completion_is_read": 4,
    },
    "unit/sandbox/test_sandbox.py": {
        "test_a_lane_that_dies_is_replaced": 2,
        "test_no_process_survives_the_trainer": 2,
        "test_what_a_candidate_finds_around_it": 2,
    },
    "unit/serving/test_engine.py": {
        "test_a_prefix_that_is_remembered_changes_nothing": 3,
    },
    "unit/tracking/test_full_disk.py": {
        "test_a_file_that_the_disk_does_not_take_stops_the_run": 2,
    },
    "unit/tracking/test_report_browser.py": {
        "test_everything_is_drawn_and_fits": 2,
    },
    "unit/tracking/test_series_page.py": {
        "test_a_line_for_each_run_fits_and_reads_out": 2,
    },
    "unit/tracking/test_trackers.py": {
        "test_a_tracker_that_fails_costs_one_line": 2,
        "test_killed_and_resumed": 2,
    },
}
"""By file and test: of how many cases one is fast. The rest repeat it on other parameters."""


def choice(values: Iterable[Any], fast: Container[Any]) -> Any:
    """All values for parametrize, those in `fast` in the fast tests; a tuple is several values."""
    rows = [(v, v if isinstance(v, tuple) else (v,)) for v in values]
    return [pytest.param(*row, marks=() if v in fast else pytest.mark.slow) for v, row in rows]


def leave_for_slow(items: Iterable[pytest.Item], tests: Any) -> None:
    """Mark as slow what FAST_SHARE leaves out: drawn by the name of each case, the first stays."""
    seen: set[str] = set()
    for item in items:
        name, _, case = item.name.partition("[")
        file = item.path.relative_to(tests).as_posix() if item.path.is_relative_to(tests) else ""
        share = FAST_SHARE.get(file, {}).get(name, 1)
        if item.get_closest_marker("slow"):
            continue
        is_first = (key := f"{file}::{name}") not in seen
        seen.add(key)
        if not is_first and crc32(case.encode()) % share:
            item.add_marker(pytest.mark.slow)
