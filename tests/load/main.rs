//! The figures: how fast, how large, how much is written, beside what else an operator could run.
//!
//! `tests/load/run` builds everything and runs this; `tests/load/run --help` says what can be chosen.
//! Rates are printed as ratios within one run, because machines are noisy and ratios are less so.

mod backlog;
mod lago;
mod measure;
mod null;
mod record;
mod sections;
mod servers;
mod wrk;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

// As the daemons: what is compared must not differ in this.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(name = "load", about = "Measures the daemons beside what else could stand in their place.")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Sections to run, all without one: accept, deliver, jwt, fresh, peers, latency, open, restart,
    /// memory, size, counts; of the usage tracker usage-intake, usage-batch, usage-drain, usage-memory,
    /// usage-client; of the event forwarder authentik; routes; with RabbitMQ amqp-forward, amqp-accept, amqp-memory, amqp-peer;
    /// with PostgreSQL postgres, replicas; beside Temporal's own server temporal.
    sections: Vec<String>,
    /// Rounds of each comparison; a round runs every variant once.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each variant in a round.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Queued events of `restart`; `usage-memory` queues five times as many.
    #[arg(long, default_value_t = 1_000_000)]
    queued: u64,
    /// Events of `memory` at 1,000 a second.
    #[arg(long, default_value_t = 60_000)]
    events: u64,
    /// Append every record to this file, one JSON object a line.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// A bare handler: reads the body, answers 200.
    #[command(hide = true)]
    Bare {
        /// Where to listen.
        address: std::net::SocketAddr,
    },
    /// The webhook processor over a journal that stores nothing.
    #[command(hide = true)]
    NullJournal,
    /// Lago, as far as usage goes: takes every batch after a while.
    #[command(hide = true)]
    Lago {
        /// Where to listen.
        address: std::net::SocketAddr,
        /// How long a batch takes.
        millis: u64,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result: Result<bool> = match arguments.command {
        Some(Command::Bare { address }) => servers::serve_bare(address).map(|()| true),
        Some(Command::NullJournal) => return null::main(),
        Some(Command::Lago { address, millis }) => lago::serve(address, millis).map(|()| true),
        None => {
            let options = sections::Options {
                wanted: arguments.sections,
                rounds: arguments.rounds,
                seconds: arguments.seconds,
                queued: arguments.queued,
                events: arguments.events,
                json: arguments.json,
            };
            sections::run(&options)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            record::say(&format!("load: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}
