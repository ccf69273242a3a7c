//! How far an event has come, for whoever reported it: one answer, also where the event that names the customer and the
//! one that was made of it for Lago are two in the journal.

use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use kit_journal::engine::Found;
use kit_journal::{DeliveryState, JournalError, Seq, StoredEvent};
use kit_lago::usage::answer::EventAnswer;
use serde::Serialize;

use crate::admit::{CUSTOMERS, ROLLUP, SOURCE, Stored, UNRESOLVED};
use crate::http::{Intake, holder};
use crate::producers::Producer;
use crate::refusal::{Refusal, json};
use crate::resolve::RESOLVE;
use crate::rollup::{self, Place};
use crate::sender::SINK;

/// Events with one transaction id that are looked at to find one that the producer may see.
const SHOWN_AT_MOST: usize = 200;

#[derive(Serialize)]
struct Shown<'a> {
    event: ShownEvent<'a>,
}

#[derive(Serialize)]
struct ShownEvent<'a> {
    #[serde(flatten)]
    event: EventAnswer<'a>,
    /// `queued`, `sent`, `confirmed`, `parked` or `dropped`.
    status: &'static str,
    reason: Option<&'a str>,
}

/// An event and what became of it.
struct Entry {
    event: StoredEvent,
    /// Of the sum that holds it, where it was rolled up.
    state: Option<DeliveryState>,
    reason: String,
}

/// The answer to `GET /api/v1/events/{transaction_id}`.
pub(crate) async fn find(intake: &Intake, headers: &HeaderMap, transaction_id: &str) -> Result<Response, Refusal> {
    let producer = holder(intake, headers)?;
    let unreadable = |error: JournalError| {
        tracing::debug!(error = %error, "usage event not shown: {error}");
        Refusal::Journal
    };
    let mut known: Vec<Seq> = Vec::new();
    for source in [SOURCE, CUSTOMERS] {
        known.extend(
            intake.journal.known(source, transaction_id).await.map_err(unreadable)?.into_iter().map(|(_, seq)| seq),
        );
    }
    known.sort_unstable();
    let (mut unresolved, mut other): (Option<Entry>, Option<Entry>) = (None, None);
    for seq in known.into_iter().take(SHOWN_AT_MOST) {
        let catalogue = intake.known.current().catalogue;
        let read = intake.journal.browse(move |reader| {
            let Some(event) = reader.event(seq)? else { return Ok(None) };
            let place = match event.head.event_type.as_str() {
                ROLLUP => rollup::find(reader, &event, catalogue.as_deref())?,
                _ => Place::At(seq),
            };
            let at = if let Place::At(seq) = place { seq } else { event.seq };
            let found = reader.found(at)?;
            Ok(found.map(|found| Entry::new(event, &found, place)))
        });
        let Some(entry) = read.await.map_err(unreadable)? else { continue };
        if entry.event.head.key != transaction_id || !may_see(intake, producer, &entry.event) {
            continue;
        }
        match &unresolved {
            _ if entry.is_unresolved() => {
                unresolved.get_or_insert(entry);
            }
            // What was made of it says how far it has come.
            Some(unresolved) if unresolved.event.head.tenant != entry.event.head.tenant => {
                other.get_or_insert(entry);
            }
            _ => return entry.show(),
        }
    }
    match (unresolved, other) {
        // It was reported with its subscription too, and without its customer.
        (Some(unresolved), Some(other)) if unresolved.state == Some(DeliveryState::Delivered) => other.show(),
        (Some(entry), _) => entry.show(),
        (None, _) => Err(Refusal::NotFound),
    }
}

/// Whether a producer may report, and so may see, an event.
fn may_see(intake: &Intake, producer: &Producer, event: &StoredEvent) -> bool {
    if event.head.event_type == UNRESOLVED {
        return producer.may_name(event.head.tenant.as_deref());
    }
    let seen = intake.known.current();
    let is_of = |subscription: &str, customer: &str| {
        let at = Stored::read(&event.body).and_then(|stored| stored.time()).unwrap_or(event.at);
        seen.catalogue.as_ref().is_some_and(|catalogue| catalogue.is_of(subscription, customer, at))
    };
    producer.may_report(event.head.scope.as_deref(), is_of)
}

impl Entry {
    fn new(event: StoredEvent, found: &Found, place: Place) -> Self {
        let sink = if event.head.event_type == UNRESOLVED { RESOLVE } else { SINK };
        let delivery = found.deliveries.get(sink);
        let row = delivery.and_then(|delivery| delivery.row.as_ref());
        let reason = row.map(|row| row.reason.clone()).unwrap_or_default();
        let state = match place {
            Place::At(_) => delivery.map(|delivery| delivery.state),
            Place::Waiting => Some(DeliveryState::Pending),
            Place::Somewhere => Some(DeliveryState::Retrying),
        };
        Self { event, state, reason }
    }

    fn is_unresolved(&self) -> bool {
        self.event.head.event_type == UNRESOLVED
    }

    fn show(&self) -> Result<Response, Refusal> {
        let status = match self.state {
            Some(DeliveryState::Parked) => "parked",
            Some(DeliveryState::Dropped) => "dropped",
            Some(DeliveryState::Delivered) if !self.is_unresolved() => "confirmed",
            Some(DeliveryState::Retrying) if !self.is_unresolved() => "sent",
            _ => "queued",
        };
        let stored = Stored::read(&self.event.body).ok_or(Refusal::Journal)?;
        let id = self.event.head.id.to_string();
        let event = ShownEvent {
            event: stored.answer(&id, Some(self.event.at)),
            status,
            reason: Some(self.reason.as_str()).filter(|reason| !reason.is_empty()),
        };
        let body = serde_json::to_string(&Shown { event }).map_err(|_| Refusal::Journal)?;
        Ok(json(StatusCode::OK, body))
    }
}
