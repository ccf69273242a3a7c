//! What Lago misses of a period that has ended, and never counts: a person says that it is known.

use anyhow::bail;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::admin::Admin;
use crate::output::{self, safe, say};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The subscription (its external id).
    subscription: String,
    /// Only of this billable metric.
    #[arg(long)]
    code: Option<String>,
    /// Why, for the audit trail: what was done about it.
    #[arg(long)]
    reason: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    subscription: String,
    code: String,
    missing_events: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Accepted {
    rows: Vec<Row>,
}

pub(crate) async fn run(admin: &Admin, arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let Arguments { subscription, code, reason, yes } = arguments;
    let question = format!("accept that Lago never counts what it misses of {}?", safe(subscription));
    if !yes && !output::confirmed(&question) {
        bail!("nothing is accepted: say --yes");
    }
    let request = serde_json::json!({ "subscription": subscription, "code": code, "reason": reason });
    let accepted: Accepted = admin.post("/usage/accept", &request).await?;
    if json {
        return output::json(&accepted);
    }
    for Row { code, missing_events, .. } in &accepted.rows {
        say!("{}: {missing_events} missing events are accepted", safe(code));
    }
    Ok(())
}
