//! Looking at usage events: as they come, one of them, those that are parked.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _};
use kit_delivery::api::EventView;
use serde::{Deserialize, Serialize};

use super::{SOURCES, Which, delivery, of_subscription, reason_word, sink, state, subscription, with_transaction_id};
use crate::admin::{Admin, Refusal};
use crate::events;
use crate::output::{self, safe, say};

/// Events whose bodies are asked for at the same time.
const AT_ONCE: usize = 8;
/// Reasons that are told apart; their words come from the tracker, of whom there are about ten.
const REASONS: usize = 100;

#[derive(Args, Debug)]
pub(crate) struct Tail {
    /// Only this subscription's (its external id).
    #[arg(long, value_name = "ID")]
    subscription: Option<String>,
    /// Only this billable metric's.
    #[arg(long)]
    code: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Parked {
    #[command(flatten)]
    which: Which,
    /// How many are listed at most; all are counted.
    #[arg(long, default_value_t = 50, value_parser = output::at_least_one())]
    limit: usize,
}

/// A usage event in a list.
#[derive(Debug, Serialize)]
struct Line {
    at: String,
    transaction_id: String,
    subscription: String,
    code: String,
    state: String,
    reason: Option<String>,
    attempts: u32,
    id: String,
}

impl Line {
    fn new(event: &EventView, code: String) -> Self {
        let delivery = delivery(event);
        Self {
            at: event.received_at.to_string(),
            transaction_id: event.key.clone(),
            subscription: subscription(event).to_owned(),
            code,
            state: state(event).to_owned(),
            reason: delivery.and_then(|delivery| delivery.reason.clone()),
            attempts: delivery.map_or(0, |delivery| delivery.attempts),
            id: event.id.clone(),
        }
    }
}

pub(crate) async fn tail(admin: &Admin, arguments: &Tail, json: bool) -> anyhow::Result<()> {
    let filter = of_subscription(arguments.subscription.as_deref());
    events::follow(admin, &filter, async |events| {
        // The code is in the body, which a listing leaves out.
        let usage: Vec<EventView> =
            events.iter().filter(|event| SOURCES.contains(&event.source.as_str())).cloned().collect();
        let codes: Vec<String> = bodies(admin, &usage).map_ok(|body| code(body.as_deref())).try_collect().await?;
        for (event, code) in usage.iter().zip(codes) {
            if arguments.code.as_ref().is_some_and(|wanted| *wanted != code) {
                continue;
            }
            let line = Line::new(event, code);
            if json {
                output::json_line(&line)?;
                continue;
            }
            let Line { at, transaction_id, subscription, code, state, .. } = &line;
            let [transaction_id, subscription, code] = [transaction_id, subscription, code].map(|text| safe(text));
            say!("{at}  {transaction_id:<36}  {subscription:<24}  {code:<16}  {state}");
        }
        Ok(())
    })
    .await
}

pub(crate) async fn show(admin: &Admin, id: &str, json: bool) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for event in with_transaction_id(admin, id).await? {
        found.push(events::detail(admin, &event.id).await?);
    }
    if found.is_empty() && id.parse::<uuid::Uuid>().is_ok() {
        found.push(events::detail(admin, id).await?);
    }
    if found.is_empty() {
        bail!("no event with the transaction id {:?}: it never came, or was delivered and removed", safe(id));
    }
    for detail in &mut found {
        let concerned = sink(&detail.event).0;
        detail.event.deliveries.retain(|name, _| name == concerned);
    }
    if json {
        return output::json(&found);
    }
    for (place, detail) in found.iter().enumerate() {
        if place > 0 {
            say!("");
        }
        events::describe(detail)?;
    }
    Ok(())
}

/// How many are parked for a reason.
#[derive(Debug, Default, Serialize)]
struct Count {
    events: u64,
    example: String,
}

pub(crate) async fn parked(admin: &Admin, arguments: &Parked, json: bool) -> anyhow::Result<()> {
    let Parked { which, limit } = arguments;
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    let mut newest: Vec<EventView> = Vec::new();
    events::walk(admin, &which.query(), events::LARGEST_PAGE, async |page| {
        for event in which.chosen(page.events) {
            let Some(delivery) = delivery(&event) else { continue };
            let word = reason_word(delivery);
            let word = if counts.len() < REASONS || counts.contains_key(word) { word } else { "others" };
            let count = counts.entry(word.to_owned()).or_default();
            count.events += 1;
            if count.events == 1 {
                count.example = delivery.reason.clone().unwrap_or_default();
            }
            if newest.len() < *limit {
                newest.push(event);
            }
        }
        Ok(true)
    })
    .await?;
    let codes: Vec<String> = bodies(admin, &newest).map_ok(|body| code(body.as_deref())).try_collect().await?;
    let lines: Vec<Line> = newest.iter().zip(codes).map(|(event, code)| Line::new(event, code)).collect();
    if json {
        return output::json(&serde_json::json!({ "reasons": counts, "events": lines }));
    }
    let total: u64 = counts.values().map(|count| count.events).sum();
    if total == 0 {
        say!("nothing is parked");
        return Ok(());
    }
    let mut table = output::table(&["reason", "events", "for example"]);
    for (word, count) in &counts {
        table.add_row(vec![safe(word), count.events.to_string(), safe(&count.example)]);
    }
    say!("{table}\n");
    let mut table = output::table(&["received", "transaction id", "subscription", "code", "retries used", "reason"]);
    for line in &lines {
        table.add_row(vec![
            line.at.clone(),
            safe(&line.transaction_id),
            safe(&line.subscription),
            safe(&line.code),
            line.attempts.to_string(),
            safe(line.reason.as_deref().unwrap_or("–")),
        ]);
    }
    say!("{table}");
    if total > lines.len() as u64 {
        say!("{} of {total} are listed: --limit {}", lines.len(), limit * 2);
    }
    Ok(())
}

/// The bodies of these, in their order, some asked for at a time; nothing for one that has been removed meanwhile.
pub(super) fn bodies<'a>(
    admin: &'a Admin,
    events: &'a [EventView],
) -> impl futures_util::Stream<Item = anyhow::Result<Option<Vec<u8>>>> + Unpin + use<'a> {
    let ask = move |event: &'a EventView| async move {
        // With its place it is found at once, however many there are.
        let place = [("seq", event.seq.to_string())];
        match admin.bytes(&format!("/events/{}/body", event.id), &place).await {
            Ok(body) => Ok(Some(body)),
            Err(error) if error.downcast_ref().is_some_and(Refusal::is_not_found) => Ok(None),
            Err(error) => Err(error),
        }
    };
    Box::pin(futures_util::stream::iter(events).map(ask).buffered(AT_ONCE))
}

/// Code of the billable metric, from the body.
fn code(body: Option<&[u8]>) -> String {
    #[derive(Deserialize)]
    struct Body {
        code: String,
    }
    let body = body.and_then(|body| serde_json::from_slice::<Body>(body).ok());
    body.map_or_else(|| "–".to_owned(), |body| body.code)
}
