//! `usage`: what the usage tracker holds, what it could not send, what Lago has of it, and usage from files.
//!
//! `look` tail, show, parked · `redrive` parked events once more · `reconcile` the tracker's ledger beside Lago's ·
//! `accept` what Lago never counts ·
//! `export` what Lago has been sent · `import` events from a file, by way of the tracker's intake.

mod accept;
mod export;
mod import;
mod look;
mod reconcile;
mod redrive;

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use kit_delivery::api::{DeliveryView, EventView};
use kit_journal::DeliveryState;
use serde::Deserialize;

use crate::admin::{Admin, Connection, Filter};
use crate::events;

/// Sources of usage, as the tracker keeps it: what names a subscription, what names only a customer, and sums.
const SOURCES: [&str; 3] = ["usage", "usage/customer", "usage/rollup"];
/// Types of usage, and of what the tracker tells about it.
const TYPES: &str = "usage.*";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Print usage events as they come in, until Ctrl-C.
    #[command(after_help = "Example: outrigger usage tail --subscription acme-pro --code api_calls")]
    Tail(look::Tail),
    /// One usage event with its body, its state and every attempt.
    #[command(after_help = "Example: outrigger usage show 2026-11-21-node7-000123")]
    Show {
        /// Transaction id, or event id.
        id: String,
    },
    /// Events that were not sent or not taken: how many for which reason, and the newest of them.
    #[command(after_help = "Example: outrigger usage parked --subscription acme-pro\n\
                            Example: outrigger usage parked --reason no_subscription --json")]
    Parked(look::Parked),
    /// Send parked events once more.
    #[command(after_help = "Example: outrigger usage redrive --reason no_subscription --dry-run\n\
                            Example: outrigger usage redrive --all --yes\n\
                            Example: outrigger usage redrive 2026-11-21-node7-000123")]
    Redrive(redrive::Arguments),
    /// Compare what was sent with what Lago has counted; ends with 1 where Lago misses something.
    #[command(
        after_help = "Ends with 1 when Lago misses events of a row, or when the last comparison failed, so that a \
                            scheduled job notices.\n\n\
                            Example: outrigger usage reconcile --now --subscription acme-pro"
    )]
    Reconcile(reconcile::Arguments),
    /// Accept that Lago never counts what it misses of a period that has ended: late usage that was billed by hand, say.
    #[command(
        after_help = "What is missing of the subscription by the last comparison is told no more, unless more of it is.\n\n\
                            Example: outrigger usage accept acme-pro --code api_calls --reason 'billed by hand, invoice 123'"
    )]
    Accept(accept::Arguments),
    /// Print what Lago has been sent as JSON lines, for a Lago that went back to a dump (docs/upgrade.md).
    #[command(after_help = "Example: outrigger usage export --since 2026-11-21T03:00:00Z > sent.jsonl")]
    Export(export::Arguments),
    /// Report usage from a file, CSV or JSON lines; can be interrupted and goes on.
    #[command(after_help = import::HELP)]
    Import(import::Arguments),
}

