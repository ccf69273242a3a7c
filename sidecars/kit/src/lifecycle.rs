//! Start and stop: one token that everything listens to, one place that knows every task.
//!
//! A task that ends while the daemon should run is a failure of the daemon: it stops with exit code 1
//! and says which one it was, instead of going on with a part missing.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::background::Background;

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
    /// Stopped as asked, but work was cut off or the store not closed when the time was over, as `timeout`
    /// says it. What was answered 2xx is on the disk all the same.
    pub const CUT_OFF: u8 = 124;
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

/// Of the time to stop, how much the tasks have to end by themselves. Above the share that listeners give
/// to their connections.
const FOR_TASKS: f64 = 0.88;
/// … until when those that were cut off must have let go …
const FOR_LETTING_GO: f64 = 0.91;
/// … and until when everything must be closed. The rest is for the runtime to end.
const FOR_CLOSING: f64 = 0.94;

/// How a task ended.
type Ended = Result<(task::Id, Result<(), String>), task::JoinError>;

/// Work to be done once every task has ended, for example closing the store.
type Closing = Box<dyn FnOnce() + Send>;

/// Knows every task of the daemon.
pub struct Shell {
    stop: StopToken,
    tasks: JoinSet<Result<(), String>>,
    names: HashMap<task::Id, String>,
    closing: Vec<Closing>,
    failed: bool,
    background: Background,
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
            names: HashMap::new(),
            closing: Vec::new(),
            failed: false,
            background: Background::default(),
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
        self.spawn_on(&Handle::current(), name, task);
    }

    /// The same for what may come later: its threads, and those of whatever it spawns, give way to all others of the
    /// process where the processors are full.
    pub fn spawn_in_background<E: std::fmt::Display>(
        &mut self,
        name: &str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.background.handle();
        self.spawn_on(&handle, name, task);
    }

    fn spawn_on<E: std::fmt::Display>(
        &mut self,
        runtime: &Handle,
        name: &str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let task = async move { task.await.map_err(|error| error.to_string()) };
        let handle = self.tasks.spawn_on(task, runtime);
        self.names.insert(handle.id(), name.to_owned());
    }

    /// Does `work` on a blocking thread once every task has ended.
    pub fn at_end(&mut self, work: impl FnOnce() + Send + 'static) {
        self.closing.push(Box::new(work));
    }

    /// Runs until a signal or a failing task, then drains and closes within `drain`. Returns the exit code.
    ///
    /// What has not ended by then is left behind, on whatever thread it hangs: a disk that does not answer
    /// must not keep the process until its supervisor kills it.
    ///
    /// `signals` are those of the whole process, received from before the start: one that comes while
    /// the daemon starts stops it in order as well.
    pub async fn run(mut self, drain: Duration, mut signals: Signals) -> u8 {
        tokio::select! {
            () = self.stop.stopped() => {}
            signal = signals.next() => tracing::info!(signal, "{signal} received, stopping"),
            ended = self.tasks.join_next_with_id() => self.judge(ended),
        }
        self.stop.stop();
        let begin = tokio::time::Instant::now();
        let until = |share: f64| begin + drain.mul_f64(share);
        let mut cut_off = false;
        tokio::spawn(exit_on_signal(signals));
        loop {
            match tokio::time::timeout_at(until(FOR_TASKS), self.tasks.join_next_with_id()).await {
                Ok(None) => break,
                Ok(ended) => self.judge(ended),
                Err(_) => {
                    let mut left: Vec<&str> = self.names.values().map(String::as_str).collect();
                    left.sort_unstable();
                    tracing::warn!(tasks = left.join(", "), "drain time is over, cut off: {}", left.join(", "));
                    // A task that computes without pause cannot be cut off; it must not hold up the rest.
                    let _ = tokio::time::timeout_at(until(FOR_LETTING_GO), self.tasks.shutdown()).await;
                    cut_off = true;
                    break;
                }
            }
        }
        let closing = std::mem::take(&mut self.closing);
        let closed = tokio::task::spawn_blocking(move || closing.into_iter().rev().for_each(|work| work()));
        match tokio::time::timeout_at(until(FOR_CLOSING), closed).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => self.failed = true,
            Err(_) => {
                tracing::warn!("drain time is over before everything is closed; what was accepted is on the disk");
                cut_off = true;
            }
        }
        match (self.failed, cut_off) {
            (true, _) => exit::DIED,
            (false, true) => exit::CUT_OFF,
            (false, false) => exit::DRAINED,
        }
    }

    /// Notes how a task ended; `None` when there are none.
    fn judge(&mut self, ended: Option<Ended>) {
        let Some(ended) = ended else { return };
        let id = ended.as_ref().map_or_else(task::JoinError::id, |(id, _)| *id);
        let name = self.names.remove(&id).unwrap_or_default();
        match ended {
            Ok((_, Ok(()))) if self.stop.is_stopped() => return,
            Ok((_, Ok(()))) => tracing::error!(task = %name, "{name} ended although nobody asked it to"),
            Ok((_, Err(error))) => tracing::error!(task = %name, error = %error, "{name} failed: {error}"),
            Err(_) => tracing::error!(task = %name, "{name} panicked"),
        }
        self.failed = true;
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

    pub(crate) async fn next(&mut self) -> &'static str {
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
    crate::telemetry::flush_logs();
    std::process::exit(i32::from(exit::SECOND_SIGNAL));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

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
    async fn what_does_not_end_in_time_is_really_cut_off_before_the_closing() {
        struct Alive(Arc<AtomicBool>);
        impl Drop for Alive {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Release);
            }
        }
        let mut shell = Shell::new();
        let alive = Arc::new(AtomicBool::new(true));
        let (held, seen) = (Alive(Arc::clone(&alive)), Arc::clone(&alive));
        let at_closing = Arc::new(AtomicBool::new(true));
        let noted = Arc::clone(&at_closing);
        shell.spawn("stubborn", async move {
            let _held = held;
            std::future::pending::<Result<(), String>>().await
        });
        shell.at_end(move || noted.store(seen.load(Ordering::Acquire), Ordering::Release));
        shell.stop_token().stop();
        let code = shell.run(Duration::from_secs(1), Signals::receive()).await;
        assert_eq!(code, exit::CUT_OFF);
        assert!(!at_closing.load(Ordering::Acquire), "the task was still there when the store was closed");
    }

    #[tokio::test]
    async fn a_closing_that_hangs_is_left_behind() {
        let mut shell = Shell::new();
        let (held, hold) = std::sync::mpsc::channel::<()>();
        shell.at_end(move || {
            let _ = hold.recv();
        });
        shell.stop_token().stop();
        let begin = std::time::Instant::now();
        let code = shell.run(Duration::from_millis(500), Signals::receive()).await;
        assert_eq!(code, exit::CUT_OFF);
        assert!(begin.elapsed() < Duration::from_secs(20), "it was waited for");
        drop(held);
    }

    #[tokio::test]
    async fn a_panic_is_noticed() {
        let mut shell = Shell::new();
        shell.spawn("shaky", async { if true { panic!("test") } else { Ok::<_, String>(()) } });
        assert_eq!(shell.run(Duration::from_secs(5), Signals::receive()).await, exit::DIED);
    }
}
