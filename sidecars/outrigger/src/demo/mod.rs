//! `demo`: the main job with everything that can go wrong in half a minute.
//!
//! A stand-in for Lago signs with both algorithms, the real processor runs as a process of its own,
//! a gateway verifies what arrives. In the middle the gateway goes away and the processor is killed;
//! at the end a ledger is drawn up from what Lago was told and what the gateway got.

mod cast;
mod play;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use kit_workbench::ledger::Report;

use crate::interrupt::Interrupt;
use crate::output::{self, say};
use cast::Cast;

/// How long the play may take beyond the time that sending takes.
const PLAY_WITHIN: Duration = Duration::from_secs(18);
/// The exit code of what Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
#[command(after_help = "Example: outrigger demo --once")]
pub(crate) struct Arguments {
    /// End after the ledger; the exit code is 0 only if it balances.
    #[arg(long)]
    once: bool,
    /// Webhooks to send.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(20..=20_000))]
    events: u64,
}

pub(crate) async fn run(arguments: Arguments, json: bool) -> anyhow::Result<ExitCode> {
    // From here on Ctrl-C ends the demo and not just this process: the processor has a process group
    // of its own and would stay.
    let mut interrupt = Interrupt::listen()?;
    let mut cast = tokio::select! {
        cast = Cast::assemble() => cast?,
        () = interrupt.wait() => return Ok(INTERRUPTED.into()),
    };
    tell(&format!("processor at {} (admin {}), gateway at {}", cast.public, cast.admin, cast.gateway.url()));
    let limit = PLAY_WITHIN + play::sending_time(arguments.events);
    let report = tokio::select! {
        report = play::run(&mut cast, arguments.events) => Some(report?),
        () = interrupt.wait() => None,
        () = tokio::time::sleep(limit) => bail!("the demo was not over after {} s", limit.as_secs()),
    };
    let Some(report) = report else {
        // How it ends does not matter any more, only that it does.
        drop(cast.stop().await);
        return Ok(INTERRUPTED.into());
    };
    if json {
        output::json(&report)?;
    } else {
        say!("{}", closing(&report));
    }
    if !arguments.once {
        stay(&cast, &mut interrupt).await?;
    }
    let stopped = cast.stop().await;
    if let Err(error) = stopped {
        tell(&format!("the processor did not stop in order: {error:#}"));
        return Ok(ExitCode::FAILURE);
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The ledger as the demo shows it.
fn closing(report: &Report) -> String {
    let mut table = output::table(&["ledger", ""]);
    let rows = [
        ("webhooks sent (attempts)", report.sent),
        ("accepted", report.accepted),
        ("duplicates (same id again)", report.duplicates_answered),
        ("delivered", report.delivered_unique),
        ("delivered again, same id", report.redelivered),
        ("lost", report.lost),
        ("out of order per subject", report.out_of_order),
        ("changed on the way", report.corrupted),
        ("invented", report.invented),
    ];
    for (name, value) in rows {
        table.add_row(vec![name.to_owned(), value.to_string()]);
    }
    let verdict = if report.is_clean() {
        "the ledger balances: lost = 0, out of order per subject = 0".to_owned()
    } else {
        let texts: Vec<String> = report.violations.iter().map(|v| format!("{}: {}", v.invariant, v.text)).collect();
        format!("THE LEDGER DOES NOT BALANCE\n{}", texts.join("\n"))
    };
    format!("{table}\n{verdict}")
}

/// Keeps everything running and says where to look.
async fn stay(cast: &Cast, interrupt: &mut Interrupt) -> anyhow::Result<()> {
    let token = cast.token_file.display();
    let key = cast.hmac_key_file.display();
    say!(
        "\nEverything stays up until Ctrl-C. In another terminal:\n\
         \x20 outrigger send --url http://{}/webhooks/lago --hmac-key-file {key}\n\
         \x20 outrigger events list --admin http://{} --token-file {token}\n\
         \x20 outrigger doctor --admin http://{} --token-file {token}\n\
         \x20 curl http://{}/metrics",
        cast.public,
        cast.admin,
        cast.admin,
        cast.admin
    );
    interrupt.wait().await;
    Ok(())
}

/// A line of the story, beside the progress bar.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Progress: a bar on a terminal, a line now and then otherwise.
struct Progress {
    bar: indicatif::ProgressBar,
    last_line: std::time::Instant,
    plain: bool,
}

impl Progress {
    fn new(events: u64) -> Self {
        let template = "{bar:40.green} {pos}/{len} sent, {msg}";
        Self {
            bar: output::bar(events, template),
            last_line: std::time::Instant::now(),
            plain: !std::io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, sent: u64, accepted: u64, delivered: u64) {
        let message = format!("{accepted} accepted, {delivered} delivered");
        self.bar.set_position(sent);
        if self.plain && self.last_line.elapsed() >= Duration::from_secs(1) {
            self.last_line = std::time::Instant::now();
            tell(&format!("{sent} sent, {message}"));
        }
        self.bar.set_message(message);
    }

    fn tell(&self, line: &str) {
        if self.plain { tell(line) } else { self.bar.println(line) }
    }
}