pub(crate) async fn run(verb: Verb, connection: &Connection, json: bool) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Tail(arguments) => look::tail(&tracker(connection).await?, &arguments, json).await?,
        Verb::Show { id } => look::show(&tracker(connection).await?, &id, json).await?,
        Verb::Parked(arguments) => look::parked(&tracker(connection).await?, &arguments, json).await?,
        Verb::Redrive(arguments) => redrive::run(&tracker(connection).await?, &arguments, json).await?,
        Verb::Reconcile(arguments) => return reconcile::run(&tracker(connection).await?, &arguments, json).await,
        Verb::Accept(arguments) => accept::run(&tracker(connection).await?, &arguments, json).await?,
        Verb::Export(arguments) => export::run(&tracker(connection).await?, &arguments).await?,
        Verb::Import(arguments) => import::run(arguments, json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The usage tracker: of another daemon every answer would be that nothing is there.
async fn tracker(connection: &Connection) -> anyhow::Result<Admin> {
    #[derive(Deserialize)]
    struct Sink {
        name: String,
    }
    let admin = connection.open_tracker()?;
    let sinks: Vec<Sink> = admin.get("/sinks", &[]).await?;
    if !sinks.iter().any(|sink| sink.name == "lago") {
        bail!(
            "{} is not a usage tracker: name it with --admin and --token-file, or in OUTRIGGER_TRACKER and OUTRIGGER_TRACKER_TOKEN_FILE",
            admin.address()
        );
    }
    Ok(admin)
}

/// Which parked events.
#[derive(Args, Clone, Debug, Default)]
struct Which {
    /// Only this subscription's (its external id).
    #[arg(long, value_name = "ID")]
    subscription: Option<String>,
    /// Only those whose reason begins with this word, for example no_subscription.
    #[arg(long, value_name = "WORD")]
    reason: Option<String>,
}

impl Which {
    fn is_everything(&self) -> bool {
        self.subscription.is_none() && self.reason.is_none()
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = of_subscription(self.subscription.as_deref()).query();
        query.push(("state", "parked".to_owned()));
        query
    }

    /// The parked ones of a page that are meant.
    fn chosen(&self, events: Vec<EventView>) -> impl Iterator<Item = EventView> {
        let is_chosen = |event: &EventView| {
            let parked = delivery(event).filter(|delivery| delivery.state == DeliveryState::Parked);
            parked.is_some_and(|delivery| self.reason.as_deref().is_none_or(|wanted| wanted == reason_word(delivery)))
        };
        events.into_iter().filter(move |event| is_chosen(event))
    }
}

/// The filter for usage, of one subscription or of all.
fn of_subscription(subscription: Option<&str>) -> Filter {
    Filter {
        event_type: Some(TYPES.to_owned()),
        subject: subscription.map(|id| format!("subscription/{id}")),
        ..Filter::default()
    }
}

/// Whose usage an event is: a subscription's id, or `customer/…` where only that is known.
fn subscription(event: &EventView) -> &str {
    event.subject.strip_prefix("subscription/").unwrap_or(&event.subject)
}

/// The sink that deals with an event, and what it is called when that is done. To the others it is nothing.
fn sink(event: &EventView) -> (&'static str, &'static str) {
    match event.event_type.as_str() {
        "usage.rollup" => ("rollup", "passed on"),
        "usage.unresolved" => ("resolve", "passed on"),
        _ => ("lago", "delivered"),
    }
}

/// How far an event has come.
fn delivery(event: &EventView) -> Option<&DeliveryView> {
    event.deliveries.get(sink(event).0)
}

/// The same in a word.
fn state(event: &EventView) -> &'static str {
    match delivery(event).map(|delivery| delivery.state) {
        Some(DeliveryState::Delivered) => sink(event).1,
        Some(state) => state.as_str(),
        None => "–",
    }
}

/// The first word of a reason: the check that was not passed, or the beginning of a sentence.
fn reason_word(delivery: &DeliveryView) -> &str {
    let reason = delivery.reason.as_deref().unwrap_or_default();
    reason.split([':', ' ']).next().filter(|word| !word.is_empty()).unwrap_or("unknown")
}

/// The events with a transaction id, newest first: several where several subscriptions use it.
async fn with_transaction_id(admin: &Admin, id: &str) -> anyhow::Result<Vec<EventView>> {
    let mut events = Vec::new();
    for source in SOURCES {
        let query = [("source", source.to_owned()), ("key", id.to_owned())];
        events::walk(admin, &query, events::LARGEST_PAGE, async |page| {
            events.extend(page.events);
            Ok(true)
        })
        .await?;
    }
    events.sort_unstable_by_key(|event| std::cmp::Reverse(event.seq));
    Ok(events)
}
