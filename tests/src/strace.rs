//! Faults put into the system calls of a daemon by `strace`: an error, a lie, a delay, a kill.
//!
//! `strace` counts per system call *and per thread*: `when=3` is the third call of every thread. All the
//! journal's writes come from one thread, so that a count means the same in every run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::scratch::Scratch;

/// How long it may take until every thread is traced.
const ATTACH_DEADLINE: Duration = Duration::from_secs(30);
/// A thread that is stopped for so long is not merely being attached.
const HELD: Duration = Duration::from_secs(1);
/// How long `strace` may take to end when it is asked to.
const DETACH_DEADLINE: Duration = Duration::from_secs(30);
/// What `strace` notes behind a call that it has changed.
pub const CHANGED: &str = "(INJECTED)";

/// What is done to which calls, for example `fdatasync` and `error=EIO:when=3`.
#[derive(Clone, Debug)]
pub struct Injection {
    calls: String,
    what: String,
    watched: Option<String>,
}

impl Injection {
    /// Does `what` to the system calls in `calls`, a list with commas.
    pub fn new(calls: &str, what: impl Into<String>) -> Self {
        Self { calls: calls.to_owned(), what: what.into(), watched: None }
    }

    /// Notes these calls as well, without doing anything to them.
    #[must_use]
    pub fn watching(mut self, calls: &str) -> Self {
        self.watched = Some(calls.to_owned());
        self
    }

    /// The command with this done to it from its first instruction on.
    pub fn wrap(&self, command: DaemonCommand) -> DaemonCommand {
        command.wrapped("strace", self.arguments("/dev/null".as_ref(), ["--"]))
    }

    /// Does it to a running daemon from now on.
    ///
    /// # Errors
    /// `strace` is missing or not allowed to.
    pub async fn attach(&self, daemon: &DaemonProcess) -> Result<Attached> {
        let pid = daemon.pid();
        attach(pid, |tracer| is_traced_by(pid, tracer), |log| self.arguments(log, ["-p", &pid.to_string()])).await
    }

    /// Does it to one thread of a running daemon from now on.
    ///
    /// # Errors
    /// There is no thread of that name, or `strace` is missing or not allowed to.
    pub async fn attach_thread(&self, daemon: &DaemonProcess, name: &str) -> Result<Attached> {
        let thread = thread(daemon.pid(), name)?.with_context(|| format!("there is no thread {name}"))?;
        let arguments = |log: &Path| {
            let mut arguments = self.arguments(log, ["-p", &thread.to_string()]);
            arguments.retain(|argument| argument != "-f");
            arguments
        };
        attach(daemon.pid(), |tracer| has_tracer(daemon.pid(), thread, tracer), arguments).await
    }

    fn arguments<const N: usize>(&self, log: &Path, last: [&str; N]) -> Vec<OsString> {
        let Self { calls, what, watched } = self;
        let watched = watched.as_ref().map_or_else(String::new, |watched| format!(",{watched}"));
        let mut arguments: Vec<OsString> = ["-f", "-qq", "-o"].map(OsString::from).to_vec();
        arguments.push(log.into());
        arguments.push("-e".into());
        arguments.push(format!("trace={calls}{watched}").into());
        arguments.push("-e".into());
        arguments.push(format!("inject={calls}:{what}").into());
        arguments.extend(last.map(OsString::from));
        arguments
    }
}

/// Notes these calls of a running daemon from now on, without doing anything to them.
///
/// # Errors
/// `strace` is missing or not allowed to.
pub async fn watch(daemon: &DaemonProcess, calls: &str, options: &[&str]) -> Result<Attached> {
    let pid = daemon.pid();
    let arguments = |log: &Path| {
        let mut arguments: Vec<OsString> = ["-f", "-qq", "-o"].map(OsString::from).to_vec();
        arguments.push(log.into());
        arguments.extend(options.iter().map(OsString::from));
        arguments.extend(["-e", &format!("trace={calls}"), "-p", &pid.to_string()].map(OsString::from));
        arguments
    };
    attach(pid, |tracer| is_traced_by(pid, tracer), arguments).await
}

