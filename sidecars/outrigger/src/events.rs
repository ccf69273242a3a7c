//! `events`: list, show, tail.

use std::io::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use kit_delivery::api::{EventDetail, EventPage, EventView};
use kit_journal::Seq;

use crate::admin::{Admin, Connection, Filter};
use crate::interrupt::Interrupt;
use crate::output::{self, safe, say};

/// Between two looks of `tail`.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// Events in one answer at most.
pub(crate) const LARGEST_PAGE: usize = 500;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Newest events first.
    #[command(after_help = "Example: outrigger events list --type 'lago.invoice.*' --state parked")]
    List(List),
    /// One event with its body and every attempt.
    #[command(after_help = "Example: outrigger events show 1b089f7a-6f40-87ce-9836-21907b3c75f7")]
    Show {
        /// Event id.
        id: String,
    },
    /// Print events as they arrive, until Ctrl-C.
    #[command(after_help = "Example: outrigger events tail --type 'lago.wallet.*' --json")]
    Tail(Filter),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    filter: Filter,
    /// pending, retrying, delivered, parked, dropped or filtered.
    #[arg(long)]
    state: Option<String>,
    /// Exactly the event with this key of its source – X-Lago-Unique-Key, which is the webhook's id in Lago – however old.
    #[arg(long, requires = "source", value_name = "KEY")]
    key: Option<String>,
    /// Source of the key: lago/default, or lago/NAME for a named organisation.
    #[arg(long, requires = "key")]
    source: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 50, value_parser = output::at_least_one())]
    limit: usize,
}

pub(crate) async fn run(verb: Verb, connection: &Connection, json: bool) -> anyhow::Result<()> {
    let admin = connection.open()?;
    match verb {
        Verb::List(list) => self::list(&admin, &list, json).await,
        Verb::Show { id } => show(&admin, &id, json).await,
        Verb::Tail(filter) => tail(&admin, &filter, json).await,
    }
}

async fn list(admin: &Admin, list: &List, json: bool) -> anyhow::Result<()> {
    let mut query = list.filter.query();
    query.extend(list.state.clone().map(|state| ("state", state)));
    query.extend(list.source.clone().map(|source| ("source", source)));
    query.extend(list.key.clone().map(|key| ("key", key)));
    let mut events: Vec<EventView> = Vec::new();
    let mut more = walk(admin, &query, list.limit, async |page| {
        events.extend(page.events);
        Ok(events.len() < list.limit)
    })
    .await?;
    more |= events.len() > list.limit;
    events.truncate(list.limit);
    if json {
        if more {
            // Whoever looks for one of them is not to take it for missing.
            let _ = writeln!(std::io::stderr(), "there are more: --limit {}", list.limit * 2);
        }
        return output::json(&events);
    }
    let mut table = output::table(&["received", "type", "subject", "tenant", "state", "id"]);
    for event in &events {
        table.add_row(vec![
            event.received_at.to_string(),
            safe(&event.event_type),
            safe(&event.subject),
            safe(event.tenant.as_deref().unwrap_or("–")),
            states(event),
            event.id.clone(),
        ]);
    }
    say!("{table}");
    if more {
        say!("there are more: --limit {}", list.limit * 2);
    }
    Ok(())
}

