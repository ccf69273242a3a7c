//! Takes usage events from producers in Lago's own words, has them on disk before the answer, and brings each to Lago
//! exactly once, for as long as that takes.
//!
//! `config` what can be set · `app` how the parts are put together · `http` a producer's request and its answer ·
//! `producers` who may report for whom · `cloudevents` CloudEvents as usage · `admit` from a usage event to one for the journal, without I/O · `catalogue`
//! what Lago knows · `check` what it would never bill, without I/O · `sender` batches to Lago and what its answers mean ·
//! `redrive` parked events that fit by now · `webhooks` other daemons' events · `rules` what those count as, without I/O · `fuzzing` what
//! fuzz targets reach.

mod admit;
mod app;
mod catalogue;
mod check;
mod cloudevents;
pub mod config;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod metrics;
mod producers;
mod redrive;
mod rules;
mod sender;
mod webhooks;

use std::ffi::OsString;
use std::process::ExitCode;

pub use app::LagoUsageTracker;
pub use check::Policy;

/// Runs the daemon with these arguments, the first being the program's name.
pub fn main_with_args(arguments: Vec<OsString>) -> ExitCode {
    kit::run::main_with_args::<LagoUsageTracker>(arguments)
}
