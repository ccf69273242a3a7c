//! A panic on another thread, or one that somebody catches, is a finding like any other.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static HOOK: Once = Once::new();
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Runs a target on one input.
///
/// # Panics
/// When the target does, on whichever thread.
pub fn run(target: fn(&[u8]), data: &[u8]) {
    // libFuzzer has a hook of its own by now, which ends the process: it stays in force.
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            next(info);
        }));
    });
    let before = PANICS.load(Ordering::SeqCst);
    target(data);
    assert_eq!(PANICS.load(Ordering::SeqCst), before, "something panicked behind the target's back");
}
