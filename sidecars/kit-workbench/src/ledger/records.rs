//! From requests to events: which of them are the same one, and what the sender was told (I4).

use std::collections::HashMap;

use super::{Identity, Invariant, Ledger, Report, SentRequest};
use crate::{Digest, Moment};

/// All that was sent as one event.
pub(super) struct Record<'a> {
    pub(super) key: &'a str,
    pub(super) organisation: &'a str,
    pub(super) subject: &'a str,
    pub(super) digest: Digest,
    /// The first id the sender was told.
    pub(super) event_id: Option<&'a str>,
    /// When it was sent first, whatever came of that.
    pub(super) first_started: Moment,
    /// When its first 2xx had been read.
    pub(super) accepted_at: Option<Moment>,
    /// Whether some request of it may have been stored without the sender knowing.
    pub(super) unknown: bool,
}

impl Record<'_> {
    pub(super) fn is_accepted(&self) -> bool {
        self.accepted_at.is_some()
    }

    /// Whether a delivery of it is no surprise.
    pub(super) fn may_be_delivered(&self) -> bool {
        self.is_accepted() || self.unknown
    }

    pub(super) fn name(&self) -> String {
        match self.event_id {
            Some(id) => format!("event {id} (key {})", self.key),
            None => format!("key {}", self.key),
        }
    }
}

/// The events of a history, with the indexes a delivery is found by.
pub(super) struct Records<'a> {
    pub(super) all: Vec<Record<'a>>,
    pub(super) by_id: HashMap<&'a str, usize>,
    pub(super) by_digest: HashMap<Digest, Vec<usize>>,
    pub(super) by_key: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Records<'a> {
    pub(super) fn of(ledger: &'a Ledger, identity: Identity, report: &mut Report) -> Self {
        let mut groups: HashMap<(&str, &str, Option<Digest>), Vec<&SentRequest>> = HashMap::new();
        for request in &ledger.sent {
            let digest = match identity {
                Identity::KeyAndBody => Some(request.body_sha256),
                Identity::Key => None,
            };
            let group = (&*request.organisation, request.key.as_str(), digest);
            groups.entry(group).or_default().push(request);
        }
        report.sent = ledger.sent.len() as u64;

        let mut records = Self {
            all: Vec::with_capacity(groups.len()),
            by_id: HashMap::new(),
            by_digest: HashMap::new(),
            by_key: HashMap::new(),
        };
        for requests in groups.into_values() {
            records.add(requests, report);
        }
        // Groups come out of a hash map: a stable order keeps reports comparable.
        records.sort();
        records.index(report);
        records
    }

    fn add(&mut self, mut requests: Vec<&'a SentRequest>, report: &mut Report) {
        requests.sort_by_key(|request| request.started);
        let first = requests[0];
        let accepted: Vec<&SentRequest> = requests.iter().copied().filter(|request| request.is_accepted()).collect();
        for request in &requests {
            match request.status {
                None => report.unanswered += 1,
                Some(400..) => report.refused += 1,
                Some(_) => {}
            }
        }
        report.duplicates_answered += accepted.iter().filter(|request| request.duplicate == Some(true)).count() as u64;
        check_answers(&requests, &accepted, report);
        self.all.push(Record {
            key: &first.key,
            organisation: &first.organisation,
            subject: &first.subject,
            // Where the key alone decides, the body that was accepted first is the event's.
            digest: accepted
                .iter()
                .min_by_key(|request| request.answered)
                .map_or(first.body_sha256, |request| request.body_sha256),
            event_id: accepted.iter().find_map(|request| request.event_id.as_deref()),
            first_started: first.started,
            accepted_at: accepted.iter().filter_map(|r| r.answered).min(),
            unknown: requests.iter().any(|request| request.is_unknown()),
        });
    }

    fn sort(&mut self) {
        self.all.sort_by(|a, b| (a.first_started, a.key, a.digest).cmp(&(b.first_started, b.key, b.digest)));
    }

    fn index(&mut self, report: &mut Report) {
        let mut bodies_of_key: HashMap<(&str, &str), u32> = HashMap::new();
        for (index, record) in self.all.iter().enumerate() {
            self.by_digest.entry(record.digest).or_default().push(index);
            self.by_key.entry(record.key).or_default().push(index);
            if record.is_accepted() {
                report.accepted += 1;
                let bodies = bodies_of_key.entry((record.organisation, record.key)).or_default();
                *bodies += 1;
                report.conflicts += u64::from(*bodies > 1);
            }
            let Some(id) = record.event_id else {
                continue;
            };
            if let Some(other) = self.by_id.insert(id, index) {
                report.id_mismatches += 1;
                let (a, b) = (self.all[other].key, record.key);
                report.violate(Invariant::I4, || format!("event id {id} was given to two events, keys {a} and {b}"));
            }
        }
    }
}

/// I4 as the sender can see it: the answers of one event agree, and exactly one of them is the
/// first.
fn check_answers(requests: &[&SentRequest], accepted: &[&SentRequest], report: &mut Report) {
    let Some(first) = accepted.iter().min_by_key(|request| request.answered) else {
        return;
    };
    let key = &first.key;
    for answer in accepted {
        if let (Some(told), Some(again)) = (&first.event_id, &answer.event_id)
            && told != again
        {
            report.id_mismatches += 1;
            report.violate(Invariant::I4, || format!("key {key} was answered with event id {told}, then with {again}"));
        }
        if answer.status != first.status {
            let (a, b) = (first.status, answer.status);
            report.violate(Invariant::I4, || {
                let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
                format!("key {key} was answered with status {a}, its duplicate with {b}")
            });
        }
    }
    let fresh = accepted.iter().filter(|r| r.duplicate == Some(false));
    let fresh = fresh.count();
    if fresh > 1 {
        report.violate(Invariant::I4, || format!("key {key} was accepted as new {fresh} times"));
    }
    if accepted.iter().all(|r| r.duplicate == Some(true)) {
        // Somebody must have been first: only a request without a clear answer can have been.
        let answered = first.answered;
        let earlier = requests.iter().any(|request| request.is_unknown() && Some(request.started) <= answered);
        if !earlier {
            report.violate(Invariant::I4, || {
                format!("key {key} was called a duplicate although it was never stored before")
            });
        }
    }
    let known_from = first.answered;
    for refused in requests {
        let refusal = refused.status.filter(|s| (400..500).contains(s));
        if let Some(status) = refusal
            && known_from.is_some_and(|known| known < refused.started)
        {
            report
                .violate(Invariant::I4, || format!("key {key} had been accepted, its duplicate was answered {status}"));
        }
    }
}
