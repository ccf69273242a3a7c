//! The bridge beside the real server, of two releases, with workers by the published Python SDK: `./test temporal` installs
//! both. Workflows are started, signalled and ended through Temporal's own HTTP API.

#![allow(clippy::unwrap_used)]

mod observer;

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
    observer::an_idle_server_is_left_alone,
    observer::a_bridge_that_is_killed_at_random_loses_and_invents_nothing,
    observer::a_namespace_may_be_created_late,
    observer::only_what_is_wanted_is_told,
    observer::a_callback_tells_at_once_and_survives_a_wrong_token,
    observer::a_lost_callback_is_found_by_looking,
    observer::a_task_queue_without_a_worker_is_told,
    observer::observing_begins_now_or_where_it_is_said,
}
