//! The bootstrap that all daemons share: arguments, configuration, runtime, start, drain, exit code.

use std::ffi::OsString;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{self, Problems, ProcessSections, Section, Source, WellKnown};
use crate::lifecycle::{Shell, Signals, exit};
use crate::telemetry::{self, Metrics, complain};

/// Threads for blocking work are kept for as long as anybody may run this. When the machine lets no
/// further thread start, the work waits for one that is there: if none were kept, for ever.
pub(crate) const KEEP_THREADS: Duration = Duration::from_secs(100 * 365 * 86_400);

/// As many workers as a small host has cores: more only cost memory.
pub(crate) const WORKERS: usize = 2;

/// A daemon of the house.
pub trait Daemon: 'static {
    /// Its name: of the binary, in logs and metrics.
    const NAME: &'static str;
    /// Its version.
    const VERSION: &'static str;
    /// What it does, in a sentence for `--help`.
    const ABOUT: &'static str;
    /// Its page in `docs/reference`, which a release prints. A debug build makes the page anew from the types: that takes a
    /// twentieth of the binary.
    const REFERENCE: &'static str;
    /// SIGHUP means something to it, so that none may end it, however early it comes.
    const OUTLIVES_HANGUP: bool = false;
    /// Its configuration.
    type Config: Section + AsRef<ProcessSections> + Send;

    /// Variables known under names of their own.
    fn well_known() -> Vec<WellKnown>;

    /// Checks what only reading files can tell: keys, tokens, certificates.
    fn check(config: &Self::Config, problems: &mut Problems);

    /// Starts everything; what runs is given to the shell.
    fn start(
        config: Self::Config,
        metrics: Arc<Metrics>,
        shell: &mut Shell,
    ) -> impl Future<Output = Result<(), StartError>> + Send;
}

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// Exit code, one of [`exit`].
    pub code: u8,
    /// One line that names the thing and the fix.
    pub message: String,
}

#[derive(Parser)]
#[command(disable_help_subcommand = true)]
struct Arguments {
    /// TOML file; the environment wins over it.
    #[arg(long, value_name = "FILE", env = "SIDECAR_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Check the configuration and every file it names, then exit.
    #[arg(long)]
    check_config: bool,
    /// Print the configuration reference as Markdown, then exit.
    #[arg(long)]
    print_config_reference: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Ask the running daemon whether it is alive; for health checks of images without a shell.
    Health,
}

/// Runs a daemon with the process's arguments.
pub fn main<D: Daemon>() -> ExitCode {
    main_with_args::<D>(std::env::args_os().collect())
}

/// Runs a daemon with these arguments, the first being the program's name.
pub fn main_with_args<D: Daemon>(arguments: Vec<OsString>) -> ExitCode {
    let command = <Arguments as clap::CommandFactory>::command()
        .name(D::NAME)
        .bin_name(D::NAME)
        .version(D::VERSION)
        .about(D::ABOUT);
    let arguments = match command
        .try_get_matches_from(arguments)
        .and_then(|m| <Arguments as clap::FromArgMatches>::from_arg_matches(&m))
    {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::CONFIG } else { exit::DRAINED });
        }
    };
    if arguments.print_config_reference {
        if cfg!(debug_assertions) {
            return say(&config::reference::<D::Config>(D::NAME, &D::well_known()));
        }
        return say(D::REFERENCE);
    }
    if D::OUTLIVES_HANGUP {
        outlive_hangups();
    }
    if matches!(arguments.command, Some(Command::Health)) {
        // Asked every few seconds beside a running daemon: only the address matters, and no file that it names is read.
        let (config, _) = config::read::<D::Config>(&Source::of_process(arguments.config, &D::well_known()));
        return health(&config.as_ref().listen.admin);
    }
    let (config, mistakes) = checked::<D>(arguments.config);
    if !mistakes.is_empty() {
        mistakes.iter().for_each(|line| complain(line));
        return ExitCode::from(exit::CONFIG);
    }
    if arguments.check_config {
        return say("configuration is valid\n");
    }
    run::<D>(config)
}

