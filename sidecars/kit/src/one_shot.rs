//! The bootstrap of what runs once and ends, such as a set-up container: arguments, configuration, runtime, exit code. It has
//! no listeners and nothing to drain; a signal ends it at once, so it must be safe to be cut off anywhere.

use std::ffi::OsString;
use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, LogSection, Problems, Section, Source, WellKnown};
use crate::lifecycle::{Signals, exit};
use crate::telemetry::{self, complain};

/// Something that runs once.
pub trait OneShot: 'static {
    /// Its name: of the binary and in logs.
    const NAME: &'static str;
    /// Its version.
    const VERSION: &'static str;
    /// What it does, in a sentence for `--help`.
    const ABOUT: &'static str;
    /// Its configuration.
    type Config: Section + Send;
    /// What it can be asked to do.
    type Verb: Subcommand + Send;

    /// Variables known under names of their own.
    fn well_known() -> Vec<WellKnown>;

    /// What is logged and how.
    fn log(config: &Self::Config) -> &LogSection;

    /// Checks what only reading files can tell.
    fn check(config: &Self::Config, problems: &mut Problems);

    /// Does what needs no configuration, and returns the exit code; `None` for everything else.
    fn without_configuration(verb: &Self::Verb) -> Option<u8>;

    /// Does it, and returns the exit code.
    fn run(config: Self::Config, verb: Option<Self::Verb>) -> impl Future<Output = u8>;
}

#[derive(Parser)]
#[command(disable_help_subcommand = true)]
struct Arguments<V: Subcommand> {
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
    verb: Option<V>,
}

/// Runs it with these arguments, the first being the program's name.
pub fn main_with_args<O: OneShot>(arguments: Vec<OsString>) -> ExitCode {
    let command = <Arguments<O::Verb> as clap::CommandFactory>::command()
        .name(O::NAME)
        .bin_name(O::NAME)
        .version(O::VERSION)
        .about(O::ABOUT);
    let parsed = command
        .try_get_matches_from(arguments)
        .and_then(|matches| <Arguments<O::Verb> as clap::FromArgMatches>::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::CONFIG } else { exit::DRAINED });
        }
    };
    if arguments.print_config_reference {
        return ExitCode::from(say(&config::reference::<O::Config>(O::NAME, &O::well_known())));
    }
    if let Some(code) = arguments.verb.as_ref().and_then(O::without_configuration) {
        return ExitCode::from(code);
    }
    let well_known = O::well_known();
    let (config, mut mistakes) = config::read::<O::Config>(&Source::of_process(arguments.config, &well_known));
    let mut problems = Problems::default();
    O::check(&config, &mut problems);
    config::add_lines(&mut mistakes, problems.lines(&well_known));
    if !mistakes.is_empty() {
        mistakes.iter().for_each(|line| complain(line));
        return ExitCode::from(exit::CONFIG);
    }
    if arguments.check_config {
        return ExitCode::from(say("configuration is valid\n"));
    }
    ExitCode::from(run::<O>(config, arguments.verb))
}

fn run<O: OneShot>(config: O::Config, verb: Option<O::Verb>) -> u8 {
    telemetry::init_logs(O::log(&config));
    // No core dumps: the memory holds keys.
    if rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).is_err() {
        tracing::warn!("core dumps cannot be turned off");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("{}: cannot start the runtime: {error}", O::NAME));
            return exit::DIED;
        }
    };
    let code = runtime.block_on(async {
        // The first process of a container is deaf to signals that it has no handler for.
        let mut signals = Signals::receive();
        tokio::select! {
            code = O::run(config, verb) => code,
            signal = signals.next() => {
                tracing::warn!(signal, "{signal} received, cut off; run it again to go on");
                exit::CUT_OFF
            }
        }
    });
    // A look-up of a name on a blocking thread must not hold up the exit.
    runtime.shutdown_background();
    telemetry::flush_logs();
    code
}

/// Prints a text on standard output, and returns the exit code.
pub fn say(text: &str) -> u8 {
    // What was logged before stands before it.
    telemetry::flush_logs();
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => exit::DRAINED,
        Err(_) => exit::DIED,
    }
}
