//! Takes every webhook Lago sends, proves that it is Lago's, has it on disk before the answer, and
//! brings it to the gateway for as long as that takes.
//!
//! `config` what can be set · `app` how the parts are put together · `http` one webhook from request
//! to answer · `organizations` and `keyring` who may sign · `admit` the decisions, without I/O ·
//! `worker` keeping Lago's public key current.

mod admit;
mod app;
pub mod config;
mod http;
mod keyring;
mod metrics;
mod organizations;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

pub use app::LagoWebhookProcessor;

/// Runs the daemon with these arguments, the first being the program's name.
pub fn main_with_args(arguments: Vec<OsString>) -> ExitCode {
    if let Some(code) = kit_routes::jq::worker::main_if_asked(&arguments) {
        return code;
    }
    kit::run::main_with_args::<LagoWebhookProcessor>(arguments)
}
