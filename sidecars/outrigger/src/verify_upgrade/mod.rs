//! `verify-upgrade`: does the Lago that answers now do what the daemons rely on, and is it still what it was before a tag
//! was changed. Without `--allow-writes` nothing is stored in Lago.

mod fact;
mod reads;
mod record;
mod writes;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use kit::clock::{Clock as _, SystemClock};
use kit::error::chain;
use kit_lago::api::LagoApi;
use serde::Serialize;

use crate::admin::Connection;
use crate::lago::LagoConnection;
use crate::output::{self, safe, say};
use fact::{FACTS, Holds};
use record::{Compared, Record, STANDARD};

/// Between two looks whether Lago is up.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    lago: LagoConnection,
    /// Before the upgrade: write what is seen into this file, or with - to standard output in place of the lines. A file that is
    /// there is not written over.
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    record: Option<PathBuf>,
    /// After the upgrade: compare with this file, or with - with what comes in.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Also make a metric, a plan over 0, a customer and a subscription in Lago, send an event twice, look for the webhook at the
    /// webhook processor (--admin, --token-file), and remove all of it. Lago keeps an invoice over 0.
    #[arg(long)]
    allow_writes: bool,
    /// Seconds that Lago is waited for: after a change of its tag it migrates its database first. With --allow-writes also how long
    /// it may take to count an event and to send a webhook.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

/// The document of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    holds: bool,
    version: &'a str,
    version_before: Option<&'a str>,
    facts: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    relied_on_by: &'static str,
    fact: &'static str,
    #[serde(flatten)]
    compared: &'a Compared,
}

pub(crate) async fn run(arguments: Arguments, connection: &Connection, json: bool) -> anyhow::Result<ExitCode> {
    // A file that cannot be read should not be found out after all the questions.
    let before = arguments.compare.as_deref().map(Record::read).transpose()?;
    let (api, ..) = arguments.lago.open()?;
    let wait = Duration::from_secs(arguments.wait);
    let version = wait_for_lago(&api, wait).await?;
    let mut seen = reads::all(&api).await;
    if arguments.allow_writes {
        seen.extend(writes::all(&api, connection.open(), SystemClock.now(), wait).await);
    }
    let mut compared = match &before {
        Some(before) => before.compare(seen),
        None => record::alone(seen),
    };
    compared.sort_by_key(|compared| (compared.is_good(), compared.seen.holds));
    let holds = compared.iter().all(Compared::is_good);
    if let Some(file) = &arguments.record {
        let facts = compared.iter().map(|compared| compared.seen.clone()).collect();
        Record::new(version.clone(), SystemClock.now(), facts).write(file)?;
    }
    let before = before.as_ref().map(|record| record.version.as_str());
    if arguments.record.as_deref() == Some(Path::new(STANDARD)) {
        for compared in compared.iter().filter(|compared| !compared.is_good()) {
            let _ = writeln!(std::io::stderr(), "{}", shown(&line(compared)));
        }
    } else if json {
        let facts = compared.iter().map(line).collect();
        output::json(&Report { holds, version: &version, version_before: before, facts })?;
    } else {
        for compared in &compared {
            say!("{}", shown(&line(compared)));
        }
        let from = before.map_or_else(String::new, |before| format!(", {} before", safe(before)));
        let verdict =
            if holds { "what the daemons rely on holds" } else { "something that the daemons rely on does not hold" };
        say!("Lago {}{from}: {verdict}", safe(&version));
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The version of a Lago that is up.
async fn wait_for_lago(api: &LagoApi, limit: Duration) -> anyhow::Result<String> {
    let begun = Instant::now();
    loop {
        match api.health().await {
            Ok(version) => return Ok(version),
            Err(error) if begun.elapsed() >= limit => {
                bail!("Lago's /health gives no version after {} s (--wait): {}", limit.as_secs(), chain(&error));
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY.min(limit)).await,
        }
    }
}

fn line(compared: &Compared) -> Line<'_> {
    let fact = FACTS.iter().find(|fact| fact.id == compared.seen.id);
    Line { relied_on_by: fact.map_or("nobody", |fact| fact.daemons), fact: fact.map_or("", |fact| fact.says), compared }
}

/// One line: how it is, and where it does not hold, who relies on what.
fn shown(line: &Line<'_>) -> String {
    let seen = &line.compared.seen;
    let mark = match seen.holds {
        _ if !line.compared.is_good() => "FAIL",
        Holds::Unknown => "?   ",
        _ => "ok  ",
    };
    let mut text = format!("{mark} {:<22} {}", seen.id, safe(&seen.text));
    for news in line.compared.news() {
        text.push_str(&format!("; {}", safe(&news)));
    }
    if !line.compared.is_good() {
        text.push_str(&format!(" → relied on by {}: {}", line.relied_on_by, line.fact));
    }
    text
}
