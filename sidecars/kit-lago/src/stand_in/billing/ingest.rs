//! Taking events in, single and in batches: what is refused, what is stored, and what is answered,
//! each version by its own rules.
//!
//! Source: getlago/lago-api `app/services/events/create_service.rb`, `create_batch_service.rb` and
//! `app/models/event.rb` at v1.16.0, v1.39.0 and the head of 2026-08-21.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::answer::{Answer, INVALID_FORMAT, VALUE_ALREADY_EXIST, VALUE_IS_MANDATORY};
use super::event::{Incoming, Sent, is_blank};
use super::ledger::{Draft, Ledger};
use super::profile::Profile;
use super::timestamp::{self, Unusable};
use super::wire;

/// `LAGO_EVENTS_BATCH_MAX_LENGTH`, unless set.
const BATCH_LIMIT: usize = 100;

/// What a request is judged with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) profile: Profile,
    pub(super) now_micros: i64,
    /// The status of a batch that v1.16.0 stored in part.
    pub(super) torn_batch_status: u16,
}

/// Why an event is refused: attributes and their errors.
type Refusal = Vec<(&'static str, &'static str)>;

/// `POST /api/v1/events`.
pub(super) fn create(ledger: &mut Ledger, rules: Rules, sent: &Sent<'_>) -> Answer {
    let event = match sent {
        Sent::Events(events) => match events.first() {
            Some(event) => event,
            None => return Answer::missing_root_key("event"),
        },
        Sent::Nothing => return Answer::missing_root_key("event"),
        Sent::Unexpected => return Answer::bare(500),
    };
    let draft = match judge(ledger, rules, event) {
        Ok(Ok(draft)) => draft,
        Ok(Err(refusal)) => return Answer::invalid(details(&refusal)),
        Err(Crash) => return Answer::bare(500),
    };
    // The unique index speaks where no validation looked before.
    if is_duplicate(ledger, rules, &draft) {
        return Answer::invalid(details(&[("transaction_id", VALUE_ALREADY_EXIST)]));
    }
    let index = ledger.store(&draft, rules.now_micros);
    Answer::ok(wire::created_event(ledger, rules.profile, index))
}

/// `POST /api/v1/events/batch`.
pub(super) fn create_batch(ledger: &mut Ledger, rules: Rules, sent: &Sent<'_>) -> Answer {
    let events = match sent {
        Sent::Events(events) => events,
        Sent::Nothing => return Answer::invalid(json!({ "events": ["no_events"] })),
        Sent::Unexpected => return Answer::bare(500),
    };
    if events.len() > BATCH_LIMIT {
        return Answer::invalid(json!({ "events": ["too_many_events"] }));
    }
    let mut drafts = Vec::with_capacity(events.len());
    let mut refusals = Vec::new();
    for (index, event) in events.iter().enumerate() {
        match judge(ledger, rules, event) {
            Ok(Ok(draft)) => drafts.push(draft),
            Ok(Err(refusal)) => refusals.push((index, refusal)),
            Err(Crash) => return Answer::bare(500),
        }
    }
    if !refusals.is_empty() {
        return Answer::invalid(indexed_details(&refusals));
    }
    match rules.profile {
        Profile::V1_16 => store_one_by_one(ledger, rules, &drafts),
        Profile::V1_39 => store_in_bulk(ledger, rules, &drafts),
        Profile::ClickHouse => store_all(ledger, rules, &drafts),
    }
}

/// Something in Lago fails that nothing catches.
struct Crash;

