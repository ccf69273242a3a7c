//! Daemons as processes: started in a clean environment, watched, killed and waited for.

mod command;
mod output;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

pub use self::command::DaemonCommand;
use self::output::Output;
use crate::raw;

/// How often readiness is asked for: fine enough to measure a restart by.
const READY_POLL: Duration = Duration::from_millis(5);
/// One readiness question may take this long before it counts as no answer.
const READY_QUESTION: Duration = Duration::from_secs(2);
/// After an exit, a grandchild may hold the pipes open; its output is not waited for longer.
const OUTPUT_GRACE: Duration = Duration::from_secs(10);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("an unknown end"),
        }
    }
}

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("start {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended while something was expected of it. `output` is the last it said.
    #[error("the daemon ended with {exit} while waiting for {wanted}; it said last:\n{output}")]
    Ended {
        /// How it ended.
        exit: Exit,
        /// What was waited for.
        wanted: String,
        /// Its last lines.
        output: String,
    },
    /// The deadline passed. `output` is the last it said.
    #[error("no {wanted} within {waited:?} ({detail}); the daemon said last:\n{output}")]
    TimedOut {
        /// What was waited for.
        wanted: String,
        /// How long.
        waited: Duration,
        /// The last answer.
        detail: String,
        /// Its last lines.
        output: String,
    },
    /// The system refused to signal or to wait for it.
    #[error("control process {pid}")]
    Control {
        /// Its id.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
}

/// A running daemon. Dropping it kills it and whatever it started.
pub struct DaemonProcess {
    child: Child,
    pid: Pid,
    output: Output,
    exit: Option<Exit>,
}

impl DaemonProcess {
    /// Starts `program` with `args` and just these variables; [`DaemonCommand`] knows more.
    ///
    /// # Errors
    /// [`ProcessError::Spawn`].
    pub fn spawn<A: Into<OsString>>(
        program: impl AsRef<Path>,
        args: impl IntoIterator<Item = A>,
        env: Vec<(String, String)>,
    ) -> Result<Self, ProcessError> {
        DaemonCommand::new(program.as_ref()).args(args).envs(env).spawn()
    }

    fn new(child: Child, pid: Pid, output: Output) -> Self {
        Self { child, pid, output, exit: None }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The address of a listener (`public`, `admin`), read from the log line that announces it: a
    /// JSON object with the fields `listener` and `address`.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] or [`ProcessError::TimedOut`].
    pub async fn address(&mut self, listener: &str, deadline: Duration) -> Result<SocketAddr, ProcessError> {
        let wanted = format!("the address of listener {listener}");
        let mut listeners = self.output.listeners();
        let announced = listeners.wait_for(|known| known.contains_key(listener));
        let known = tokio::select! {
            known = announced => known.ok().and_then(|known| known.get(listener).copied()),
            // The output is read to its end before a death is believed: the line may be in it.
            exit = ended(&mut self.child, &self.output) => {
                self.exit = Some(exit?);
                None
            }
            () = sleep(deadline) => {
                return Err(self.timed_out(wanted, deadline, "not announced".to_owned()));
            }
        };
        match known.or_else(|| self.output.listener(listener)) {
            Some(address) => Ok(address),
            None => Err(self.ended_early(wanted).await?),
        }
    }

    /// Waits until `GET /readyz` on its admin listener answers 200, and returns how long that took
    /// from this call.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] or [`ProcessError::TimedOut`], the latter with the last answer.
    pub async fn wait_ready(&mut self, admin: SocketAddr, deadline: Duration) -> Result<Duration, ProcessError> {
        let begin = Instant::now();
        loop {
            let detail = match raw::get(admin, "/readyz", READY_QUESTION).await {
                Ok(answer) if answer.status == 200 => return Ok(begin.elapsed()),
                Ok(answer) => format!("status {}: {}", answer.status, answer.text()),
                Err(error) => error.to_string(),
            };
            let wanted = "readiness".to_owned();
            if self.try_exit()?.is_some() {
                return Err(self.ended_early(wanted).await?);
            }
            if begin.elapsed() > deadline {
                return Err(self.timed_out(wanted, deadline, detail));
            }
            sleep(READY_POLL).await;
        }
    }

    /// Kills it with SIGKILL, and with it whatever it or its wrapper started; returns when it is
    /// gone. Nothing is flushed, closed or said: the nearest to a power cut that a process can see.
    ///
    /// # Errors
    /// [`ProcessError::Control`].
    pub async fn kill9(&mut self) -> Result<Exit, ProcessError> {
        if self.try_exit()?.is_none() {
            self.kill_group();
        }
        let exit = ended(&mut self.child, &self.output).await?;
        self.exit = Some(exit);
        Ok(exit)
    }

    /// Asks it to stop, with SIGTERM to the process itself. Does nothing when it has ended.
    ///
    /// # Errors
    /// [`ProcessError::Control`].
    pub fn term(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::TERM)
    }

    /// Interrupts it, as Ctrl-C would.
    ///
    /// # Errors
    /// [`ProcessError::Control`].
    pub fn interrupt(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::INT)
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing answers, like a machine that hangs.
    ///
    /// # Errors
    /// [`ProcessError::Control`].
    pub fn freeze(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen process go on (SIGCONT).
    ///
    /// # Errors
    /// [`ProcessError::Control`].
    pub fn thaw(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::CONT)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`ProcessError::TimedOut`] when it is still there at the deadline; it is not killed then.
    pub async fn wait(&mut self, deadline: Duration) -> Result<Exit, ProcessError> {
        match timeout(deadline, ended(&mut self.child, &self.output)).await {
            Ok(exit) => {
                let exit = exit?;
                self.exit = Some(exit);
                Ok(exit)
            }
            Err(_) => Err(self.timed_out("end".to_owned(), deadline, "still running".to_owned())),
        }
    }

    /// Asks it to stop and, when it has ended, returns all that it printed on standard output. A running daemon's lines
    /// come a moment after what they tell of – another thread writes them, and a pipe is in between –, so whoever counts
    /// lines, or looks for what must not be among them, ends it first.
    ///
    /// # Errors
    /// [`ProcessError::Control`], and [`ProcessError::TimedOut`] when it is still there at the deadline.
    pub async fn whole_stdout(&mut self, deadline: Duration) -> Result<String, ProcessError> {
        self.term()?;
        self.wait(deadline).await?;
        Ok(self.stdout())
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// [`ProcessError::Control`].
    pub fn try_exit(&mut self) -> Result<Option<Exit>, ProcessError> {
        if self.exit.is_none() {
            let status = self.child.try_wait().map_err(|source| self.control(source))?;
            self.exit = status.map(exit_of);
        }
        Ok(self.exit)
    }

    /// What has come of its standard output, without what the bounded memory let go of. While it runs there may be
    /// more on the way: see [`Self::whole_stdout`] and [`Self::wait_for_line`].
    pub fn stdout(&self) -> String {
        self.output.text(true)
    }

    /// What it printed on standard error.
    pub fn stderr(&self) -> String {
        self.output.text(false)
    }

    /// The log lines that are JSON objects.
    pub fn log(&self) -> Vec<serde_json::Value> {
        self.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How many lines were let go of because more than 20,000 lines or 16 MiB were printed. A check
    /// that needs every line reads the log file instead.
    pub fn lines_let_go(&self) -> u64 {
        self.output.let_go()
    }

    /// Waits until a line of its output satisfies `wanted`, and returns that line.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] or [`ProcessError::TimedOut`].
    pub async fn wait_for_line(
        &mut self,
        wanted: impl Fn(&str) -> bool,
        deadline: Duration,
    ) -> Result<String, ProcessError> {
        let until = tokio::time::Instant::now() + deadline;
        let mut changed = self.output.changes();
        loop {
            changed.mark_unchanged();
            if let Some(line) = self.output.find(&wanted) {
                return Ok(line);
            }
            let what = "the expected log line".to_owned();
            if self.exit.is_some() {
                return Err(self.ended_early(what).await?);
            }
            tokio::select! {
                _ = changed.changed() => {}
                exit = ended(&mut self.child, &self.output) => self.exit = Some(exit?),
                () = tokio::time::sleep_until(until) => {
                    return Err(self.timed_out(what, deadline, "not printed".to_owned()));
                }
            }
        }
    }

    /// Its resident memory in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn rss_bytes(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .map(|kib| kib * 1024)
            .ok_or_else(|| io::Error::other("the process has no VmRSS: it has ended"))
    }

    /// How many file descriptors it holds.
    ///
    /// # Errors
    /// When it has ended, or – a daemon that makes itself undumpable – for other users than root.
    pub fn open_fds(&self) -> io::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    fn signal(&mut self, signal: Signal) -> Result<(), ProcessError> {
        // An unreaped child keeps its id, so after this check the id cannot be somebody else's.
        if self.try_exit()?.is_some() {
            return Ok(());
        }
        rustix::process::kill_process(self.pid, signal).map_err(|error| self.control(error.into()))
    }

    fn kill_group(&self) {
        if let Err(error) = rustix::process::kill_process_group(self.pid, Signal::KILL) {
            tracing::debug!(pid = self.pid(), %error, "process group is gone before its kill");
        }
    }

    fn control(&self, source: io::Error) -> ProcessError {
        ProcessError::Control { pid: self.pid(), source }
    }

    fn timed_out(&self, wanted: String, waited: Duration, detail: String) -> ProcessError {
        ProcessError::TimedOut { wanted, waited, detail, output: self.output.tail() }
    }

    async fn ended_early(&mut self, wanted: String) -> Result<ProcessError, ProcessError> {
        let exit = ended(&mut self.child, &self.output).await?;
        Ok(ProcessError::Ended { exit, wanted, output: self.output.tail() })
    }
}

/// Waits for the end, then for the rest of the output.
async fn ended(child: &mut Child, output: &Output) -> Result<Exit, ProcessError> {
    let pid = child.id().unwrap_or_default();
    let status = child.wait().await.map_err(|source| ProcessError::Control { pid, source })?;
    if timeout(OUTPUT_GRACE, output.finished()).await.is_err() {
        tracing::debug!("the daemon has ended, its output is held open by another process");
    }
    Ok(exit_of(status))
}

fn exit_of(status: std::process::ExitStatus) -> Exit {
    Exit { code: status.code(), signal: status.signal() }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        // `kill_on_drop` takes care of the process; this also reaches what a wrapper runs.
        if let Ok(None) = self.try_exit() {
            self.kill_group();
        }
    }
}

impl fmt::Debug for DaemonProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaemonProcess").field("pid", &self.pid()).field("exit", &self.exit).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
