//! `sinks` and `stats`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;
use kit_delivery::api::{ForgetRequest, ForgetResult};
use serde::{Deserialize, Serialize};

use crate::admin::{Admin, Connection};
use crate::output::{self, safe, say};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Every sink, its counters and what it is doing.
    #[command(after_help = "Example: outrigger sinks list --json")]
    List,
    /// Stop deliveries; webhooks go on being accepted.
    #[command(after_help = "Example: outrigger sinks pause gateway")]
    Pause {
        /// The sink, for example gateway.
        name: String,
    },
    /// Go on with deliveries.
    #[command(after_help = "Example: outrigger sinks resume gateway")]
    Resume {
        /// The sink.
        name: String,
    },
    /// Forget one that is not configured any more: what is pending there and its dead letters are given up for good.
    #[command(after_help = "Until it is forgotten, everything after its last delivery is kept for it.\n\n\
                            Example: outrigger sinks forget audit --dry-run\n\
                            Example: outrigger sinks forget audit --reason 'replaced by the lake' --yes")]
    Forget {
        /// The sink.
        name: String,
        /// Why; kept in the audit trail.
        #[arg(long, default_value = "")]
        reason: String,
        /// Only count.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// One sink as the API shows it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sink {
    pub(crate) name: String,
    pub(crate) accepted: u64,
    pub(crate) delivered: u64,
    pub(crate) pending: u64,
    pub(crate) retrying: u64,
    pub(crate) parked: u64,
    pub(crate) dropped: u64,
    pub(crate) filtered: u64,
    pub(crate) paused: bool,
    pub(crate) status: Option<Status>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) circuit: String,
    pub(crate) in_flight: u64,
    /// An older daemon does not say it.
    #[serde(default)]
    pub(crate) stalled: bool,
    /// An older daemon does not say it.
    #[serde(default)]
    pub(crate) standby: bool,
    pub(crate) last_error: Option<String>,
    pub(crate) last_error_at: Option<String>,
}

/// Totals as the API shows them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Statistics {
    pub(crate) accepted: u64,
    pub(crate) journal_bytes: u64,
    pub(crate) oldest_seq: Option<i64>,
    pub(crate) oldest_at: Option<String>,
    pub(crate) sinks: Vec<Sink>,
}

pub(crate) async fn run(verb: Verb, connection: &Connection, json: bool) -> anyhow::Result<()> {
    let admin = connection.open()?;
    let (name, action) = match verb {
        Verb::List => {
            let sinks: Vec<Sink> = admin.get("/sinks", &[]).await?;
            return if json { output::json(&sinks) } else { show(&sinks) };
        }
        Verb::Pause { name } => (name, "pause"),
        Verb::Resume { name } => (name, "resume"),
        Verb::Forget { name, reason, dry_run, yes } => {
            return forget(&admin, &name, (reason, dry_run, yes), json).await;
        }
    };
    change(&admin, &name, action, json).await
}

async fn change(admin: &Admin, name: &str, action: &str, json: bool) -> anyhow::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Changed {
        sink: String,
        paused: bool,
        changed: bool,
    }
    let changed: Changed = admin.post(&format!("/sinks/{name}/{action}"), &serde_json::json!({})).await?;
    if json {
        return output::json(&changed);
    }
    let state = if changed.paused { "paused" } else { "running" };
    let already = if changed.changed { "" } else { " (it was already)" };
    say!("{} is {state}{already}", changed.sink);
    Ok(())
}

/// Counts, asks, and does it.
async fn forget(
    admin: &Admin,
    name: &str,
    (reason, dry_run, yes): (String, bool, bool),
    json: bool,
) -> anyhow::Result<()> {
    let path = format!("/sinks/{name}/forget");
    let request = |dry_run| ForgetRequest { dry_run, reason: reason.clone() };
    if !dry_run && !yes {
        let ForgetResult { sink, pending, parked, .. } = admin.post(&path, &request(true)).await?;
        let goes = format!("{pending} pending deliveries and {parked} dead letters");
        if !output::confirmed(&format!("forget {} with {goes}?", safe(&sink))) {
            bail!("{goes} go with {}; say --yes to forget it", safe(&sink));
        }
    }
    let result: ForgetResult = admin.post(&path, &request(dry_run)).await?;
    if json {
        return output::json(&result);
    }
    let ForgetResult { sink, pending, parked, account, dry_run } = result;
    let done = if dry_run { "would be forgotten (dry run)" } else { "is forgotten" };
    say!("{} {done}: {pending} pending deliveries and {parked} dead letters dropped", safe(&sink));
    say!(
        "of {} events delivered {}, dropped {}, filtered {}",
        account.accepted,
        account.delivered,
        account.dropped,
        account.filtered
    );
    Ok(())
}

pub(crate) async fn statistics(connection: &Connection, json: bool) -> anyhow::Result<()> {
    let statistics: Statistics = connection.open()?.get("/statistics", &[]).await?;
    if json {
        return output::json(&statistics);
    }
    say!("events accepted  {}", statistics.accepted);
    say!("journal          {:.1} MiB", mebibytes(statistics.journal_bytes));
    if let Some(oldest) = &statistics.oldest_at {
        say!("oldest stored    {oldest}");
    }
    show(&statistics.sinks)
}

/// What a daemon says without a token, as it says it: where nothing but this binary reaches it.
pub(crate) async fn plain(connection: &Connection, path: &str) -> anyhow::Result<ExitCode> {
    let (status, body) = connection.open_plain()?.plain(path).await?;
    for line in String::from_utf8_lossy(&body).lines() {
        output::line(format_args!("{}", safe(line)))?;
    }
    Ok(if status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(sinks: &[Sink]) -> anyhow::Result<()> {
    let mut table = output::table(&[
        "sink",
        "accepted",
        "delivered",
        "pending",
        "of these retrying",
        "parked",
        "dropped",
        "filtered",
        "circuit",
        "last error",
    ]);
    for sink in sinks {
        let status = sink.status.as_ref();
        // A circuit says nothing where another replica delivers.
        let doing = status.map_or("–", |status| if status.standby { "standby" } else { &status.circuit });
        let stalled = status.is_some_and(|status| status.stalled);
        table.add_row(vec![
            sink.name.clone(),
            sink.accepted.to_string(),
            sink.delivered.to_string(),
            sink.pending.to_string(),
            sink.retrying.to_string(),
            sink.parked.to_string(),
            sink.dropped.to_string(),
            sink.filtered.to_string(),
            [doing, if sink.paused { ", paused" } else { "" }, if stalled { ", stalled" } else { "" }].concat(),
            safe(status.and_then(|status| status.last_error.as_deref()).unwrap_or("–")),
        ]);
    }
    say!("{table}");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