async fn attach(
    pid: u32,
    how_far: impl Fn(u32) -> Result<Tracing>,
    arguments: impl Fn(&Path) -> Vec<OsString>,
) -> Result<Attached> {
    let scratch = Scratch::new("outrigger-strace")?;
    let log = scratch.file("log");
    let mut process = DaemonProcess::spawn("strace", arguments(&log), Vec::new()).context("run strace")?;
    let tracer = process.pid();
    let begin = Instant::now();
    let mut held_since = None;
    loop {
        match how_far(tracer)? {
            Tracing::Runs => break,
            // One that stays so is not being attached any more: its first call came at once, and is held up.
            Tracing::Stopped if held_since.get_or_insert(Instant::now()).elapsed() >= HELD => break,
            Tracing::Stopped => {}
            Tracing::NotYet => held_since = None,
        }
        if process.try_exit()?.is_some() {
            // With the daemon, if the fault is a kill and came at once.
            ensure!(is_gone(pid), "strace ended: {}", process.stderr());
            break;
        }
        ensure!(begin.elapsed() < ATTACH_DEADLINE, "strace does not attach: {}", process.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(Attached { process, log, _scratch: scratch })
}

/// A `strace` at work on a running daemon. Dropping it lets the daemon go on undisturbed.
#[derive(Debug)]
pub struct Attached {
    process: DaemonProcess,
    log: PathBuf,
    _scratch: Scratch,
}

impl Attached {
    /// How many calls have been changed so far. `strace` notes a call once it is over.
    ///
    /// # Errors
    /// Its notes cannot be read.
    pub fn changed(&self) -> Result<usize> {
        Ok(self.notes()?.lines().filter(|line| line.contains(CHANGED)).count())
    }

    /// The calls it has seen, one a line.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn notes(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// Ends the faults; returns how many calls were changed.
    ///
    /// # Errors
    /// `strace` does not end.
    pub async fn detach(mut self) -> Result<usize> {
        self.let_go().await?;
        self.changed()
    }

    /// Ends it; returns the calls it has seen.
    ///
    /// # Errors
    /// `strace` does not end.
    pub async fn end(mut self) -> Result<String> {
        self.let_go().await?;
        self.notes()
    }

    async fn let_go(&mut self) -> Result<()> {
        self.process.term()?;
        if self.process.wait(DETACH_DEADLINE).await.is_err() {
            // It may wait for a thread that is being killed. The kernel lets go of the others.
            self.process.kill9().await?;
        }
        Ok(())
    }
}

/// Whether a process has ended, waited for or not.
fn is_gone(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.lines().any(|line| line.starts_with("State:\tZ"))
}

/// The first thread of a process with this name.
fn thread(pid: u32, name: &str) -> Result<Option<u32>> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?;
        if std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name) {
            return Ok(thread.file_name().to_str().and_then(|thread| thread.parse().ok()));
        }
    }
    Ok(None)
}

/// How far a tracer has come with what it is to trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tracing {
    NotYet,
    /// All of it is traced, and some of it is stopped by that.
    Stopped,
    Runs,
}

impl Tracing {
    fn of(status: &str, tracer: u32) -> Self {
        let wanted = format!("TracerPid:\t{tracer}");
        match status.lines().any(|line| line == wanted) {
            false => Self::NotYet,
            true if status.lines().any(|line| line.starts_with("State:\tt")) => Self::Stopped,
            true => Self::Runs,
        }
    }
}

/// How far this tracer has come with one thread of a process.
fn has_tracer(pid: u32, thread: u32, tracer: u32) -> Result<Tracing> {
    Ok(Tracing::of(&std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"))?, tracer))
}

/// How far this tracer has come with every thread of a process.
fn is_traced_by(pid: u32, tracer: u32) -> Result<Tracing> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Ok(Tracing::NotYet) };
    let mut least = Tracing::Runs;
    for thread in threads {
        // A thread may end while it is looked at.
        let Ok(status) = std::fs::read_to_string(thread?.path().join("status")) else { continue };
        least = least.min(Tracing::of(&status, tracer));
    }
    Ok(least)
}
