//! The tracker's ledger beside what Lago has counted.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use kit::clock::Timestamp;
use serde::{Deserialize, Serialize};

use crate::admin::Admin;
use crate::output::{self, safe, say};

/// Rows in one answer.
const PAGE: u32 = 500;
/// Between two looks whether a comparison has ended.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Compare now and wait for it, instead of showing the last comparison.
    #[arg(long)]
    now: bool,
    /// Seconds that --now waits: a comparison begins when what was just sent has settled in Lago.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "now")]
    wait: u64,
    /// Only this subscription (its external id).
    #[arg(long, value_name = "ID")]
    subscription: Option<String>,
    /// Only this billable metric.
    #[arg(long)]
    code: Option<String>,
    /// Also rows in which both agree.
    #[arg(long)]
    all: bool,
}

/// One subscription, metric and billing period.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    subscription: String,
    code: String,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    events: u64,
    units: Option<String>,
    lago: Option<Counted>,
    missing_events: u64,
    surplus_events: u64,
    /// `equal`, `missing`, `surplus`, `uncertain`, `settling`, `not_charged`, `accepted` or `unknown`.
    state: String,
}

/// What Lago says.
#[derive(Debug, Serialize, Deserialize)]
struct Counted {
    events: u64,
    units: Option<String>,
    at: Timestamp,
}

/// One answer of the API.
#[derive(Deserialize)]
struct Page {
    rows: Vec<Row>,
    next: Option<String>,
    compared_at: Option<Timestamp>,
    failed: Option<String>,
}

#[derive(Serialize)]
struct Report {
    /// When the last comparison began.
    compared_at: Option<Timestamp>,
    /// What Lago has not answered in it, or why there was none to the end.
    failed: Option<String>,
    /// Rows by state, those included that are not shown.
    states: BTreeMap<String, u64>,
    rows: Vec<Row>,
}

pub(crate) async fn run(admin: &Admin, arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    if arguments.now {
        compare(admin, Duration::from_secs(arguments.wait)).await?;
    }
    let report = read(admin, arguments).await?;
    // Nothing is known to be fine before it was compared, as after a restart.
    let is_fine = report.compared_at.is_some() && report.failed.is_none() && !report.states.contains_key("missing");
    if json {
        output::json(&report)?;
    } else {
        show(&report, arguments.all)?;
    }
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts a comparison and waits until one has ended that began no earlier.
async fn compare(admin: &Admin, patience: Duration) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Started {
        at: Timestamp,
    }
    let Started { at } = admin.post("/usage/reconcile", &serde_json::json!({})).await?;
    let bar = output::bar(0, "{spinner} {msg} {elapsed}");
    bar.set_message("comparing with Lago …");
    bar.enable_steady_tick(Duration::from_millis(100));
    let begin = Instant::now();
    loop {
        let page: Page = admin.get("/usage/ledger", &[("limit", "1".to_owned())]).await?;
        if page.compared_at.is_some_and(|compared| compared >= at) {
            bar.finish_and_clear();
            return Ok(());
        }
        if begin.elapsed() >= patience {
            let why = page.failed.map(|why| format!(": {}", safe(&why))).unwrap_or_default();
            bail!("no comparison has ended within {} s (--wait){why}", patience.as_secs());
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

async fn read(admin: &Admin, arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report { compared_at: None, failed: None, states: BTreeMap::new(), rows: Vec::new() };
    let mut after: Option<String> = None;
    loop {
        let mut query = vec![("limit", PAGE.to_string())];
        query.extend(arguments.subscription.clone().map(|subscription| ("subscription", subscription)));
        query.extend(arguments.code.clone().map(|code| ("code", code)));
        query.extend(after.take().map(|after| ("after", after)));
        let page: Page = admin.get("/usage/ledger", &query).await?;
        (report.compared_at, report.failed) = (page.compared_at, page.failed);
        for row in page.rows {
            *report.states.entry(row.state.clone()).or_default() += 1;
            if arguments.all || needs_a_look(&row.state) {
                report.rows.push(row);
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(report);
        }
    }
}

/// Both agree, or do not yet, or a person has had a look; anything else is for one.
fn needs_a_look(state: &str) -> bool {
    !matches!(state, "equal" | "settling" | "accepted")
}

fn show(report: &Report, all: bool) -> anyhow::Result<()> {
    match report.compared_at {
        Some(at) => say!("compared at {at}"),
        None => say!("not compared yet: --now does it"),
    }
    if let Some(why) = &report.failed {
        say!("the last comparison is not whole: {}", safe(why));
    }
    if !report.rows.is_empty() {
        let columns =
            ["subscription", "code", "from", "events", "Lago's", "units", "Lago's", "missing", "surplus", "state"];
        let mut table = output::table(&columns);
        for row in &report.rows {
            let lago = row.lago.as_ref();
            let or_dash = |text: Option<&str>| text.map_or_else(|| "–".to_owned(), safe);
            table.add_row(vec![
                safe(&row.subscription),
                safe(&row.code),
                row.from.map_or_else(|| "–".to_owned(), |from| from.to_string()),
                row.events.to_string(),
                lago.map_or_else(|| "–".to_owned(), |lago| lago.events.to_string()),
                or_dash(row.units.as_deref()),
                or_dash(lago.and_then(|lago| lago.units.as_deref())),
                row.missing_events.to_string(),
                row.surplus_events.to_string(),
                safe(&row.state),
            ]);
        }
        say!("{table}");
    }
    let states: Vec<String> = report.states.iter().map(|(state, rows)| format!("{rows} {}", safe(state))).collect();
    let hidden = !all && report.rows.len() as u64 != report.states.values().sum::<u64>();
    let note = if hidden { " (--all shows every row)" } else { "" };
    say!("{}{note}", if states.is_empty() { "no rows".to_owned() } else { states.join(", ") });
    Ok(())
}