/// Gives what matches to `each`, newest first, a page of about so many at a time, for as long as that wants another one.
/// Says whether there are more.
pub(crate) async fn walk(
    admin: &Admin,
    query: &[(&'static str, String)],
    page_size: usize,
    mut each: impl AsyncFnMut(EventPage) -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let mut cursor: Option<String> = None;
    loop {
        let mut query = query.to_vec();
        query.push(("limit", page_size.clamp(1, LARGEST_PAGE).to_string()));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: EventPage = admin.get("/events", &query).await?;
        cursor = page.next_cursor.clone();
        let go_on = each(page).await?;
        if cursor.is_none() || !go_on {
            return Ok(cursor.is_some());
        }
    }
}

/// `delivered`, or where there are several sinks `gateway: delivered, …`.
pub(crate) fn states(event: &EventView) -> String {
    match event.deliveries.len() {
        1 => event.deliveries.values().map(|d| d.state.as_str().to_owned()).collect(),
        _ => {
            let states: Vec<String> =
                event.deliveries.iter().map(|(sink, d)| format!("{sink}: {}", d.state.as_str())).collect();
            states.join(", ")
        }
    }
}

pub(crate) async fn show(admin: &Admin, id: &str, json: bool) -> anyhow::Result<()> {
    let detail = detail(admin, id).await?;
    if json {
        return output::json(&detail);
    }
    describe(&detail)
}

/// One event in full.
pub(crate) async fn detail(admin: &Admin, id: &str) -> anyhow::Result<EventDetail> {
    admin.get(&format!("/events/{id}"), &[]).await
}

/// Prints one event in full, for a person.
pub(crate) fn describe(detail: &EventDetail) -> anyhow::Result<()> {
    let event = &detail.event;
    say!("{}  {}", event.id, safe(&event.event_type));
    let lines = [
        ("received", event.received_at.to_string()),
        ("source", safe(&event.source)),
        ("subject", safe(&event.subject)),
        ("tenant", safe(event.tenant.as_deref().unwrap_or("–"))),
        ("key", safe(&event.key)),
        ("position", event.seq.to_string()),
    ];
    for (name, value) in lines {
        say!("  {name:<10} {value}");
    }
    if event.conflict {
        say!("  conflict   its key was known with another body");
    }
    for (sink, delivery) in &event.deliveries {
        let reason = delivery.reason.as_deref().map(|reason| format!(" – {}", safe(reason))).unwrap_or_default();
        let next = delivery.next_at.map(|at| format!(", next attempt {at}")).unwrap_or_default();
        say!("  {sink:<10} {}{next}{reason}", delivery.state.as_str());
    }
    let mut table = output::table(&["attempt", "sink", "ms", "status", "outcome", "error", "response"]);
    for attempt in &detail.attempts {
        table.add_row(vec![
            attempt.at.to_string(),
            attempt.sink.clone(),
            attempt.latency_ms.to_string(),
            attempt.status.map_or("–".to_owned(), |status| status.to_string()),
            attempt.outcome.clone(),
            safe(attempt.error.as_deref().unwrap_or("")),
            safe(attempt.response.as_deref().unwrap_or("")),
        ]);
    }
    say!("{table}");
    match (&detail.body, &detail.body_base64) {
        (Some(body), _) => say!("{}", safe(body)),
        (None, Some(encoded)) => say!("(Base64) {encoded}"),
        (None, None) => {}
    }
    Ok(())
}

async fn tail(admin: &Admin, filter: &Filter, json: bool) -> anyhow::Result<()> {
    follow(admin, filter, async |events| {
        for event in &events {
            if json {
                output::json_line(event)?;
            } else {
                say!("{}  {:<40} {}  {}", event.received_at, safe(&event.event_type), safe(&event.subject), event.id);
            }
        }
        Ok(())
    })
    .await
}

/// Gives what matches to `each` as it arrives, oldest first, until Ctrl-C.
pub(crate) async fn follow(
    admin: &Admin,
    filter: &Filter,
    each: impl AsyncFnMut(Vec<EventView>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut interrupt = Interrupt::listen()?;
    tokio::select! {
        ended = look_again_and_again(admin, filter, each) => ended,
        () = interrupt.wait() => Ok(()),
    }
}

async fn look_again_and_again(
    admin: &Admin,
    filter: &Filter,
    mut each: impl AsyncFnMut(Vec<EventView>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut seen = newest(admin).await?;
    loop {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        // Read first: whatever arrives during the walk is at most printed early, never left out. And
        // the next walk ends here even where the filter matches nothing.
        let end = newest(admin).await?;
        let mut events = newer(admin, filter, seen).await?;
        events.reverse();
        seen = events.last().map_or(seen, |event| seen.max(event.seq)).max(end);
        each(events).await?;
    }
}

/// Position of the newest event; 0 where there is none.
async fn newest(admin: &Admin) -> anyhow::Result<Seq> {
    let page: EventPage = admin.get("/events", &[("limit", "1".to_owned())]).await?;
    Ok(page.events.first().map_or(0, |event| event.seq))
}

/// What matches and came after `seen`, newest first, over as many pages as a burst fills.
async fn newer(admin: &Admin, filter: &Filter, seen: Seq) -> anyhow::Result<Vec<EventView>> {
    let mut events: Vec<EventView> = Vec::new();
    walk(admin, &filter.query(), LARGEST_PAGE, async |page| {
        let reached = page.events.last().is_some_and(|event| event.seq <= seen);
        events.extend(page.events.into_iter().filter(|event| event.seq > seen));
        // The cursor is the position a page ended at. Without looking at it, a filter that matches
        // little would walk through the whole journal every time.
        let behind = page.next_cursor.is_some_and(|at| at.parse::<Seq>().is_ok_and(|at| at <= seen));
        Ok(!(reached || behind))
    })
    .await?;
    Ok(events)
}