/// The configuration, and every mistake in it and in the files it names, one line each.
fn checked<D: Daemon>(file: Option<PathBuf>) -> (D::Config, Vec<String>) {
    let well_known = D::well_known();
    let (config, mut lines) = config::read::<D::Config>(&Source::of_process(file, &well_known));
    let mut problems = Problems::default();
    D::check(&config, &mut problems);
    config::add_lines(&mut lines, problems.lines(&well_known));
    (config, lines)
}

fn run<D: Daemon>(config: D::Config) -> ExitCode {
    telemetry::init_logs(&config.as_ref().log);
    // No core dumps and no debugger of the same user: the memory holds keys and bodies.
    let undumpable = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if undumpable.is_err() {
        tracing::warn!("core dumps cannot be turned off");
    }
    raise_open_files();
    crate::trace::init(D::NAME, D::VERSION);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_keep_alive(KEEP_THREADS)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("{}: cannot start the runtime: {error}", D::NAME));
            return ExitCode::from(exit::DIED);
        }
    };
    let drain = Duration::try_from_secs_f64(config.as_ref().stop.drain_seconds).unwrap_or(Duration::from_secs(8));
    let code = runtime.block_on(async move {
        let signals = Signals::receive();
        outlive_file_limits();
        let metrics = Arc::new(Metrics::new(D::NAME, D::VERSION));
        let mut shell = Shell::new();
        match D::start(config, metrics, &mut shell).await {
            Ok(()) => {
                tracing::info!(version = D::VERSION, "{} is running", D::NAME);
                let code = shell.run(drain, signals).await;
                tracing::info!(code, "{} stopped", D::NAME);
                code
            }
            Err(error) => {
                tracing::error!(code = error.code, "{} did not start: {error}", D::NAME);
                complain(&format!("{}: {error}", D::NAME));
                error.code
            }
        }
    });
    crate::trace::flush();
    // Whatever is left on blocking threads must not hold up the exit.
    runtime.shutdown_timeout(Duration::from_millis(200));
    telemetry::flush_logs();
    ExitCode::from(code)
}

/// Takes as many open files as the host allows: the usual soft limit of 1024 is for programs that call
/// `select`, which we do not.
fn raise_open_files() {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    if limits.current != limits.maximum && setrlimit(Resource::Nofile, raised).is_err() {
        tracing::warn!(limit = ?limits.current, "the limit of open files cannot be raised");
    }
}

/// A write beyond the limit of file sizes is to fail like one on a full disk. Without a handler the kernel ends
/// the process instead. Needs a runtime, which keeps the handler.
fn outlive_file_limits() {
    let beyond = tokio::signal::unix::SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    if tokio::signal::unix::signal(beyond).is_err() {
        tracing::warn!("a limit of file sizes will end the process");
    }
}

/// Without a handler SIGHUP ends the process, and reading the configuration may take seconds. The handler stays when the
/// runtime that it is registered with is gone.
fn outlive_hangups() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let registered = runtime.and_then(|runtime| {
        runtime.block_on(async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).map(drop) })
    });
    if let Err(error) = registered {
        complain(&format!("SIGHUP will end the process until it is running: {error}"));
    }
}

/// Asks `/livez` of the daemon beside us.
fn health(admin: &str) -> ExitCode {
    let Ok(mut address) = admin.parse::<SocketAddr>() else { return ExitCode::from(exit::CONFIG) };
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    match ask(address) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            complain(&format!("{address} does not answer 200"));
            ExitCode::from(exit::DIED)
        }
        Err(error) => {
            complain(&format!("{address}: {error}"));
            ExitCode::from(exit::DIED)
        }
    }
}

fn ask(address: SocketAddr) -> std::io::Result<bool> {
    use std::io::Read as _;
    let limit = Duration::from_secs(1);
    let mut stream = std::net::TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"HTTP/1.1 200")
}

fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(exit::DIED),
    }
}
