//! The shapes of the admin API's answers and requests.

use std::collections::BTreeMap;

use kit::clock::Timestamp;
use kit_journal::engine::{Account, Attempt, AuditRecord, ExceptionState, Found, FoundDelivery, SinkRow};
use kit_journal::{DeliveryState, Seq};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::dispatcher::SinkStatus;

/// Why a request was not served.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A sentence that names what is wrong.
    pub error: String,
}

/// An event without its body.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Event id, a UUID.
    pub id: String,
    /// Position in the journal.
    pub seq: Seq,
    /// When it was received.
    #[schema(value_type = String, format = DateTime)]
    pub received_at: Timestamp,
    /// CloudEvents type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// CloudEvents source.
    pub source: String,
    /// CloudEvents subject.
    pub subject: String,
    /// Tenant, where one is known.
    pub tenant: Option<String>,
    /// The sender's deduplication key.
    pub key: String,
    /// Second name of the type.
    pub alias: Option<String>,
    /// The key was known with another body.
    pub conflict: bool,
    /// Body length in bytes.
    pub body_bytes: u64,
    /// Its delivery at each sink, by name.
    pub deliveries: BTreeMap<String, DeliveryView>,
}

/// The state of one event at one sink.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeliveryView {
    /// `pending`, `retrying`, `delivered`, `parked`, `dropped` or `filtered`.
    #[schema(value_type = String)]
    pub state: DeliveryState,
    /// Attempts that used up the retry schedule.
    pub attempts: u32,
    /// When it is tried next.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_at: Option<Timestamp>,
    /// Why it is in this state.
    pub reason: Option<String>,
    /// An operator asked for it again.
    pub replay: bool,
}

/// One page of events, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// What matched.
    pub events: Vec<EventView>,
    /// Give this as `cursor` to go on; absent when everything has been looked at. A page may be
    /// short, or empty, and still have one: a request looks at a bounded number of records.
    pub next_cursor: Option<String>,
    /// Records looked at for this page.
    pub examined: u64,
}

/// One event in full.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventDetail {
    /// The event.
    #[serde(flatten)]
    pub event: EventView,
    /// The body as text where it is UTF-8.
    pub body: Option<String>,
    /// The body in Base64 where it is not.
    pub body_base64: Option<String>,
    /// Every recorded attempt, oldest first.
    pub attempts: Vec<AttemptView>,
}

/// One attempt to deliver.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// The sink.
    pub sink: String,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub latency_ms: u32,
    /// HTTP status where there was an answer.
    pub status: Option<u16>,
    /// `delivered`, or why not.
    pub outcome: String,
    /// The failure in a sentence.
    pub error: Option<String>,
    /// First bytes of the response.
    pub response: Option<String>,
}

/// One page of deliveries, newest event first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeliveryPage {
    /// One entry for each event and sink that matched.
    pub deliveries: Vec<DeliveryEntry>,
    /// As [`EventPage::next_cursor`].
    pub next_cursor: Option<String>,
    /// Records looked at for this page.
    pub examined: u64,
}

/// One delivery.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeliveryEntry {
    /// The sink.
    pub sink: String,
    /// Event id.
    pub event_id: String,
    /// Position in the journal.
    pub seq: Seq,
    /// When the event was received.
    #[schema(value_type = String, format = DateTime)]
    pub received_at: Timestamp,
    /// CloudEvents type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// CloudEvents subject.
    pub subject: String,
    /// Tenant, where one is known.
    pub tenant: Option<String>,
    /// The state.
    #[serde(flatten)]
    pub delivery: DeliveryView,
}

/// Which deliveries an action is about. Ids, or a filter; at least one must be given.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// The sink; may be left out where there is only one.
    pub sink: Option<String>,
    /// Event ids, at most 1000.
    pub ids: Vec<String>,
    /// Type glob, for example `lago.invoice.*`.
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    /// Exact subject.
    pub subject: Option<String>,
    /// Exact tenant.
    pub tenant: Option<String>,
    /// `pending`, `retrying`, `delivered`, `parked`, `dropped` or `filtered`.
    pub state: Option<String>,
    /// Received at or after (RFC 3339).
    pub since: Option<String>,
    /// Received before (RFC 3339).
    pub until: Option<String>,
}

/// Deliver again.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayRequest {
    /// Which; a filter without `state` means dead letters only.
    pub select: Selection,
    /// Only count.
    pub dry_run: bool,
    /// Deliveries per second at most; 0 means as fast as the sink takes them.
    pub rate_per_second: f64,
}

/// Give up for good.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DropRequest {
    /// Which; a filter without `state` means dead letters only.
    pub select: Selection,
    /// Only count.
    pub dry_run: bool,
    /// Why; kept with the delivery and in the audit trail.
    pub reason: String,
}

/// Forget a sink.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ForgetRequest {
    /// Only count.
    pub dry_run: bool,
    /// Why; kept in the audit trail.
    pub reason: String,
}

