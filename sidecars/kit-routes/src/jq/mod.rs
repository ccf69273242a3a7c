//! jq, in a process of its own.
//!
//! `program` compiles and runs · `worker` the process, which has no secret, no file and a bound on memory and
//! processor time · `pool` asks it, kills it and starts it again · `wire` what the two say to each other.
//!
//! jaq has no way to be interrupted, so that only the end of a process ends a program that runs for ever. Nothing of
//! jaq runs in the daemon itself, the compiler neither.

mod pool;
mod program;
mod wire;
pub mod worker;

pub use pool::{Jq, JqError, JqLimits, check_programs};

/// Longest program in bytes.
pub const PROGRAM_BYTES: usize = 16 << 10;

/// What is asked of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Can it be compiled?
    Compiles,
    /// Does it give `true`? `false`, `null` and nothing at all are no; anything else is a mistake of the program.
    Holds,
    /// What is the one value that it gives?
    Value,
}
