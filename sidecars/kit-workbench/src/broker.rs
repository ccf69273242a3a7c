//! A RabbitMQ of our own, from Debian's package: on free ports of 127.0.0.1, with its own data, cookie, node name and
//! port mapper, so that nothing else of the machine is touched. Ended by process id when dropped.

use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::scratch::{Scratch, free_ports};

/// Where Debian's package has the scripts. The ones in `/usr/sbin` change the user.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// How long a broker may take until it listens: eight seconds on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// How long a command may take; each starts an Erlang machine.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
/// How long it may take to greet back.
const GREETING: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);
/// No spinning while idle, and as many schedulers as a small host has.
const ERLANG: &str = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none";

/// What went wrong with a broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is none on this machine.
    #[error("there is no RabbitMQ at {SCRIPTS}: apt-get install rabbitmq-server")]
    Missing,
    /// The system refuses.
    #[error("run the broker")]
    System(#[from] io::Error),
    /// It does not listen in time.
    #[error("the broker does not listen after {START_DEADLINE:?}; it said:\n{0}")]
    Silent(String),
    /// A command failed.
    #[error("rabbitmqctl {command}: {said}")]
    Command {
        /// What was asked for.
        command: String,
        /// What it said.
        said: String,
    },
}

/// A broker.
#[derive(Debug)]
pub struct Broker {
    scratch: Scratch,
    port: u16,
    environment: Vec<(&'static str, String)>,
    mapper: Child,
    /// The node, in a process group of its own; `None` while it is down.
    node: Option<Child>,
}

impl Broker {
    /// Whether this machine has one.
    pub fn is_installed() -> bool {
        Path::new(SCRIPTS).join("rabbitmq-server").exists()
    }

    /// Starts one; it listens when this returns.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn start() -> Result<Self, BrokerError> {
        Self::start_with(&[]).await
    }

