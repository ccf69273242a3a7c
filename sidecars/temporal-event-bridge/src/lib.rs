//! Brings events to Temporal, where they start and signal workflows, each once; and makes every workflow's outcome an
//! event.
//!
//! `config` what can be set · `app` how the parts are put together · `http` an event of another daemon and its answer ·
//! `queue` events from RabbitMQ · `admit` from a CloudEvent to an event for the journal, without I/O · `direction` which
//! events of the journal go which way · `rules` what an event does to which workflow, without I/O · `template` texts with
//! what an event says in them · `planner` the rule of an event, with jq asked · `preview` what rules make of an event, without
//! a daemon · `sink` Temporal as a sink of the delivery engine · `trace` whether an event has reached its
//! workflow already · `observer` ends of workflows · `outgoing` where they go.

mod admit;
mod app;
pub mod config;
pub mod direction;
mod http;
mod metrics;
pub mod observer;
pub mod outgoing;
mod planner;
pub mod preview;
mod queue;
mod rules;
mod sink;
mod template;
mod trace;

use std::ffi::OsString;
use std::process::ExitCode;

pub use app::TemporalEventBridge;

/// Runs the daemon with these arguments, the first being the program's name.
pub fn main_with_args(arguments: Vec<OsString>) -> ExitCode {
    if let Some(code) = kit_routes::jq::worker::main_if_asked(&arguments) {
        return code;
    }
    kit::run::main_with_args::<TemporalEventBridge>(arguments)
}
