//! What the machine itself adds to the times that an experiment measures.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How late a thread of this process was woken at most while this was watching: what a busy machine
/// may add to any wait. It stands in for a fixed allowance, which is too short on one machine and
/// hides a mistake on another.
#[derive(Debug)]
pub struct Lateness {
    longest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lateness {
    const TICK: Duration = Duration::from_millis(5);

    /// Watches from now on.
    #[must_use]
    pub fn watch() -> Self {
        let (longest, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (longest, stop) = (Arc::clone(&longest), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    std::thread::sleep(Self::TICK);
                    let late = begun.elapsed().saturating_sub(Self::TICK);
                    longest.fetch_max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
            }
        });
        Self { longest, stop, thread: Some(thread) }
    }

    /// The longest so far.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }
}

impl Drop for Lateness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
