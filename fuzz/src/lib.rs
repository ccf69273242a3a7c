//! Fuzz targets: what comes from outside, or from a disk, in any form it could have.
//!
//! Every target is a plain function of bytes. It panics when a promise is broken; whatever the bytes
//! are, anything else is right. `fuzz_targets/` hands the functions to libFuzzer on nightly, and
//! `tests/replay.rs` gives them the committed corpora on a stable toolchain. What is not here: tests
//! of a single behaviour, and anything that needs a process of its own.

mod captures;
mod guard;
mod parts;
mod samples;
mod scratch;

pub mod admin_api;
pub mod answer;
pub mod config;
pub mod envelope;
pub mod filters;
pub mod gateway_answer;
pub mod hmac;
pub mod http_server;
pub mod identity;
pub mod journal_model;
pub mod journal_open;
pub mod jwt;
pub mod jwt_claims;
pub mod public_key;
pub mod rendering;
pub mod request_head;
pub mod retry_after;
pub mod usage;

pub use guard::run;
pub use scratch::remove_files;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of the function's module, the libFuzzer binary and the corpus.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Mutated inputs that a replay tries. Fewer where one input costs a file or a connection.
    pub mutations: u32,
}

macro_rules! targets {
    ($($name:ident: $mutations:literal,)*) => {
        /// All targets.
        pub const TARGETS: &[Target] = &[
            $(Target { name: stringify!($name), run: $name::target, mutations: $mutations },)*
        ];
    };
}

targets! {
    admin_api: 2_000,
    answer: 4_000,
    config: 2_000,
    envelope: 4_000,
    filters: 4_000,
    gateway_answer: 1_000,
    hmac: 4_000,
    http_server: 1_000,
    identity: 4_000,
    journal_model: 600,
    journal_open: 300,
    jwt: 2_000,
    jwt_claims: 600,
    public_key: 4_000,
    rendering: 4_000,
    request_head: 4_000,
    retry_after: 4_000,
    usage: 4_000,
}
