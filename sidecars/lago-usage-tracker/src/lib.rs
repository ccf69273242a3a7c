//! Takes usage events from producers in Lago's own words, has them on disk before the answer, and brings each to Lago
//! exactly once, for as long as that takes.
//!
//! `config` what can be set · `app` how the parts are put together · `http` a producer's request and its answer ·
//! `producers` who may report for whom · `cloudevents` CloudEvents as usage · `admit` from a usage event to one for the journal, without I/O · `catalogue`
//! what Lago knows · `check` what it would never bill, without I/O · `sender` batches to Lago and what its answers mean ·
//! `resolve` the subscription of usage that names only a customer · `withheld` how many wait for Lago to be asked · `redrive` parked events that fit by now · `show` how
//! far an event has come · `rollup` many events made few before they are sent · `ledger` what Lago has confirmed, without
//! I/O · `reconcile` whether Lago has counted it · `canary` an event that is known to be billable · `alerts` events of the
//! daemon's own for the gateway · `api` the ledger for operators · `proxy` Lago's other paths ·
//! `webhooks` other daemons' events · `complained` what Lago says is wrong with events that are tried or parked · `rules` what those count as, without I/O · `fuzzing` what
//! fuzz targets reach.

mod accepted;
mod admit;
mod alerts;
mod api;
mod app;
mod canary;
mod catalogue;
mod check;
mod cloudevents;
mod complained;
pub mod config;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod ledger;
mod metrics;
mod periods;
mod producers;
mod proxy;
mod queue;
mod reconcile;
mod redrive;
mod refusal;
mod resolve;
mod rollup;
mod rules;
mod sender;
mod show;
mod webhooks;
mod withheld;

use std::ffi::OsString;
use std::process::ExitCode;

pub use app::LagoUsageTracker;
pub use check::Policy;

/// Runs the daemon with these arguments, the first being the program's name.
pub fn main_with_args(arguments: Vec<OsString>) -> ExitCode {
    kit::run::main_with_args::<LagoUsageTracker>(arguments)
}
