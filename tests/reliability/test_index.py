"""Rows 51 to 90 of the reliability table (checkpoints, training, language models) and the tests that prove them.

Rows 1 to 50 carry their number in the names of `test_problems.py`, `test_solve_faults.py` and `test_files.py`. A row
whose requirement is met otherwise than the table says has the reason beside it.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

ROWS = {
    51: ["reliability/test_checkpoints.py::test_damage_falls_back_to_the_step_before",
         "reliability/test_checkpoints.py::test_every_bit_flip_in_the_array_data_is_seen",
         "reliability/test_training_faults.py::test_rows_51_and_52_a_run_goes_on_from_the_state_before_a_damaged_one"],
    52: ["reliability/test_checkpoints.py::test_damage_falls_back_to_the_step_before",
         "reliability/test_training_faults.py::test_rows_51_and_52_a_run_goes_on_from_the_state_before_a_damaged_one",
         "reliability/test_training_faults.py::test_rows_51_and_52_a_run_without_a_whole_state_says_so"],
    53: ["reliability/test_checkpoints.py::test_other_structure_shape_or_type_is_named"],
    54: ["reliability/test_checkpoints.py::test_other_structure_shape_or_type_is_named"],
    55: ["reliability/test_checkpoints.py::test_another_identity_is_refused_with_both_values",
         "reliability/test_checkpoints.py::test_another_format_is_refused",
         "reliability/test_training_faults.py::test_row_55_a_changed_recipe_is_refused_with_both_values",
         "reliability/test_training_faults.py::test_row_55_other_versions_are_said",
         "training/test_trainer.py::test_a_folder_with_a_run_is_not_overwritten_and_no_other_run_goes_on_in_it"],
    56: ["reliability/test_checkpoints.py::test_a_file_where_the_folder_should_be",
         "reliability/test_checkpoints.py::test_a_folder_that_cannot_be_written",
         "reliability/test_training_faults.py::test_row_56_a_file_where_the_folder_should_be"],
    57: ["reliability/test_checkpoint_faults.py::test_full_disk_keeps_the_previous_step_and_the_next_save_works"],
    58: ["reliability/test_checkpoint_faults.py::test_sigkill_during_a_save_leaves_the_steps_before_it_whole",
         "training/test_trainer.py::test_a_run_that_is_killed_goes_on_with_the_same_bits"],
    59: ["reliability/test_checkpoint_faults.py::test_a_second_run_on_the_folder_is_refused_while_the_first_lives",
         "reliability/test_checkpoint_faults.py::test_a_stale_lock_of_a_dead_process_is_taken_over_and_said",
         "reliability/test_training_faults.py"
         "::test_row_59_a_second_run_in_the_folder_is_refused_while_the_first_lives"],
    60: ["reliability/test_files.py::test_a_failed_write_leaves_the_old_file_alone"],
    61: ["training/test_trainer.py::test_a_stopped_run_goes_on_with_the_same_bits",
         "training/test_trainer.py::test_a_signal_in_the_middle_of_scoring_ends_the_step_first",
         "reliability/test_training_faults.py"
         "::test_row_61_a_signal_ends_the_command_with_its_code_and_the_run_goes_on",
         "reliability/test_group_faults.py::test_row_61_a_signal_to_one_process_stops_both_at_the_same_step"],
    62: ["test_sharding.py::test_a_group_ends_when_one_member_fails",
         "reliability/test_group_faults.py::test_row_62_a_killed_process_ends_the_group_and_the_run_goes_on"],
    63: ["training/test_step.py::test_what_is_not_finite_is_skipped_and_counted",
         "training/test_trainer.py::test_steps_that_are_not_finite_end_the_run",
         "reliability/test_training_faults.py"
         "::test_row_63_after_bad_steps_the_last_good_state_is_saved_and_goes_on"],
    64: ["training/test_rewards.py::test_an_exception_names_function_row_text_and_trace",
         "training/test_rewards.py::test_failures_can_be_masked_and_are_counted"],
    65: ["training/test_rewards.py::test_numbers_of_any_kind_count_and_missing_ones_are_nan",
         "training/test_rewards.py::test_anything_else_is_refused_by_name_and_row",
         "training/test_advantages.py::test_nothing_there_gives_zero_and_no_nan",
         "training/test_feed.py::test_a_row_without_any_reward_has_none"],
    66: ["training/test_rewards.py::test_a_function_that_hangs_is_left_behind_and_named"],
    67: ["training/test_advantages.py::test_groups_of_equal_values_give_exactly_zero",
         "training/test_step.py::test_equal_rewards_move_multipliers_and_not_the_policy_part"],
    68: ["training/test_step.py::test_equal_rewards_move_multipliers_and_not_the_policy_part"],
    69: ["training/test_objectives.py::test_what_lies_outside_the_mask_is_never_read",
         "reliability/test_training_faults.py"
         "::test_row_69_a_batch_without_a_token_that_counts_moves_nothing_but_multipliers",
         "reliability/test_training_faults.py::test_row_69_rows_of_length_zero_are_left_out_of_the_means"],
    70: ["training/test_rollout.py::test_limits_end_texts_that_are_not_finished",
         "reliability/test_training_faults.py::test_row_70_truncated_completions_can_be_left_out"],
    71: ["training/test_data.py::test_long_prompts_are_dropped_whole_and_counted",
         "training/test_data.py::test_long_prompts_can_be_an_error_and_too_many_always_are"],
    72: ["training/test_recipe.py::test_refusals_name_the_key"],
    73: ["training/test_recipe.py::test_refusals_name_the_key",
         "reliability/test_training_faults.py::test_row_73_rows_that_the_devices_do_not_divide"],
    74: ["training/test_chat.py::test_special_ids_are_checked"],
    75: ["training/test_chat.py::test_special_ids_are_checked"],
    76: ["training/test_chat.py::test_prompts_that_cannot_be_encoded_are_refused"],
    77: ["models/test_checkpoints.py::test_tensors_that_do_not_fit",
         "models/test_checkpoints.py::test_files_that_are_no_weights",
         "reliability/test_model_faults.py::test_row_77_weights_whose_header_lies"],
    78: ["models/test_checkpoints.py::test_files_that_are_no_weights",
         "models/test_lora.py::test_files_that_are_no_adapters"],
    79: ["reliability/test_model_faults.py::test_row_79_code_that_comes_with_a_model_is_never_run",
         "training/test_chat.py::test_where_no_tokenizer_is_the_error_names_the_place",
         "test_house.py::test_nothing_is_unpickled_executed_or_configured"],
    80: ["models/test_checkpoints.py::test_configurations_that_are_not_implemented_are_refused_by_name"],
    # Links inside the folder are followed: an index cannot make them, and the hub's own cache consists of them.
    81: ["models/test_checkpoints.py::test_an_index_is_believed_only_as_far_as_its_files_go",
         "reliability/test_model_faults.py::test_row_81_an_index_names_no_file_outside_its_folder"],
    82: ["training/test_recipe.py::test_files_that_are_no_recipes",
         "training/test_recipe.py::test_yaml_reads_as_toml_does",
         "training/test_recipe.py::test_refusals_name_the_key"],
    83: ["models/test_sharding.py::test_a_mesh_that_does_not_fit_the_devices_is_refused"],
    # Before a run by `pdopt train --dry-run`, which compiles the step; a run itself does not compile it twice.
    84: ["reliability/test_training_faults.py::test_row_84_a_step_that_does_not_fit_is_refused_before_it_runs"],
    85: ["models/test_sources.py::test_the_hub",
         "training/test_tables.py::test_a_hub_that_cannot_be_reached_is_an_error_with_a_way_out"],
    86: ["training/test_data.py::test_rows_without_a_prompt_are_named",
         "training/test_feed.py::test_completions_to_learn_end_with_the_end_token",
         "training/test_tables.py::test_broken_files_are_named_with_their_line"],
    87: ["training/test_constraints.py::test_the_report_is_in_the_users_units",
         "reliability/test_training_faults.py::test_row_87_a_violation_that_is_not_a_number_leaves_the_multiplier"],
    88: ["reliability/test_training_faults.py"
         "::test_row_88_contradictory_constraints_reach_their_caps_and_are_told"],
    89: ["training/test_sharded_training.py::test_a_run_goes_on_on_another_mesh"],
    90: ["test_package.py::test_importing_is_light_and_leaves_jax_alone"],
}  # fmt: skip


@cache
def functions(file):
    """Names of the functions of a test file."""
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_has_a_test():
    assert list(ROWS) == list(range(51, 91))


@pytest.mark.parametrize("row", ROWS)
def test_the_tests_of_a_row_exist(row):
    assert ROWS[row]
    for place in ROWS[row]:
        file, name = place.split("::")
        assert name in functions(file), place
