//! Brings an organisation in Lago to what a catalogue file says – metrics, plans, taxes, coupons, add-ons, features, webhook
//! endpoints – and takes care of Lago's RSA key. Runs once and ends; run again, it changes nothing.
//!
//! `config` what can be set · `app` the one-shot · `catalogue` the file, its checks and its page · `wanted` the file in
//! Lago's words, in order · `diff` what is different and what to send, without I/O · `seeder` look, compare, send, look again
//! · `prune` what Lago has besides · `lago` waiting for it · `report` what was found and done · `keys` the RSA key.

mod app;
mod catalogue;
mod config;
mod diff;
pub mod keys;
mod lago;
mod prune;
mod report;
mod seeder;
mod wanted;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

pub use app::LagoSeeder;
pub use catalogue::{Catalogue, CatalogueErrors, reference as catalogue_reference};
pub use config::{CatalogueSection, Config, LagoSection, WaitSection};
pub use lago::RunError;
pub use report::{Change, Entry, Outcome, Problem, Report};
pub use seeder::{Mode, Seeder, Settings};

/// What happens, as it happens.
#[derive(Clone, Copy, Debug)]
pub enum Notice<'a> {
    /// Lago is waited for.
    Waiting {
        /// What it was the last time.
        reason: &'a str,
        /// How much longer.
        left: Duration,
    },
    /// Lago is there.
    Up {
        /// Its version.
        version: &'a str,
    },
    /// Something is to answer at a webhook endpoint before that is registered.
    WaitingForEndpoint {
        /// Where, without what may be a secret in the address.
        url: &'a str,
        /// How much longer.
        left: Duration,
    },
    /// An object has been dealt with.
    Entry(&'a Entry),
}

/// Runs the one-shot with these arguments, the first being the program's name.
pub fn main_with_args(arguments: Vec<OsString>) -> ExitCode {
    kit::one_shot::main_with_args::<LagoSeeder>(arguments)
}
