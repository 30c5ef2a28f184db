"""Which test makes each fault that exactly once has to bear: by file and name, so that none goes missing unnoticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RULES = {
    "retention shorter than the floor's age": [
        "serve/test_daemon.py::test_retention_shorter_than_the_floor_is_refused"
    ],
    "input truncated, made again, offset out of range": [
        "serve/test_daemon.py::test_an_input_made_again_is_refused",
        "serve/test_restore_choice.py::test_an_offset_outside_the_log_is_refused_with_where_to_move_it",
    ],
    "the input's partition count grows": ["serve/test_daemon.py::test_a_grown_input_is_refused"],
    "model changed": ["serve/test_daemon.py::test_reset_starts_with_empty_states_and_going_back_revives_nothing_stale"],
    "idle key": ["serve/test_checkpoint.py::test_an_idle_owner_writes_what_is_due_and_then_has_nothing_to_replay"],
    "zombie": ["faults/test_stalls.py::test_a_stalled_owner_commits_nothing_once_it_was_replaced"],
    "the outcome of a commit is not known": [
        "faults/test_requests.py::test_requests_of_one_type",
        "broker/test_lost_commits.py::test_an_idle_checkpoint_whose_end_is_lost_loses_no_state",
    ],
    "operator moves the group's offsets back": ["serve/test_daemon.py::test_offsets_moved_back_rebuild_from_the_start"],
    "the group's offsets are lost": ["serve/test_daemon.py::test_lost_offsets_are_refused"],
}
FAULTS = {
    "kill -9 at each point": ["broker/test_kill_points.py::test_a_kill_at_any_point_is_made_good"],
    "random kills, stops and SIGTERM of three workers": ["faults/test_chaos.py::test_a_minute_of_random_faults"],
    "metrics during chaos": ["faults/test_chaos.py::test_a_minute_of_random_faults"],
    "stalled at each point while another takes over": [
        "faults/test_stalls.py::test_a_stalled_owner_commits_nothing_once_it_was_replaced"
    ],
    "two processes with one transactional id": ["faults/test_members.py::test_two_processes_with_one_identity"],
    "the step takes longer than the transaction's timeout": [
        "faults/test_stalls.py::test_a_stalled_owner_commits_nothing_once_it_was_replaced"
    ],
    "broker killed five times, away for 70 s, away at the start": [
        "faults/test_outages.py::test_a_broker_that_is_killed_five_times_and_then_away_for_long"
    ],
    "brokers of a cluster killed and frozen": ["faults/test_cluster.py::test_brokers_go_one_after_another"],
    "single requests lost, late, cut": ["faults/test_requests.py::test_requests_of_one_type"],
    "disk full": ["faults/test_disk_full.py::test_a_disk_that_is_full_and_has_room_again"],
    "batches of any size": ["serve/test_engine.py::test_batching_changes_no_byte"],
    "restore after compaction, half-written checkpoint": [
        "serve/test_daemon.py::test_compaction_and_a_damaged_state_change_no_answer",
        "serve/test_checkpoint.py::test_restore_and_replay_give_the_live_states_at_any_moment",
    ],
    "damaged state records": [
        "serve/test_restore.py::test_a_damaged_record_means_a_rebuild_from_the_beginning",
        "serve/test_restore_choice.py::test_states_of_format_1_are_refused_with_the_cure",
    ],
    "records deleted beyond the floor": ["serve/test_daemon.py::test_retention_shorter_than_the_floor_is_refused"],
    "one partition more while running": ["serve/test_topics.py::test_an_input_that_has_grown_is_noticed_at_once"],
    "another model under the same group": [
        "broker/test_daemon_life.py::test_another_model_under_the_same_name_is_refused"
    ],
    "hostile keys and values": [
        "faults/test_chaos.py::test_a_minute_of_random_faults",  # the load of every test of this folder has them
        "broker/test_daemon_life.py::test_bad_records_become_dead_letters_and_harm_nobody",
    ],
    "output missing, denied, too big": [
        "broker/test_daemon_life.py::test_an_output_topic_that_vanishes_stops_it_and_nothing_is_skipped",
        "broker/test_daemon_life.py::test_an_answer_that_is_too_big_becomes_a_dead_letter",
        "broker/test_refusals.py::test_a_topic_that_may_not_be_written_is_named",
    ],
    "gaps and aborted records in the input": [
        "broker/test_offsets_without_records.py::test_aborted_records_are_passed_over_and_the_offset_says_so"
    ],
    "a foreign transaction hangs on the input": [
        "broker/test_others_on_topics.py::test_an_open_transaction_has_a_place_until_it_ends"
    ],
    "SIGTERM at each point, twice": [
        "broker/test_daemon_life.py::test_a_stop_is_heard_from_the_first_moment_to_the_last",
        "broker/test_stopping.py::test_a_stop_with_states_to_hand_over",
    ],
    "a member joins and leaves every two seconds": ["faults/test_members.py::test_a_member_that_comes_and_goes"],
}


@pytest.mark.short_fault
@pytest.mark.only_client("confluent")
def test_each_fault_has_its_test() -> None:
    missing = []
    for row, places in {**RULES, **FAULTS}.items():
        for place in places:
            file, _, name = place.partition("::")
            path = ROOT / "tests" / file
            if not path.exists() or not re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE):
                missing.append(f"{row}: {place}")
    assert not missing, "\n".join(missing)
