//! The experiments of the failure and threat tables that this version proves. `F1` and the like are
//! stable names; each experiment is a function that says in its name what it shows.
//!
//! `cargo test -p outrigger-tests --test faults -- F1` runs one of them, `OUTRIGGER_COUNTS=release`
//! as often as a release does, `OUTRIGGER_SEED` with the choices of an earlier run.

mod admin;
mod authentik;
mod authentik_threats;
mod broken;
mod broker;
mod broker_frames;
mod broker_partition;
mod broker_queues;
mod broker_tls;
mod certificates;
mod clock;
mod crowds;
mod dead_disk;
mod duplicates;
mod failover;
mod floods;
mod forgeries;
mod framing;
mod full;
mod gateway;
mod golden;
mod images;
mod journals;
mod kills;
mod leaks;
mod memory;
mod network;
mod operators;
mod outgoing;
mod payloads;
mod power;
mod replays;
mod replicas;
mod rot;
mod sizes;
mod slow_disk;
mod soak;
mod sources;
mod syscalls;
mod timing;
mod usage;
mod workflows;

use std::process::ExitCode;

use outrigger_tests::experiment;
use outrigger_tests::experiment::Experiment;

/// So many experiments run at a time: most of what they do is to wait, for a schedule, a limit or a start.
const BESIDE: usize = 3;

