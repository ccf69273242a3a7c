//! Parked events once more.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Args;
use kit_delivery::api::{ActionResult, EventView, ReplayRequest, Selection};
use kit_journal::DeliveryState;

use super::{Which, delivery, sink, with_transaction_id};
use crate::admin::Admin;
use crate::dead_letters;
use crate::events;
use crate::output;

/// Events in one request: a request names no more than a thousand.
const AT_ONCE: usize = 500;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Transaction ids, or event ids.
    #[arg(conflicts_with_all = ["subscription", "reason"])]
    ids: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// All that is parked.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Only count.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(admin: &Admin, arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    let Arguments { ids, which, all, dry_run, yes } = arguments;
    if ids.is_empty() && which.is_everything() && !all {
        bail!("say which: transaction ids, --subscription, --reason no_subscription, or --all");
    }
    let mut result = ActionResult { sink: "lago".to_owned(), dry_run: *dry_run, ..ActionResult::default() };
    if !ids.is_empty() {
        let parked = named(admin, ids, &mut result).await?;
        for events in parked.chunks(AT_ONCE) {
            send(admin, events, &mut result).await?;
        }
        return dead_letters::report(&result, "redrive", json);
    }
    let mut total = 0;
    events::walk(admin, &which.query(), AT_ONCE, async |page| {
        total += which.chosen(page.events).count() as u64;
        Ok(true)
    })
    .await?;
    if *dry_run || total == 0 {
        result.matched = total;
        return dead_letters::report(&result, "redrive", json);
    }
    if !yes && !output::confirmed(&format!("send {total} parked events again?")) {
        bail!("{total} parked events match; say --yes to send them again");
    }
    let bar = output::bar(total, "redrive {bar:40} {pos}/{len} {eta}");
    // Cursors are positions: what is sent again in between does not move them.
    events::walk(admin, &which.query(), AT_ONCE, async |page| {
        send(admin, &which.chosen(page.events).collect::<Vec<_>>(), &mut result).await?;
        bar.set_position(result.matched);
        Ok(true)
    })
    .await?;
    bar.finish_and_clear();
    dead_letters::report(&result, "redrive", json)
}

/// What these name, and is parked. The rest is counted.
async fn named(admin: &Admin, ids: &[String], result: &mut ActionResult) -> anyhow::Result<Vec<EventView>> {
    let mut parked = Vec::new();
    for id in ids {
        let mut found = with_transaction_id(admin, id).await?;
        if found.is_empty() && id.parse::<uuid::Uuid>().is_ok() {
            found.push(events::detail(admin, id).await?.event);
        }
        if found.is_empty() {
            result.unavailable += 1;
        }
        for event in found {
            if delivery(&event).is_some_and(|delivery| delivery.state == DeliveryState::Parked) {
                parked.push(event);
            } else {
                result.matched += 1;
                result.unchanged += 1;
            }
        }
    }
    Ok(parked)
}

/// Asks for these to be delivered again, each by the sink that deals with it, and adds up what became of it.
async fn send(admin: &Admin, events: &[EventView], result: &mut ActionResult) -> anyhow::Result<()> {
    let mut ids: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for event in events {
        ids.entry(sink(event).0).or_default().push(event.id.clone());
    }
    for (sink, ids) in ids {
        let select = Selection { sink: Some(sink.to_owned()), ids, ..Selection::default() };
        let request = ReplayRequest { select, dry_run: result.dry_run, rate_per_second: 0.0 };
        let done: ActionResult = admin.post("/deliveries/replay", &request).await?;
        result.matched += done.matched;
        result.changed += done.changed;
        result.unchanged += done.unchanged;
        result.unavailable += done.unavailable;
    }
    Ok(())
}
