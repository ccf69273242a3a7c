//! `outrigger`: one command for everything an operator or a developer does with the daemons – try
//! them, send to them, receive from them, look into them, and mend what went wrong.
//!
//! One verb a module. It links the daemons' libraries and starts them by executing itself, so that
//! `demo` needs nothing but this binary.

mod admin;
mod authentik;
mod dead_letters;
mod demo;
mod doctor;
mod events;
mod finding;
mod interrupt;
mod journal;
mod keys;
mod lago;
mod listen;
mod load;
mod output;
mod route;
mod rule;
mod send;
mod sinks;
mod usage;
mod verify;
mod verify_upgrade;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use admin::Connection;

/// Name of the hidden command that runs the webhook processor.
const RUN_PROCESSOR: &str = "run-lago-webhook-processor";
/// Name of the hidden command that runs the usage tracker.
const RUN_TRACKER: &str = "run-lago-usage-tracker";
/// Name of the hidden command that runs the event forwarder.
const RUN_FORWARDER: &str = "run-authentik-event-forwarder";
/// Name of the hidden command that runs the event bridge.
const RUN_BRIDGE: &str = "run-temporal-event-bridge";

#[derive(Debug, Parser)]
#[command(name = "outrigger", version, about = "Try, watch and mend the Outrigger daemons", propagate_version = true)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON for machines instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the main job on this machine: Lago, the processor and a gateway, with a kill and an outage.
    Demo(demo::Arguments),
    /// Send webhooks signed as Lago signs them.
    Send(send::Arguments),
    /// Be a gateway: verify, print and answer what arrives.
    Listen(listen::Arguments),
    /// Look at events.
    #[command(subcommand)]
    Events(events::Verb),
    /// Look at dead letters, deliver them again or drop them.
    #[command(subcommand)]
    DeadLetters(dead_letters::Verb),
    /// Look at sinks, pause and resume them, forget one that is not configured any more.
    #[command(subcommand)]
    Sinks(sinks::Verb),
    /// Usage on its way to Lago: look at it, send it again, compare it with what Lago has, import it.
    #[command(subcommand)]
    Usage(usage::Verb),
    /// What an organisation in Lago has, beside a catalogue: show, apply, check; and Lago's RSA key.
    #[command(subcommand)]
    Lago(lago::Verb),
    /// What Authentik needs so that events come: print the blueprint, check that all of it is there.
    #[command(subcommand)]
    Authentik(authentik::Verb),
    /// Try routes on an event without sending it.
    #[command(subcommand)]
    Route(route::Verb),
    /// Try the bridge's rules on an event: what would be asked of Temporal.
    #[command(subcommand)]
    Rule(rule::Verb),
    /// A daemon's journal, while the daemon is stopped.
    #[command(subcommand)]
    Journal(journal::Verb),
    /// Totals of the journal and of every sink.
    #[command(after_help = "Example: outrigger stats --json")]
    Stats,
    /// A daemon's metrics as it exposes them; needs no token.
    #[command(after_help = "Example: outrigger metrics | grep ^delivery_\n\
                            Example: outrigger metrics --admin http://lago-usage-tracker:9082")]
    Metrics,
    /// Which parts of a daemon are ready; ends with 1 where it is not. Needs no token.
    #[command(after_help = "Example: outrigger ready")]
    Ready,
    /// Say why a webhook's signature does not match.
    Verify(verify::Arguments),
    /// Before and after a change of Lago's version: does it do what the daemons rely on.
    #[command(after_help = "Example: outrigger verify-upgrade --record before.json\n\
                            Example: outrigger verify-upgrade --compare before.json --wait 600\n\
                            Example: outrigger verify-upgrade --allow-writes --token-file token")]
    VerifyUpgrade(verify_upgrade::Arguments),
    /// Send a load of signed webhooks and measure.
    Load(load::Arguments),
    /// Check the sidecars and what they stand beside; one line a finding, with the fix.
    #[command(
        after_help = "Where things are is taken from the variables of the daemons: see docs/reference/doctor.md.\n\n\
                            Example: outrigger doctor --admin http://127.0.0.1:9081 --token-file token\n\
                            Example: outrigger doctor --env-file compose/.env --json"
    )]
    Doctor(doctor::Arguments),
    /// Print a completion script for a shell.
    #[command(after_help = "Example: outrigger completions bash > /etc/bash_completion.d/outrigger")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line; the exit code is 0, 1 for a failure, 2 for a mistake in the arguments.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    // The daemons' libraries run jq in another process of whatever binary they are in.
    if let Some(code) = kit_routes::jq::worker::main_if_asked(&arguments) {
        return code;
    }
    if let Some(daemon) = arguments.get(1).and_then(|argument| daemon(argument)) {
        // A demo that is killed cannot put its processor away. The kernel watches the *thread* that
        // started this process: it must be one that lives as long as its process.
        if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)) {
            return output::failure(&anyhow::Error::new(error).context("tie the daemon's life to its parent's"));
        }
        let (name, run) = daemon;
        return run(std::iter::once(name.into()).chain(arguments.into_iter().skip(2)).collect());
    }
    let cli = Cli::parse_from(arguments);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::failure(&anyhow::Error::new(error).context("start the runtime")),
    };
    let code = runtime.block_on(async {
        match run(cli).await {
            Ok(code) => code,
            Err(error) => output::failure(&error),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    code
}

/// What runs a daemon with its arguments, its name first.
type RunDaemon = fn(Vec<OsString>) -> ExitCode;

/// The daemon that a hidden command runs, with its name.
fn daemon(argument: &OsStr) -> Option<(&'static str, RunDaemon)> {
    match argument.to_str()? {
        RUN_PROCESSOR => Some(("lago-webhook-processor", lago_webhook_processor::main_with_args)),
        RUN_TRACKER => Some(("lago-usage-tracker", lago_usage_tracker::main_with_args)),
        RUN_FORWARDER => Some(("authentik-event-forwarder", authentik_event_forwarder::main_with_args)),
        RUN_BRIDGE => Some(("temporal-event-bridge", temporal_event_bridge::main_with_args)),
        _ => None,
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let (connection, json) = (cli.connection, cli.json);
    match cli.verb {
        Verb::Demo(arguments) => return demo::run(arguments, json).await,
        Verb::Send(arguments) => return send::run(arguments, json).await,
        Verb::Listen(arguments) => listen::run(arguments, json).await?,
        Verb::Events(verb) => events::run(verb, &connection, json).await?,
        Verb::DeadLetters(verb) => dead_letters::run(verb, &connection, json).await?,
        Verb::Sinks(verb) => sinks::run(verb, &connection, json).await?,
        Verb::Usage(verb) => return usage::run(verb, &connection, json).await,
        Verb::Lago(verb) => return lago::run(verb, json).await,
        Verb::Authentik(verb) => return authentik::run(verb, &connection, json).await,
        Verb::Route(verb) => return route::run(verb, json).await,
        Verb::Rule(verb) => return rule::run(verb, json).await,
        Verb::Journal(verb) => journal::run(verb, json).await?,
        Verb::Stats => sinks::statistics(&connection, json).await?,
        Verb::Metrics => return sinks::plain(&connection, "/metrics").await,
        Verb::Ready => return sinks::plain(&connection, "/readyz").await,
        Verb::Verify(arguments) => return verify::run(&arguments, json),
        Verb::VerifyUpgrade(arguments) => return verify_upgrade::run(arguments, &connection, json).await,
        Verb::Load(arguments) => return load::run(arguments, json).await,
        Verb::Doctor(arguments) => return doctor::run(arguments, &connection, json).await,
        Verb::Completions { shell } => {
            // By way of memory: the generator panics where its output is closed.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut script);
            std::io::stdout().write_all(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
