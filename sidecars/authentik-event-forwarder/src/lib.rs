//! Takes Authentik's events by webhook and from its API, has each on disk once before anyone is told so, and brings it
//! to the gateway for as long as that takes.
//!
//! `config` what can be set · `app` how the parts are put together · `http` one webhook from request to answer ·
//! `authentication` who may send one · `poll` reading events from the API · `admit`, `exclude`, `names` and `tenant` the
//! decisions, without I/O · `people` what is known of users · `seen` what need not be offered again.

mod admit;
mod app;
mod authentication;
pub mod config;
mod exclude;
mod http;
mod metrics;
mod names;
mod people;
mod poll;
mod seen;
mod tenant;

use std::ffi::OsString;
use std::process::ExitCode;

pub use app::AuthentikEventForwarder;

/// Runs the daemon with these arguments, the first being the program's name.
pub fn main_with_args(arguments: Vec<OsString>) -> ExitCode {
    if let Some(code) = kit_routes::jq::worker::main_if_asked(&arguments) {
        return code;
    }
    kit::run::main_with_args::<AuthentikEventForwarder>(arguments)
}
