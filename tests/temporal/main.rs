//! The bridge beside the real server, of two releases, with workers by the published Python SDK: `./test temporal` installs
//! both. Workflows are started, signalled and ended through Temporal's own HTTP API.

// Figures are printed for whoever looks.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod away;
mod connection;
mod events;
mod observer;
mod signalling;
mod started;
mod starting;

use outrigger_tests::temporal::Release;

/// Runs each scenario beside both releases.
macro_rules! on_both {
    ($($module:ident :: $scenario:ident),* $(,)?) => {
        mod on_1_32 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                super::$module::$scenario(super::Release::New).await;
            })*
        }
        mod on_1_29 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                super::$module::$scenario(super::Release::Old).await;
            })*
        }
    };
}

on_both! {
    observer::every_end_is_told_once_with_what_it_says,
    observer::a_chain_of_runs_has_one_end,
    observer::every_run_of_a_chain_is_told_where_that_is_wanted,
    observer::four_hundred_ends_at_once_are_told,
    observer::ends_are_told_soon,
    observer::a_server_that_restarts_with_its_data_loses_nothing,
    observer::a_server_that_restarts_without_its_data_is_observed_again,
    observer::a_server_that_throttles_is_asked_more_slowly,
    observer::a_long_list_beside_a_server_that_throttles_has_an_end,
    observer::an_idle_server_is_left_alone,
    observer::a_bridge_that_is_killed_at_random_loses_and_invents_nothing,
    observer::a_namespace_may_be_created_late,
    observer::only_what_is_wanted_is_told,
    observer::a_callback_tells_at_once_and_survives_a_wrong_token,
    observer::a_lost_callback_is_found_by_looking,
    observer::a_task_queue_without_a_worker_is_told,
    starting::a_repeated_event_starts_one_workflow_whether_it_runs_or_has_ended,
    starting::what_a_rule_says_is_what_the_workflow_gets,
    signalling::signals_that_start_come_once_each_in_any_order,
    signalling::an_event_whose_answer_was_lost_starts_nothing_twice,
    signalling::a_signal_whose_answer_was_lost_is_no_dead_letter,
    signalling::what_runs_is_signalled_cancelled_and_terminated_and_what_does_not_is_as_the_rule_says,
    starting::an_id_that_is_taken_is_as_the_rule_says,
    starting::a_server_that_is_away_longer_than_the_schedule_parks_nothing,
    starting::a_server_that_comes_back_without_its_data_gets_what_it_has_not_answered,
    starting::a_server_that_throttles_parks_nothing,
    starting::events_wait_for_a_namespace_that_is_created_late,
    starting::what_temporal_refuses_is_a_dead_letter_with_the_reason,
    starting::a_bridge_that_is_killed_at_random_starts_every_workflow_once,
    starting::events_come_from_a_queue_once_each,
    observer::observing_begins_now_or_where_it_is_said,
    away::a_bridge_that_was_away_longer_than_the_retention_says_so,
    away::a_position_that_cannot_be_read_is_said_and_not_begun_anew,
    away::a_retention_that_may_not_be_asked_for_is_an_hour_or_configured_and_said,
    connection::a_server_is_believed_by_its_certificate_and_believes_ours,
    connection::tokens_are_fetched_and_fetched_anew_when_they_are_refused,
    connection::a_proxy_that_answers_itself_costs_no_event_anything,
    started::what_the_bridge_has_started_is_looked_after,
    started::what_the_server_has_forgotten_is_told_as_unknown,
    started::a_server_over_other_data_makes_no_end_unknown,
    started::what_the_bridge_starts_calls_back_where_the_server_allows_it,
    started::a_failed_payment_is_dunned_and_its_end_is_told_whoever_is_killed,
}
