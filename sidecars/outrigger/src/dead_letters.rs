//! `dead-letters`: list, show, replay, drop.

use anyhow::bail;
use clap::{Args, Subcommand};
use kit_delivery::api::{ActionResult, DeliveryPage, DropRequest, ReplayRequest, Selection};

use crate::admin::{Admin, Connection, Filter};
use crate::events;
use crate::output::{self, safe, say};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Newest first, with the reason.
    #[command(after_help = "Example: outrigger dead-letters list --type 'lago.invoice.*' --since 2026-11-21T04:00:00Z")]
    List {
        #[command(flatten)]
        filter: Filter,
        /// How many at most.
        #[arg(long, default_value_t = 50, value_parser = output::at_least_one())]
        limit: usize,
    },
    /// One dead letter with its body and every attempt.
    #[command(after_help = "Example: outrigger dead-letters show 1b089f7a-6f40-87ce-9836-21907b3c75f7")]
    Show {
        /// Event id.
        id: String,
    },
    /// Deliver again, by id or by filter.
    #[command(after_help = "Example: outrigger dead-letters replay --sink gateway --type 'lago.invoice.*' --dry-run\n\
                            Example: outrigger dead-letters replay --sink gateway --all --rate 50 --yes")]
    Replay {
        #[command(flatten)]
        choice: Choice,
        /// Deliveries per second at most; 0 means as fast as the sink takes them.
        #[arg(long, default_value_t = 0.0)]
        rate: f64,
    },
    /// Give up for good; they stay listed as dropped.
    #[command(
        after_help = "Example: outrigger dead-letters drop --sink gateway --tenant acme --reason 'test data' --dry-run"
    )]
    Drop {
        #[command(flatten)]
        choice: Choice,
        /// Why; kept with the delivery and in the audit trail.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// Which dead letters: ids, a filter, or all.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// Event ids.
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All dead letters.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Only count.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl Choice {
    fn selection(&self) -> anyhow::Result<Selection> {
        if self.ids.is_empty() && self.filter.is_empty() && !self.all {
            bail!("say which: ids, a filter such as --type 'lago.invoice.*', or --all");
        }
        let filter = self.filter.clone();
        Ok(Selection {
            sink: filter.sink,
            ids: self.ids.clone(),
            event_type: filter.event_type,
            subject: filter.subject,
            tenant: filter.tenant,
            state: self.ids.is_empty().then(|| "parked".to_owned()),
            since: filter.since,
            until: filter.until,
        })
    }
}

pub(crate) async fn run(verb: Verb, connection: &Connection, json: bool) -> anyhow::Result<()> {
    let admin = connection.open()?;
    match verb {
        Verb::List { filter, limit } => list(&admin, &filter, limit, json).await,
        Verb::Show { id } => events::show(&admin, &id, json).await,
        Verb::Replay { choice, rate } => {
            let select = choice.selection()?;
            act(&admin, &choice, "replay", json, |dry_run| ReplayRequest {
                select: select.clone(),
                dry_run,
                rate_per_second: rate,
            })
            .await
        }
        Verb::Drop { choice, reason } => {
            let select = choice.selection()?;
            act(&admin, &choice, "drop", json, |dry_run| DropRequest {
                select: select.clone(),
                dry_run,
                reason: reason.clone(),
            })
            .await
        }
    }
}

async fn list(admin: &Admin, filter: &Filter, limit: usize, json: bool) -> anyhow::Result<()> {
    let mut deliveries = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = filter.query();
        query.push(("state", "parked".to_owned()));
        query.push(("limit", limit.saturating_sub(deliveries.len()).clamp(1, 500).to_string()));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: DeliveryPage = admin.get("/deliveries", &query).await?;
        deliveries.extend(page.deliveries);
        cursor = page.next_cursor;
        if cursor.is_none() || deliveries.len() >= limit {
            break;
        }
    }
    if json {
        return output::json(&deliveries);
    }
    if deliveries.is_empty() {
        say!("no dead letters");
        return Ok(());
    }
    let mut table = output::table(&["received", "sink", "type", "subject", "retries used", "reason", "id"]);
    for entry in &deliveries {
        table.add_row(vec![
            entry.received_at.to_string(),
            safe(&entry.sink),
            safe(&entry.event_type),
            safe(&entry.subject),
            entry.delivery.attempts.to_string(),
            safe(entry.delivery.reason.as_deref().unwrap_or("–")),
            entry.event_id.clone(),
        ]);
    }
    say!("{table}");
    if cursor.is_some() {
        say!("there are more: --limit {}", limit * 2);
    }
    Ok(())
}

/// Counts, asks where a filter is given, and does it.
async fn act<R: serde::Serialize>(
    admin: &Admin,
    choice: &Choice,
    verb: &str,
    json: bool,
    request: impl Fn(bool) -> R,
) -> anyhow::Result<()> {
    let path = format!("/deliveries/{verb}");
    if choice.ids.is_empty() && !choice.dry_run && !choice.yes {
        let counted: ActionResult = admin.post(&path, &request(true)).await?;
        if counted.matched == 0 {
            return report(&counted, verb, json);
        }
        if !output::confirmed(&format!("{verb} {} dead letters of {}?", counted.matched, counted.sink)) {
            bail!("{} dead letters match; say --yes to {verb} them", counted.matched);
        }
    }
    let bar = output::bar(0, "{spinner} {msg} {elapsed}");
    bar.set_message(format!("{verb} …"));
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let result: ActionResult = admin.post(&path, &request(choice.dry_run)).await?;
    bar.finish_and_clear();
    report(&result, verb, json)
}

/// Prints what an action did, or would do.
pub(crate) fn report(result: &ActionResult, verb: &str, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(result);
    }
    let done = if result.dry_run { "none changed (dry run)".to_owned() } else { format!("{} changed", result.changed) };
    say!("{verb} at {}: {} matched, {done}", result.sink, result.matched);
    if result.unchanged > 0 {
        say!("{} were so already", result.unchanged);
    }
    if result.unavailable > 0 {
        say!("{} are not there: not stored any more, never were, or left out by the filter", result.unavailable);
    }
    Ok(())
}