fn main() -> ExitCode {
    // Started by one of the experiments, to see what a panic says.
    if let Ok(text) = std::env::var(leaks::PANIC_PROBE) {
        leaks::panic_with(&text);
        return ExitCode::SUCCESS;
    }
    if let Ok(name) = std::env::var(golden::MAKE_VARIABLE) {
        return golden::make(&name);
    }
    let experiments: &[Experiment] = &[
        experiment!("F1", kills::a_kill_under_load_loses_nothing, 100, 2_000),
        experiment!("F27", kills::a_stop_under_load_answers_what_it_took, 30, 500),
        experiment!("F27", kills::a_second_signal_ends_at_once_and_an_unfinished_body_does_not_hold_up, 3, 25),
        experiment!("F21", duplicates::one_webhook_sent_by_many_at_once_is_one_event, 50, 1_000),
        experiment!("F21", duplicates::replays_in_any_order_are_known_across_restarts, 10, 200),
        experiment!("F23", sizes::bodies_are_taken_whole_or_not_at_all, 1, 1),
        experiment!("F1", journals::a_kill_during_the_first_start_leaves_a_usable_journal, 50, 500),
        experiment!("F29", journals::a_newer_journal_is_refused_untouched, 1, 1),
        experiment!("F30", journals::one_process_writes_a_journal, 25, 500),
        experiment!("F32", broken::a_broken_environment_is_told_in_one_line_per_mistake, 1, 1),
        experiment!("F32", broken::a_folder_that_cannot_be_written_is_named, 1, 1),
        experiment!("F32", broken::a_journal_that_cannot_be_written_is_named, 1, 1),
        experiment!("REC", forgeries::recorded_requests_are_accepted_and_refused_with_one_byte_flipped, 1, 20),
        experiment!("T1", forgeries::no_changed_byte_gets_through, 500, 10_000),
        experiment!("T2", forgeries::no_other_algorithm_is_accepted, 1, 1),
        experiment!("T3", forgeries::no_key_that_a_token_brings_is_used, 1, 1),
        experiment!("T3", forgeries::no_weak_or_wrong_key_file_is_taken, 1, 1),
        experiment!("T4", forgeries::no_claim_but_lagos_own_is_accepted, 1, 1),
        experiment!("T9", framing::no_second_request_is_hidden_in_a_first, 1, 1),
        experiment!("T13", sizes::compressed_bodies_are_refused_unread, 50, 1_000),
        experiment!("T14", sizes::a_large_head_is_for_tokens_only, 1, 1),
        experiment!("T14", sizes::many_large_heads_stay_within_the_budget, 50, 1_000).alone(),
        experiment!("F3", power::a_power_cut_on_ext4_loses_nothing, 40, 2_000),
        experiment!("F3", power::a_power_cut_on_xfs_loses_nothing, 20, 1_000),
        experiment!("F5", syscalls::a_failed_sync_is_refused_and_the_store_reopened, 10, 40),
        experiment!("F5", syscalls::a_failed_write_is_refused_and_the_store_reopened, 10, 120),
        experiment!("F5", syscalls::no_member_of_a_failed_group_is_accepted, 5, 50),
        experiment!("F5", syscalls::a_failed_copy_is_made_again_from_the_beginning, 3, 60),
        experiment!("F2", syscalls::a_kill_at_any_call_under_load_loses_nothing, 60, 600),
        experiment!("F2", syscalls::a_kill_at_any_call_of_a_start_is_recovered_from, 60, 600),
        experiment!("F9", slow_disk::a_slow_disk_makes_larger_groups, 2, 50).alone(),
        experiment!("F9", slow_disk::a_full_queue_is_refused_at_once, 1, 10).alone(),
        experiment!("F9", slow_disk::a_hanging_disk_is_answered_503_in_time, 1, 10),
        experiment!("F31", operators::operators_may_act_while_the_daemon_is_killed, 15, 300),
        experiment!("F31", operators::operators_may_act_while_the_power_is_cut, 15, 300),
        experiment!("F6", power::a_disk_that_lies_is_noticed, 2, 20),
        experiment!("F29", golden::a_journal_of_every_version_is_read_and_delivered, 1, 1),
        experiment!("F29", golden::a_kill_while_an_older_journal_is_opened_costs_nothing, 50, 50),
        experiment!("F27", kills::a_hanging_disk_does_not_hold_up_a_stop, 1, 20).alone(),
        experiment!("F28", memory::a_crowd_with_large_bodies_does_not_exhaust_the_memory, 1, 10).alone(),
        experiment!("F28", memory::a_kill_for_lack_of_memory_loses_nothing, 2, 100),
        experiment!("F16", gateway::every_answer_does_what_is_documented, 2, 50).alone(),
        experiment!("F16", gateway::a_gateway_that_asks_all_to_wait_is_left_alone, 1, 20).alone(),
        experiment!("F17", network::a_bad_answer_costs_its_own_event_a_limited_time, 1, 5).alone(),
        experiment!("F17", network::a_connection_may_break_at_any_byte, 100, 500).alone(),
        experiment!("F17", network::a_kept_connection_that_is_closed_costs_one_short_wait, 5, 50).alone(),
        experiment!("F17", network::the_default_limits_end_every_attempt, 1, 1),
        experiment!("F18", network::a_name_that_cannot_be_found_costs_time_only, 7, 100),
        experiment!("F1", replicas::killed_replicas_lose_nothing_and_keep_the_order, 12, 200),
        experiment!("F1", replicas::a_restarted_database_loses_nothing, 4, 60),
        experiment!("F1", replicas::replicas_behind_a_pooler_lose_nothing, 6, 100),
        experiment!("F1", failover::a_promoted_standby_has_everything_and_nobody_restarts, 2, 20),
        experiment!("F1", failover::a_standby_that_lagged_is_told_of_and_gone_on_with, 1, 10),
        experiment!("F11", replicas::replicas_with_other_clocks_take_over_from_each_other, 3, 30),
        experiment!("F20", usage::every_event_is_billed_once_as_it_was_sent, 100, 1_000),
        experiment!("F22", gateway::poison_is_parked_and_holds_nobody_up, 2, 100).alone(),
        experiment!("F24", crowds::slow_senders_do_not_slow_others, 10, 60).alone(),
        experiment!("F24", crowds::slowhttptest_does_not_slow_others, 5, 60).alone(),
        experiment!("F25", crowds::ten_thousand_idle_connections_cost_little, 1, 3).alone(),
        experiment!("F25", crowds::idle_connections_are_closed, 1, 3).alone(),
        experiment!("F26", crowds::without_file_descriptors_it_waits_and_recovers, 2, 50).alone(),
        experiment!("F26", crowds::without_threads_it_goes_on_and_recovers, 1, 20),
        experiment!("T7", outgoing::destinations_come_from_the_configuration_only, 1, 1),
        experiment!("T8", outgoing::nothing_in_a_webhook_bends_the_outgoing_request, 1_000, 50_000),
        experiment!("T20", certificates::a_gateway_that_cannot_prove_itself_gets_nothing, 1, 5),
        experiment!("T20", certificates::a_lago_behind_an_own_authority_gives_its_key, 1, 1),
        experiment!("T5", replays::a_captured_request_is_one_event_whatever_is_replayed, 4, 100),
        experiment!("T18", replays::a_forged_key_does_not_shut_the_real_one_out, 100, 2_000),
        experiment!("T10", leaks::no_text_from_outside_forges_or_floods_the_log, 1, 10),
        experiment!("T11", leaks::no_secret_is_in_any_output, 1, 10),
        experiment!("T12", admin::every_admin_route_wants_the_token, 1, 10),
        experiment!("T15", payloads::every_genuine_body_is_delivered_as_it_is, 1, 20),
        experiment!("T16", payloads::no_odd_path_or_method_is_the_intake, 1, 20),
        experiment!("F11", clock::no_jump_of_the_clock_loses_or_forgets_anything, 6, 500),
        experiment!("T17", floods::a_flood_of_forgeries_costs_the_good_ones_little, 3, 60).alone(),
        experiment!("T6", timing::no_comparison_tells_how_much_was_right, 30_000, 1_000_000).alone(),
        experiment!("F33", soak::hours_of_faults_leave_nothing_behind, 36, 14_400),
        experiment!("T23", sources::no_crate_of_ours_is_unsafe, 1, 1),
        experiment!("T24", payloads::nothing_from_outside_makes_a_panic, 4_800, 100_000),
        experiment!("T25", payloads::no_sender_makes_the_metrics_grow, 20_000, 100_000).alone(),
        experiment!("F7", full::a_full_disk_refuses_and_recovers_without_a_restart, 8, 120),
        experiment!("F7", full::a_file_size_limit_refuses_and_recovers_without_a_restart, 6, 60),
        experiment!("F7", full::writes_without_room_are_refused_and_the_journal_recovers, 6, 120),
        experiment!("F7", full::a_start_without_room_says_so_and_leaves_nothing_broken, 20, 60),
        experiment!("F10", rot::a_flipped_bit_is_never_served, 2_000, 300_000),
        experiment!("F10", rot::a_flipped_bit_of_a_small_store_is_never_served, 2_000, 2_000_000),
        experiment!("F10", rot::a_truncated_file_is_never_served, 700, 600_000),
        experiment!("F10", rot::a_blank_page_is_never_served, 800, 2_000),
        experiment!("F10", rot::a_swapped_file_is_never_served, 1, 1),
        experiment!("F10", rot::a_rotten_journal_never_reaches_the_gateway, 10, 200),
        experiment!("F4", images::every_crash_image_opens_and_holds_what_was_acknowledged, 2_000, 100_000),
        experiment!("F12", broker::a_broker_that_dies_gets_everything_once_it_is_back, 10, 200),
        experiment!("F12", broker::usage_from_a_queue_is_billed_once_whatever_dies, 3, 60),
        experiment!("F12", broker::usage_from_a_queue_is_billed_once_from_a_journal_in_postgresql, 3, 60),
        experiment!("F13", broker::a_silent_broker_is_noticed_and_sent_everything_again, 10, 200),
        experiment!("F13", broker_partition::a_partition_is_noticed_and_costs_the_broker_alone, 5, 100),
        experiment!("F14", broker::an_alarm_holds_up_the_broker_alone, 3, 50),
        experiment!("F15", broker_frames::every_return_is_matched_to_its_own_message, 2, 200),
        experiment!("F15", broker::what_the_broker_refuses_is_told_and_tried_again, 3, 50),
        experiment!("F15", broker_queues::a_queue_that_is_deleted_beside_another_is_made_again, 2, 25),
        experiment!("F22", broker::a_message_too_large_for_the_broker_holds_nobody_up, 1, 50).alone(),
        experiment!("T20", broker_tls::a_broker_is_believed_by_its_certificate_alone, 1, 20),
        experiment!("T19", broker_frames::a_broker_that_sends_nonsense_is_survived, 200, 5_000).alone(),
        experiment!("F1", authentik::every_event_arrives_under_its_id_whatever_webhooks_do, 100, 1_000),
        experiment!("F1", authentik::a_kill_under_load_loses_no_identity_event, 100, 2_000),
        experiment!("F3", authentik::a_power_cut_on_ext4_loses_no_identity_event, 40, 2_000),
        experiment!("F3", authentik::a_power_cut_on_xfs_loses_no_identity_event, 20, 1_000),
        experiment!("F16", authentik::every_answer_to_an_identity_event_does_what_is_documented, 2, 50).alone(),
        experiment!("F21", authentik::one_event_sent_by_many_at_once_is_one_event, 50, 1_000),
        experiment!("F24", authentik::slow_senders_do_not_slow_authentik, 10, 60).alone(),
        experiment!("F27", authentik::a_stop_under_load_answers_identity_events, 30, 500),
        experiment!("F27", authentik::a_second_signal_ends_the_forwarder_at_once, 3, 25),
        experiment!("T1", authentik::no_changed_byte_of_an_identity_event_gets_through, 500, 10_000),
        experiment!("T5", authentik::a_captured_identity_event_is_one_event, 4, 100),
        experiment!("T6", timing::no_proof_of_authentiks_tells_how_much_was_right, 30_000, 1_000_000).alone(),
        experiment!("T7", authentik_threats::destinations_of_the_forwarder_come_from_the_configuration_only, 1, 1),
        experiment!("T8", authentik_threats::nothing_in_an_identity_event_bends_the_outgoing_request, 1_000, 50_000),
        experiment!("T9", authentik_threats::no_second_identity_event_is_hidden_in_a_first, 1, 1),
        experiment!("T10", authentik_threats::no_text_in_an_identity_event_forges_or_floods_the_log, 1, 10),
        experiment!("T11", authentik::no_secret_of_authentiks_is_in_any_output, 1, 1),
        experiment!("T12", authentik::every_admin_route_of_the_forwarder_wants_the_token, 1, 10),
        experiment!("T26", authentik::authentik_must_prove_itself, 1, 1),
        experiment!("F1", workflows::every_event_is_one_workflow_with_one_end_on_1_32, 3, 100),
        experiment!("F1", workflows::every_event_is_one_workflow_with_one_end_on_1_29, 3, 100),
        experiment!("F8", dead_disk::a_dead_disk_is_answered_503_and_survived, 6, 100),
    ];
    outrigger_tests::experiment::main(experiments, BESIDE)
}
