//! Fuzz targets: what comes from outside, or from a disk, in any form it could have.
//!
//! Every target is a plain function of bytes. It panics when a promise is broken; whatever the bytes
//! are, anything else is right. `fuzz_targets/` hands the functions to libFuzzer on nightly, and
//! `tests/replay.rs` gives them the committed corpora on a stable toolchain. What is not here: tests
//! of a single behaviour, and anything that needs a process of its own.

mod guard;
mod parts;

pub mod hmac;
pub mod request_head;

pub use guard::run;

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
    hmac: 4_000,
    request_head: 4_000,
}