/// What forgetting a sink gave up, or would.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ForgetResult {
    /// The sink.
    pub sink: String,
    /// Deliveries that were still to be made, and count as dropped now.
    pub pending: u64,
    /// Dead letters, which count as dropped now.
    pub parked: u64,
    /// The sink's account at its end, or as it would be: accepted = delivered + dropped + filtered.
    pub account: SinkAccount,
    /// Nothing was changed because the request said so.
    pub dry_run: bool,
}

/// What became of all events that a sink was responsible for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SinkAccount {
    /// Events it was responsible for.
    pub accepted: u64,
    /// Delivered.
    pub delivered: u64,
    /// Dropped by a person or by a route, with what is given up at the end.
    pub dropped: u64,
    /// Not wanted by the sink's rules.
    pub filtered: u64,
}

impl From<Account> for SinkAccount {
    fn from(account: Account) -> Self {
        let Account { accepted, delivered, dropped, filtered } = account;
        Self { accepted, delivered, dropped, filtered }
    }
}

/// What an action did, or would do.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ActionResult {
    /// The sink.
    pub sink: String,
    /// Deliveries that matched.
    pub matched: u64,
    /// Deliveries changed; 0 in a dry run.
    pub changed: u64,
    /// Deliveries that were already as asked.
    pub unchanged: u64,
    /// Events whose body is gone or that do not exist.
    pub unavailable: u64,
    /// Nothing was changed because the request said so.
    pub dry_run: bool,
}

/// One sink: its counters and what it is doing.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SinkView {
    /// The sink's name.
    pub name: String,
    /// Events it is responsible for: delivered + pending + parked + dropped + filtered.
    pub accepted: u64,
    /// Delivered.
    pub delivered: u64,
    /// Still to be delivered, tried or not.
    pub pending: u64,
    /// Of those, how many have been tried, wait behind one that has, or are being replayed.
    pub retrying: u64,
    /// Dead letters.
    pub parked: u64,
    /// Dropped by an operator or by a route.
    pub dropped: u64,
    /// Not wanted by the sink's rules.
    pub filtered: u64,
    /// Deliveries are paused.
    pub paused: bool,
    /// What it is doing now; absent for a sink that is no longer configured.
    pub status: Option<SinkStatus>,
}

/// Totals.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct StatisticsView {
    /// Events ever accepted.
    pub accepted: u64,
    /// Bytes in use within the journal.
    pub journal_bytes: u64,
    /// Position of the oldest event that is still stored.
    pub oldest_seq: Option<Seq>,
    /// When it was received.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub oldest_at: Option<Timestamp>,
    /// Every sink.
    pub sinks: Vec<SinkView>,
}

/// One page of the audit trail, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The records.
    pub records: Vec<AuditView>,
    /// Give this as `cursor` to go on.
    pub next_cursor: Option<String>,
}

/// One record of the audit trail.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Address the request came from.
    pub actor: String,
    /// What was asked.
    pub action: String,
    /// The request and its result.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
}

impl From<AuditRecord> for AuditView {
    fn from(record: AuditRecord) -> Self {
        Self { at: record.at, actor: record.actor, action: record.action, detail: record.detail }
    }
}

impl From<FoundDelivery> for DeliveryView {
    fn from(found: FoundDelivery) -> Self {
        let FoundDelivery { state, row } = found;
        Self {
            state,
            attempts: row.as_ref().map_or(0, |row| row.attempts),
            next_at: row.as_ref().and_then(|row| row.next_at),
            replay: row.as_ref().is_some_and(|row| row.state == ExceptionState::Replaying),
            reason: row.map(|row| row.reason).filter(|reason| !reason.is_empty()),
        }
    }
}

impl From<Found> for EventView {
    fn from(found: Found) -> Self {
        let head = found.event.head;
        Self {
            id: head.id.to_string(),
            seq: found.event.seq,
            received_at: found.event.at,
            event_type: head.event_type,
            source: head.source,
            subject: head.subject,
            tenant: head.tenant,
            key: head.key,
            alias: head.alias,
            conflict: head.conflict,
            body_bytes: found.body_bytes,
            deliveries: found.deliveries.into_iter().map(|(name, found)| (name, found.into())).collect(),
        }
    }
}

impl From<(String, Attempt)> for AttemptView {
    fn from((sink, attempt): (String, Attempt)) -> Self {
        Self {
            sink,
            at: attempt.at,
            latency_ms: attempt.ms,
            status: attempt.status,
            outcome: attempt.outcome,
            error: attempt.error,
            response: attempt.response,
        }
    }
}

impl SinkView {
    pub(super) fn new(row: SinkRow, last_seq: Seq, status: Option<SinkStatus>) -> Self {
        Self {
            accepted: row.accepted(last_seq),
            pending: row.pending(last_seq),
            name: row.name,
            delivered: row.delivered,
            retrying: row.open,
            parked: row.parked,
            dropped: row.dropped,
            filtered: row.filtered,
            paused: row.paused,
            status,
        }
    }
}
