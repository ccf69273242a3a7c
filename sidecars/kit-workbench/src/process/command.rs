//! What a daemon is started with.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::Pid;
use tokio::process::Command;

use super::output::Output;
use super::{DaemonProcess, ProcessError};

/// What to start, and with what.
///
/// The environment is empty but for `PATH`, `TMPDIR` (where set) and what is given here, so that a
/// run depends on nothing of the machine it happens on.
#[derive(Clone)]
pub struct DaemonCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    directory: Option<PathBuf>,
    log_file: Option<PathBuf>,
}

impl DaemonCommand {
    /// A command without arguments.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            log_file: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets one variable; a later value for the same name wins.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets variables.
    #[must_use]
    pub fn envs(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(variables);
        self
    }

    /// Runs in this folder instead of ours.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Also appends everything it prints to this file, so that several runs of one daemon can be
    /// read in a row.
    #[must_use]
    pub fn log_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.log_file = Some(file.into());
        self
    }

    /// Runs the same command inside another one: `strace -f …`, `prlimit --nofile=64`, `faketime`.
    #[must_use]
    pub fn wrapped<A: Into<OsString>>(
        mut self,
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let inner = std::mem::replace(&mut self.program, program.into());
        let mut wrapped: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        wrapped.push(inner.into_os_string());
        wrapped.append(&mut self.arguments);
        self.arguments = wrapped;
        self
    }

    /// Starts it. Must be called inside a tokio runtime, which also reads what it prints.
    ///
    /// # Errors
    /// [`ProcessError::Spawn`], also for a log file that cannot be opened.
    pub fn spawn(&self) -> Result<DaemonProcess, ProcessError> {
        let fail = |source| ProcessError::Spawn { program: self.program.clone(), source };
        let output = Output::new(self.log_file.as_deref()).map_err(fail)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C at a terminal must not reach the daemon of a demo, and a
            // wrapper such as strace is killed together with what it runs.
            .process_group(0)
            .kill_on_drop(true);
        for inherited in ["PATH", "TMPDIR"] {
            if let Some(value) = std::env::var_os(inherited) {
                command.env(inherited, value);
            }
        }
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let mut child = command.spawn().map_err(fail)?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| fail(io::Error::other("the process has no id")))?;
        if let Some(stdout) = child.stdout.take() {
            output.read(stdout, true);
        }
        if let Some(stderr) = child.stderr.take() {
            output.read(stderr, false);
        }
        Ok(DaemonProcess::new(child, pid, output))
    }
}

impl fmt::Debug for DaemonCommand {
    /// Without the values of variables: some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.environment.iter().map(|(k, _)| k.as_str()).collect();
        f.debug_struct("DaemonCommand")
            .field("program", &self.program)
            .field("arguments", &self.arguments)
            .field("environment", &names)
            .finish_non_exhaustive()
    }
}
