//! Inputs in parts, in forms that a person can read and write: corpora are made by hand first.

use std::sync::LazyLock;

use tokio::runtime::Runtime;

/// The first line without its line feed, and everything after it. Signatures, keys and targets hold
/// no line feed on the wire either.
pub(crate) fn first_line(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &[]),
    }
}

/// A number made of all bytes (FNV-1a): chance that is the same for the same input.
pub(crate) fn fold(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The runtime of targets that speak to tasks. Two workers, as the daemon has.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts")
    });
    &RUNTIME
}

/// How often `needle` stands in `data`.
pub(crate) fn occurrences(data: &[u8], needle: &[u8]) -> usize {
    data.windows(needle.len().max(1)).filter(|window| *window == needle).count()
}
