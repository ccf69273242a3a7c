//! The sidecars in a real Docker Engine, by the compose path that the README tells: images from static binaries, the
//! overlay `sidecars.yml`, and stand-ins for the neighbours. The engine is started for the run in namespaces of its own, so that
//! nothing else on the machine – its network, its firewall, an engine that is there already – is touched.
//!
//! `./test compose` builds what it needs. By hand: `cargo static -p …` of every sidecar and of `outrigger`, then
//! `cargo test -p outrigger-tests --test engine -- T21` for one experiment.

mod containers;
mod delivery;
mod ends;
mod engine;
mod images;
mod load;
mod memory;
mod namespaces;
mod order;
mod platform;
mod privileges;
mod seeder;
mod site;
mod trouble;

use std::process::ExitCode;

use outrigger_tests::experiment;
use outrigger_tests::experiment::Experiment;

fn main() -> ExitCode {
    let experiments: &[Experiment] = &[
        experiment!("T22", images::an_image_is_one_static_binary_and_small, 1, 1),
        experiment!("T22", images::an_image_built_twice_is_the_same, 1, 1),
        experiment!("C1", delivery::the_documented_path_delivers_signed_webhooks, 1, 3),
        experiment!("C1", delivery::usage_in_a_container_reaches_lago_once, 1, 3),
        experiment!("C1", delivery::the_command_line_sends_and_sees_the_first_webhook, 1, 1),
        experiment!("C2", delivery::what_is_wrong_is_told_by_the_one_command, 1, 1),
        experiment!("C2", trouble::trouble_with_others_is_told_and_touches_nothing, 1, 1),
        experiment!("C11", trouble::images_are_built_here_or_pulled_from_where_the_operator_says, 1, 1),
        experiment!("T21", privileges::containers_are_unprivileged_as_inspected, 1, 1),
        experiment!("T21", privileges::nothing_in_a_container_can_be_written_or_gained, 1, 1),
        experiment!("C3", ends::health_follows_the_process, 1, 3),
        experiment!("C4", ends::a_killed_process_is_started_again_and_loses_nothing, 5, 50),
        experiment!("C5", ends::a_stop_is_within_the_grace_and_repeats_nothing, 3, 30),
        experiment!("C6", ends::an_add_on_is_switched_off_without_touching_the_rest, 1, 3),
        experiment!("C7", ends::volumes_outlive_their_containers_and_tags, 1, 5),
        experiment!("C8", memory::idle_containers_stay_small, 1, 1),
        experiment!("C8", memory::the_limit_holds_under_load_and_with_large_tokens, 20, 300),
        experiment!("C8", memory::the_limit_holds_for_the_others_under_load, 10, 300),
        experiment!("C9", order::any_order_of_starting_ends_ready, 5, 20),
        experiment!("C12", platform::an_existing_gateway_is_joined_in_its_own_network, 1, 1),
        experiment!("C10", seeder::the_seeder_runs_once_and_what_it_registers_works, 1, 5),
    ];
    if let Some(code) = namespaces::enter(experiments.len()) {
        return code;
    }
    let code = experiment::main(experiments, 1);
    engine::stop();
    code
}