    /// As [`Self::start`], with further lines in its configuration.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn start_with(more: &[String]) -> Result<Self, BrokerError> {
        if !Self::is_installed() {
            return Err(BrokerError::Missing);
        }
        let scratch = Scratch::new("broker")?;
        let [port, distribution, mapping] = free_ports()?;
        let file = |name: &str| scratch.file(name).display().to_string();
        scratch.write("plugins", "[].")?;
        let settings = [
            format!("listeners.tcp.1 = 127.0.0.1:{port}"),
            "log.file.level = warning".to_owned(),
            // The machine's disk is not what is looked at.
            "disk_free_limit.absolute = 1MB".to_owned(),
        ];
        scratch.write("rabbitmq.conf", [&settings[..], more].concat().join("\n") + "\n")?;
        let environment = vec![
            ("HOME", scratch.path().display().to_string()),
            ("LANG", "C.UTF-8".to_owned()),
            ("PATH", std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned())),
            ("ERL_EPMD_PORT", mapping.to_string()),
            ("ERL_EPMD_ADDRESS", Ipv4Addr::LOCALHOST.to_string()),
            ("RABBITMQ_NODENAME", format!("bench{port}@localhost")),
            ("RABBITMQ_NODE_PORT", port.to_string()),
            ("RABBITMQ_NODE_IP_ADDRESS", Ipv4Addr::LOCALHOST.to_string()),
            ("RABBITMQ_DIST_PORT", distribution.to_string()),
            ("RABBITMQ_MNESIA_BASE", file("data")),
            ("RABBITMQ_LOG_BASE", file("log")),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("plugins")),
            ("RABBITMQ_PID_FILE", file("pid")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", ERLANG.to_owned()),
            ("RABBITMQ_CTL_ERL_ARGS", "+S 1:1 +sbwt none".to_owned()),
        ];
        // In the foreground and ours: the one that a node starts outlives it.
        let mut mapper = Command::new("epmd");
        mapper.args(["-port", &mapping.to_string(), "-address", "127.0.0.1"]).env_clear().envs(environment.clone());
        let mapper =
            mapper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
        // A node that finds none starts one of its own, which nobody ends.
        let begin = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, mapping)).await.is_err() && begin.elapsed() < GREETING {
            sleep(POLL).await;
        }
        let mut broker = Self { scratch, port, environment, mapper, node: None };
        broker.start_again().await?;
        Ok(broker)
    }

    /// Starts the node after [`Self::kill`], with the data and on the port it had; returns how long it took to listen.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn start_again(&mut self) -> Result<Duration, BrokerError> {
        let begin = Instant::now();
        let said = std::fs::File::create(self.scratch.file("said"))?;
        let mut command = Command::new(Path::new(SCRIPTS).join("rabbitmq-server"));
        command.env_clear().envs(self.environment.clone()).current_dir(self.scratch.path()).process_group(0);
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        self.node = Some(command.spawn()?);
        while !self.listens().await {
            let ended = self.node.as_mut().and_then(|node| node.try_wait().ok().flatten()).is_some();
            if ended || begin.elapsed() > START_DEADLINE {
                let said = std::fs::read_to_string(self.scratch.file("said")).unwrap_or_default();
                return Err(BrokerError::Silent(said));
            }
            sleep(POLL).await;
        }
        Ok(begin.elapsed())
    }

    /// Whether AMQP is spoken at its port. While it starts and stops, the port is open for a moment and nobody behind it.
    pub async fn listens(&self) -> bool {
        let greet = async {
            let mut stream = TcpStream::connect(self.addr()).await?;
            stream.write_all(b"AMQP\0\0\x09\x01").await?;
            stream.read_u8().await
        };
        matches!(tokio::time::timeout(GREETING, greet).await, Ok(Ok(_)))
    }

    /// Waits until AMQP is spoken at its port.
    ///
    /// # Errors
    /// [`BrokerError::Silent`].
    pub async fn wait_listening(&self) -> Result<(), BrokerError> {
        let begin = Instant::now();
        while !self.listens().await {
            if begin.elapsed() > START_DEADLINE {
                return Err(BrokerError::Silent("nothing new".to_owned()));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Its address for clients, as the user that it comes with.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2F", self.port)
    }

    /// Kills the node with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// The system refuses.
    pub async fn kill(&mut self) -> Result<(), BrokerError> {
        self.signal(Signal::KILL)?;
        if let Some(mut node) = self.node.take() {
            node.wait().await?;
        }
        Ok(())
    }

    /// Freezes the node: connections stay, and nothing answers.
    ///
    /// # Errors
    /// The system refuses.
    pub fn freeze(&self) -> Result<(), BrokerError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn thaw(&self) -> Result<(), BrokerError> {
        self.signal(Signal::CONT)
    }

    /// Runs `rabbitmqctl` with these words; returns what it prints.
    ///
    /// # Errors
    /// [`BrokerError::Command`].
    pub async fn ctl<A: AsRef<OsStr>>(&self, words: &[A]) -> Result<String, BrokerError> {
        let mut command = Command::new(Path::new(SCRIPTS).join("rabbitmqctl"));
        command.env_clear().envs(self.environment.clone()).current_dir(self.scratch.path()).kill_on_drop(true);
        command.arg("--quiet").args(words).stdin(Stdio::null());
        let shown = || words.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
        let failed = |said: String| BrokerError::Command { command: shown(), said };
        let output = tokio::time::timeout(COMMAND_DEADLINE, command.output());
        let output = output.await.map_err(|_| failed(format!("no end after {COMMAND_DEADLINE:?}")))??;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Has the node write down which quorum queues there are. It does so by itself once half a second has passed, and one
    /// that is killed before that has lost the queue for good, with everything it confirmed: it knows it by name only, and
    /// begins a new log that never elects a leader (RabbitMQ 3.10.8; the table of names of its Raft library 2.2.0 is saved
    /// every 500 ms). Wanted before [`Self::kill`] where a queue was just declared.
    ///
    /// # Errors
    /// [`BrokerError::Command`].
    pub async fn write_down_queues(&self) -> Result<(), BrokerError> {
        self.ctl(&["eval", "[ok = dets:sync(Table) || Table <- dets:all()]."]).await.map(drop)
    }

    /// Raises or clears the memory alarm: while it is there, the broker blocks everybody who publishes.
    ///
    /// # Errors
    /// [`BrokerError::Command`].
    pub async fn alarm(&self, is_raised: bool) -> Result<(), BrokerError> {
        let watermark = if is_raised { "0.0001" } else { "0.8" };
        self.ctl(&["set_vm_memory_high_watermark", watermark]).await.map(drop)
    }

    /// Raises or clears the disk alarm, which blocks them as well.
    ///
    /// # Errors
    /// [`BrokerError::Command`].
    pub async fn disk_alarm(&self, is_raised: bool) -> Result<(), BrokerError> {
        let limit = if is_raised { "1000000GB" } else { "1MB" };
        self.ctl(&["set_disk_free_limit", limit]).await.map(drop)
    }

    /// What the node has logged.
    pub fn log(&self) -> String {
        let logs = std::fs::read_dir(self.scratch.file("log")).into_iter().flatten().flatten();
        logs.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect()
    }

    /// Where its files are.
    pub fn folder(&self) -> PathBuf {
        self.scratch.path().to_owned()
    }

    fn signal(&self, signal: Signal) -> Result<(), BrokerError> {
        // A child that was not waited for keeps its id: it cannot be somebody else's.
        let Some(id) = self.node.as_ref().and_then(Child::id) else { return Ok(()) };
        let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) else { return Ok(()) };
        rustix::process::kill_process_group(pid, signal).map_err(|error| BrokerError::System(error.into()))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.signal(Signal::KILL);
        let _ = self.mapper.start_kill();
    }
}
