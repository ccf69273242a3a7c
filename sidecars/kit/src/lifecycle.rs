//! Start and stop: one token that everything listens to, one place that knows every task.
//!
//! A task that ends while the daemon should run is a failure of the daemon: it stops with exit code 1
//! and says which one it was, instead of going on with a part missing.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Exit codes of every daemon.
pub mod exit {
    /// Stopped as asked, everything flushed.
    pub const DRAINED: u8 = 0;
    /// Died of something unexpected.
    pub const DIED: u8 = 1;
    /// The journal is in use by another process (`EX_TEMPFAIL`).
    pub const LOCKED: u8 = 75;
    /// The journal was written by a newer version.
    pub const JOURNAL_NEWER: u8 = 76;
    /// The configuration is wrong (`EX_CONFIG`).
    pub const CONFIG: u8 = 78;
    /// A second signal cut the drain short.
    pub const SECOND_SIGNAL: u8 = 130;
}

/// Tells every part that the daemon is to stop.
#[derive(Clone, Debug, Default)]
pub struct StopToken(CancellationToken);

impl StopToken {
    /// A token that nobody has stopped yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops.
    pub fn stop(&self) {
        self.0.cancel();
    }

    /// Whether it has been stopped.
    pub fn is_stopped(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it is stopped.
    pub async fn stopped(&self) {
        self.0.cancelled().await;
    }

    /// A token that stops with this one and can be stopped on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}

/// Work to be done once every task has ended, for example closing the store.
type Closing = Box<dyn FnOnce() + Send>;

/// Knows every task of the daemon.
pub struct Shell {
    stop: StopToken,
    tasks: JoinSet<(String, bool)>,
    closing: Vec<Closing>,
    failed: Arc<AtomicBool>,
}

impl std::fmt::Debug for Shell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl Default for Shell {
    fn default() -> Self {
        Self::new()
    }
}

impl Shell {
    /// A shell without tasks.
    pub fn new() -> Self {
        Self {
            stop: StopToken::new(),
            tasks: JoinSet::new(),
            closing: Vec::new(),
            failed: Arc::new(AtomicBool::new(false)),
        }
    }

    /// The token that every task listens to.
    pub fn stop_token(&self) -> StopToken {
        self.stop.clone()
    }

    /// Runs a task for the life of the daemon. It must end soon after the token is stopped; ending
    /// earlier, with an error, or by a panic stops the daemon.
    pub fn spawn<E: std::fmt::Display>(
        &mut self,
        name: &str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let name = name.to_owned();
        self.tasks.spawn(async move {
            let ended = tokio::spawn(async move { task.await.map_err(|error| error.to_string()) }).await;
            let fine = match ended {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::error!(task = %name, error = %error, "{name} failed: {error}");
                    false
                }
                Err(_) => {
                    tracing::error!(task = %name, "{name} panicked");
                    false
                }
            };
            (name, fine)
        });
    }

    /// Does `work` on a blocking thread once every task has ended.
    pub fn at_end(&mut self, work: impl FnOnce() + Send + 'static) {
        self.closing.push(Box::new(work));
    }

    /// Runs until a signal or a failing task, then drains for at most `drain`. Returns the exit code.
    ///
    /// `signals` are those of the whole process, received from before the start: one that comes while
    /// the daemon starts stops it in order as well.
    pub async fn run(mut self, drain: Duration, mut signals: Signals) -> u8 {
        tokio::select! {
            () = self.stop.stopped() => {}
            signal = signals.next() => tracing::info!(signal, "{signal} received, stopping"),
            ended = self.tasks.join_next() => self.judge(ended),
        }
        self.stop.stop();
        let deadline = tokio::time::Instant::now() + drain;
        tokio::spawn(exit_on_signal(signals));
        loop {
            match tokio::time::timeout_at(deadline, self.tasks.join_next()).await {
                Ok(None) => break,
                Ok(Some(Ok((_, true)))) => {}
                Ok(ended) => self.judge(ended),
                Err(_) => {
                    tracing::warn!(
                        left = self.tasks.len(),
                        "drain time is over, {} tasks are cut off",
                        self.tasks.len()
                    );
                    self.tasks.abort_all();
                    break;
                }
            }
        }
        let closing = std::mem::take(&mut self.closing);
        let closed = tokio::task::spawn_blocking(move || closing.into_iter().rev().for_each(|work| work()));
        if closed.await.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        if self.failed.load(Ordering::Acquire) { exit::DIED } else { exit::DRAINED }
    }

    fn judge(&mut self, ended: Option<Result<(String, bool), tokio::task::JoinError>>) {
        let fine = match ended {
            Some(Ok((name, true))) if !self.stop.is_stopped() => {
                tracing::error!(task = %name, "{name} ended although nobody asked it to");
                false
            }
            Some(Ok((_, fine))) => fine,
            Some(Err(_)) => false,
            None => true,
        };
        if !fine {
            self.failed.store(true, Ordering::Release);
        }
    }
}

/// SIGTERM and SIGINT. One pair of streams serves for the first and the second signal, so that none
/// falls between two.
#[derive(Debug)]
pub struct Signals(Option<(Signal, Signal)>);

impl Signals {
    /// Receives signals from now on instead of dying of them. Needs a runtime.
    pub fn receive() -> Self {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(term), Ok(int)) => Self(Some((term, int))),
            _ => {
                tracing::error!("signals cannot be received, stop with SIGKILL");
                Self(None)
            }
        }
    }

    async fn next(&mut self) -> &'static str {
        let Some((term, int)) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        }
    }
}

async fn exit_on_signal(mut signals: Signals) {
    let signal = signals.next().await;
    tracing::warn!(signal, "second signal, exiting at once");
    std::process::exit(i32::from(exit::SECOND_SIGNAL));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_on_its_own_takes_the_daemon_with_it() {
        let mut shell = Shell::new();
        let stop = shell.stop_token();
        shell.spawn("patient", async move {
            stop.stopped().await;
            Ok::<_, String>(())
        });
        shell.spawn("impatient", async { Ok::<_, String>(()) });
        assert_eq!(shell.run(Duration::from_secs(5), Signals::receive()).await, exit::DIED);
    }

    #[tokio::test]
    async fn stopping_drains_and_closes_last() {
        let mut shell = Shell::new();
        let (stop, outer) = (shell.stop_token(), shell.stop_token());
        let done = Arc::new(AtomicBool::new(false));
        let (set, seen, checked) = (Arc::clone(&done), Arc::clone(&done), Arc::new(AtomicBool::new(false)));
        let check = Arc::clone(&checked);
        shell.spawn("worker", async move {
            stop.stopped().await;
            set.store(true, Ordering::Release);
            Ok::<_, String>(())
        });
        shell.at_end(move || check.store(seen.load(Ordering::Acquire), Ordering::Release));
        outer.stop();
        assert_eq!(shell.run(Duration::from_secs(5), Signals::receive()).await, exit::DRAINED);
        assert!(checked.load(Ordering::Acquire), "closing happens after the tasks have ended");
    }

    #[tokio::test]
    async fn a_panic_is_noticed() {
        let mut shell = Shell::new();
        shell.spawn("shaky", async { if true { panic!("test") } else { Ok::<_, String>(()) } });
        assert_eq!(shell.run(Duration::from_secs(5), Signals::receive()).await, exit::DIED);
    }
}