/// Lago's validations of one event.
fn judge<'a>(ledger: &Ledger, rules: Rules, event: &'a Incoming<'a>) -> Result<Result<Draft<'a>, Refusal>, Crash> {
    // A timestamp that cannot be read ends the judgement: Ruby raises before anything is validated.
    let timestamp_micros = match timestamp::read(event.timestamp, rules.profile.timestamp_rule(), rules.now_micros) {
        Ok(micros) => micros,
        Err(Unusable::Format) => return Ok(Err(vec![("timestamp", INVALID_FORMAT)])),
        Err(Unusable::Crash) => return Err(Crash),
    };
    let transaction_id = event.transaction_id.as_deref();
    let mut refusal = Refusal::new();
    if is_blank(transaction_id) {
        refusal.push(("transaction_id", VALUE_IS_MANDATORY));
    }
    if is_blank(event.code.as_deref()) {
        refusal.push(("code", VALUE_IS_MANDATORY));
    }
    let draft = Draft {
        transaction_id: transaction_id.unwrap_or_default(),
        code: event.code.as_deref().unwrap_or_default(),
        incoming: event,
        timestamp_micros,
    };
    // v1.16.0 asks the database for every event before it stores one; later versions leave it to
    // the unique index.
    if rules.profile == Profile::V1_16 && is_duplicate(ledger, rules, &draft) {
        refusal.push(("transaction_id", VALUE_ALREADY_EXIST));
    }
    Ok(if refusal.is_empty() { Ok(draft) } else { Err(refusal) })
}

fn is_duplicate(ledger: &Ledger, rules: Rules, draft: &Draft<'_>) -> bool {
    let subscription = draft.incoming.external_subscription_id.as_deref();
    !rules.profile.is_clickhouse() && ledger.holds(subscription, draft.transaction_id)
}

/// v1.16.0: the transaction was opened on another connection than the one that writes, so what came
/// before the second of two equal events stays stored, and what came after is not looked at.
///
/// Source: getlago/lago-api#4772.
fn store_one_by_one(ledger: &mut Ledger, rules: Rules, drafts: &[Draft<'_>]) -> Answer {
    let mut indexes = Vec::with_capacity(drafts.len());
    for draft in drafts {
        if is_duplicate(ledger, rules, draft) {
            return Answer::bare(rules.torn_batch_status);
        }
        indexes.push(ledger.store(draft, rules.now_micros));
    }
    Answer::ok(wire::created_events(ledger, rules.profile, &indexes))
}

/// From v1.39.0 on: one statement that skips what is there, rolled back when anything was skipped.
///
/// Which events were stored is then told from the transaction ids that came back, without their
/// subscriptions. So of events with the same id in one batch only the first counts as stored,
/// whichever it was: the blame may fall on an event that is new.
fn store_in_bulk(ledger: &mut Ledger, rules: Rules, drafts: &[Draft<'_>]) -> Answer {
    let mut in_batch = HashSet::new();
    let mut returned_ids = HashSet::new();
    for draft in drafts {
        let subscription = draft.incoming.external_subscription_id.as_deref();
        let new_in_batch =
            subscription.is_none_or(|subscription| in_batch.insert((subscription, draft.transaction_id)));
        if new_in_batch && !is_duplicate(ledger, rules, draft) {
            returned_ids.insert(draft.transaction_id);
        }
    }
    let mut refusals = Vec::new();
    for (index, draft) in drafts.iter().enumerate() {
        if !returned_ids.remove(draft.transaction_id) {
            refusals.push((index, vec![("transaction_id", VALUE_ALREADY_EXIST)]));
        }
    }
    if !refusals.is_empty() {
        return Answer::invalid(indexed_details(&refusals));
    }
    store_all(ledger, rules, drafts)
}

fn store_all(ledger: &mut Ledger, rules: Rules, drafts: &[Draft<'_>]) -> Answer {
    let indexes: Vec<_> = drafts.iter().map(|draft| ledger.store(draft, rules.now_micros)).collect();
    Answer::ok(wire::created_events(ledger, rules.profile, &indexes))
}

/// `{"<attribute>": ["<error>", …]}`.
fn details(refusal: &[(&'static str, &'static str)]) -> Value {
    let mut details = Map::new();
    for (attribute, error) in refusal {
        let errors = details.entry(*attribute).or_insert_with(|| json!([]));
        if let Value::Array(errors) = errors {
            errors.push(json!(error));
        }
    }
    Value::Object(details)
}

/// `{"<index>": {"<attribute>": ["<error>", …]}}`, failing events only.
fn indexed_details(refusals: &[(usize, Refusal)]) -> Value {
    let details = refusals.iter().map(|(index, refusal)| (index.to_string(), details(refusal)));
    Value::Object(details.collect())
}
