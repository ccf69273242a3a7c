//! I1–I3, I5, order and signatures: every delivery is traced back to a request, then every event
//! is followed to its deliveries.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::records::{Record, Records};
use super::report::SinkReport;
use super::{Delivery, Expectations, Invariant, Ledger, Report};
use crate::{Digest, Moment};

/// The deliveries of one event that the receiver took over, in order of arrival.
#[derive(Default)]
struct Taken<'a> {
    deliveries: Vec<&'a Delivery>,
}

pub(super) fn sinks(ledger: &Ledger, records: &Records<'_>, expectations: &Expectations, report: &mut Report) {
    report.crashes = ledger.crashes.len() as u64;
    let mut by_sink: HashMap<&str, Vec<&Delivery>> = HashMap::new();
    for delivery in &ledger.deliveries {
        by_sink.entry(&delivery.sink).or_default().push(delivery);
    }
    // Deliveries of a sink nobody expects are still checked for being true.
    let mut names: Vec<&str> = expectations.sinks.iter().map(String::as_str).collect();
    names.extend(by_sink.keys().filter(|name| !expectations.sinks.iter().any(|s| s == *name)));
    names.sort_unstable();
    names.dedup();

    check_stored(ledger, records, report);
    for name in names {
        let mut deliveries = by_sink.remove(name).unwrap_or_default();
        deliveries.sort_by_key(|delivery| delivery.at);
        let mut sink = SinkReport { attempts: deliveries.len() as u64, ..SinkReport::default() };
        let taken = trace(&deliveries, records, &mut sink, report);
        check_signatures(&deliveries, expectations, report);
        let expected = expectations.sinks.iter().any(|known| known == name);
        let context = Context { name, ledger, records };
        context.check_delivered(&taken, expected, expectations.drained, &mut sink, report);
        context.check_repeats(&taken, &mut sink, report);
        if expectations.ordered {
            context.check_order(&taken, &mut sink, report);
        }
        report.sinks.insert(name.to_owned(), sink);
    }
}

fn check_stored(ledger: &Ledger, records: &Records<'_>, report: &mut Report) {
    let Some(stored) = &ledger.stored else {
        return;
    };
    for record in records.all.iter().filter(|record| record.is_accepted()) {
        if record.event_id.is_some_and(|id| !stored.contains(id)) {
            report.violate(Invariant::I1, || format!("{} was answered 2xx and is not in the journal", record.name()));
        }
    }
}

fn check_signatures(deliveries: &[&Delivery], expectations: &Expectations, report: &mut Report) {
    for delivery in deliveries {
        let wrong = match delivery.signature_ok {
            Some(valid) => !valid,
            None => expectations.signed,
        };
        if wrong {
            report.violate(Invariant::Signature, || format!("{} came without a valid signature", name_of(delivery)));
        }
    }
}

/// I3: finds the event of every delivery, or says why there is none.
fn trace<'a>(
    deliveries: &[&'a Delivery],
    records: &Records<'_>,
    sink: &mut SinkReport,
    report: &mut Report,
) -> HashMap<usize, Taken<'a>> {
    let mut taken: HashMap<usize, Taken<'a>> = HashMap::new();
    let mut guesses = Guesses::default();
    for delivery in deliveries {
        let id = delivery.event_id.as_deref();
        let told = id.and_then(|id| records.by_id.get(id).copied());
        let Some(index) = told.or_else(|| guesses.event_of(delivery, records)) else {
            stray(delivery, records, sink, report);
            continue;
        };
        let record = &records.all[index];
        if record.digest != delivery.data_sha256 {
            sink.corrupted += 1;
            report.violate(Invariant::I3, || {
                let (sent, got) = (record.digest, delivery.data_sha256);
                let name = record.name();
                format!("{name} was delivered with SHA-256 {got:?}, sent with {sent:?}")
            });
        }
        if delivery.taken {
            taken.entry(index).or_default().deliveries.push(delivery);
        }
    }
    taken
}

/// Which event a delivery must be whose id no answer told: the answer was lost in a crash, or the
/// format carries no id at all.
#[derive(Default)]
struct Guesses<'a> {
    /// Ids learned from deliveries.
    by_id: HashMap<&'a str, usize>,
    named: HashSet<usize>,
    /// Where to look next among the events with the same bytes.
    next: HashMap<Digest, usize>,
}

impl<'a> Guesses<'a> {
    fn event_of(&mut self, delivery: &'a Delivery, records: &Records<'_>) -> Option<usize> {
        let may_be = |index: &usize| {
            let record = &records.all[*index];
            record.may_be_delivered() && record.digest == delivery.data_sha256
        };
        if let Some(id) = delivery.event_id.as_deref() {
            if let Some(index) = self.by_id.get(id) {
                return Some(*index);
            }
            // Events that have got an id, told or learned, are others.
            let index = candidates(delivery, records)
                .iter()
                .copied()
                .filter(may_be)
                .find(|i| records.all[*i].event_id.is_none() && !self.named.contains(i))?;
            self.by_id.insert(id, index);
            self.named.insert(index);
            return Some(index);
        }
        let same = candidates(delivery, records);
        if delivery.unique_key.is_some() {
            return same.iter().copied().find(may_be);
        }
        // Bytes are all there is: events with the same bytes are taken to come one after another.
        let next = self.next.entry(delivery.data_sha256).or_default();
        let found = (*next..same.len()).find(|position| may_be(&same[*position]));
        if let Some(position) = found {
            *next = position + usize::from(delivery.taken);
            return Some(same[position]);
        }
        same.iter().copied().find(may_be)
    }
}

fn candidates<'r>(delivery: &Delivery, records: &'r Records<'_>) -> &'r [usize] {
    match delivery.unique_key.as_deref() {
        Some(key) => records.by_key.get(key),
        None => records.by_digest.get(&delivery.data_sha256),
    }
    .map_or(&[], Vec::as_slice)
}

/// A delivery that belongs to no event: says which way it is wrong.
fn stray(delivery: &Delivery, records: &Records<'_>, sink: &mut SinkReport, report: &mut Report) {
    let name = name_of(delivery);
    let same_bytes = records.by_digest.get(&delivery.data_sha256);
    let same_bytes: Vec<&Record<'_>> = same_bytes.into_iter().flatten().map(|index| &records.all[*index]).collect();
    if let Some(other) = same_bytes.iter().find(|record| record.event_id.is_some()) {
        sink.id_mismatches += 1;
        report.violate(Invariant::I4, || format!("{name} carries the bytes of {} under another id", other.name()));
    } else if let Some(refused) = same_bytes.first() {
        sink.invented += 1;
        report.violate(Invariant::I3, || format!("{name} carries the bytes of {}, which was refused", refused.name()));
    } else if delivery.unique_key.as_deref().is_some_and(|key| records.by_key.contains_key(key)) {
        sink.corrupted += 1;
        report.violate(Invariant::I3, || format!("{name} carries bytes that were never sent under its key"));
    } else {
        sink.invented += 1;
        report.violate(Invariant::I3, || format!("{name} was never sent"));
    }
}

fn name_of(delivery: &Delivery) -> String {
    match (&delivery.event_id, &delivery.unique_key) {
        (Some(id), _) => format!("delivered event {id}"),
        (None, Some(key)) => format!("delivery with key {key}"),
        (None, None) => format!("delivery with SHA-256 {:?}", delivery.data_sha256),
    }
}

/// One sink under check.
struct Context<'a> {
    name: &'a str,
    ledger: &'a Ledger,
    records: &'a Records<'a>,
}

impl Context<'_> {
    fn is_set_aside(&self, record: &Record<'_>) -> bool {
        // The set is small: only what was parked, dropped or filtered.
        record.event_id.is_some_and(|id| self.ledger.set_aside.contains(&(self.name.to_owned(), id.to_owned())))
    }

    fn is_replayed(&self, record: &Record<'_>, first: &Delivery) -> bool {
        let id = record.event_id.or(first.event_id.as_deref());
        id.is_some_and(|id| self.ledger.replayed.contains(id))
    }

    /// I2.
    fn check_delivered(
        &self,
        taken: &HashMap<usize, Taken<'_>>,
        expected: bool,
        drained: bool,
        sink: &mut SinkReport,
        report: &mut Report,
    ) {
        sink.delivered_unique = taken.len() as u64;
        if !expected {
            return;
        }
        for (index, record) in self.records.all.iter().enumerate() {
            if !record.is_accepted() || taken.contains_key(&index) {
                continue;
            }
            if self.is_set_aside(record) {
                sink.set_aside += 1;
                continue;
            }
            sink.undelivered += 1;
            if drained {
                let at = record.accepted_at.map_or_else(String::new, |at| at.to_string());
                report.violate(Invariant::I2, || {
                    format!("{} was accepted at {at} and never reached the {}", record.name(), self.name)
                });
            }
        }
    }

    /// I5: every repeat needs a crash between it and the delivery before, and no crash explains
    /// more repeats than were in flight.
    fn check_repeats(&self, taken: &HashMap<usize, Taken<'_>>, sink: &mut SinkReport, report: &mut Report) {
        struct Repeat<'a> {
            from: Moment,
            to: Moment,
            name: &'a Record<'a>,
        }
        let mut repeats: Vec<Repeat<'_>> = Vec::new();
        for (index, taken) in taken {
            let record = &self.records.all[*index];
            if self.is_replayed(record, taken.deliveries[0]) {
                continue;
            }
            repeats.extend(taken.deliveries.windows(2).map(|pair| Repeat {
                from: pair[0].at,
                to: pair[1].at,
                name: record,
            }));
        }
        sink.redelivered = repeats.len() as u64;
        repeats.sort_by_key(|repeat| (repeat.from, repeat.to));

        // A crash takes those repeats first that no later crash can explain: the earliest ended.
        let mut crashes: Vec<_> = self.ledger.crashes.iter().collect();
        crashes.sort_by_key(|crash| crash.from);
        let mut waiting: BinaryHeap<Reverse<(Moment, usize)>> = BinaryHeap::new();
        let mut next = 0;
        let mut unexplained = Vec::new();
        for crash in crashes {
            while let Some(repeat) = repeats.get(next).filter(|repeat| repeat.from <= crash.until) {
                waiting.push(Reverse((repeat.to, next)));
                next += 1;
            }
            let mut room = crash.in_flight;
            while let Some(Reverse((to, index))) = waiting.peek().copied() {
                if to < crash.from {
                    unexplained.push(index);
                } else if room == 0 {
                    break;
                } else {
                    room -= 1;
                }
                waiting.pop();
            }
        }
        unexplained.extend(waiting.into_iter().map(|Reverse((_, index))| index));
        unexplained.extend(next..repeats.len());
        unexplained.sort_unstable();
        for index in unexplained {
            let repeat = &repeats[index];
            report.violate(Invariant::I5, || {
                format!(
                    "{} was delivered to the {} at {} and again at {} without a crash to explain it",
                    repeat.name.name(),
                    self.name,
                    repeat.from,
                    repeat.to
                )
            });
        }
    }

    /// Order is defined where the sender made it: B was sent after A's 2xx had been read. Then B's
    /// first delivery must not come before A's has been answered.
    fn check_order(&self, taken: &HashMap<usize, Taken<'_>>, sink: &mut SinkReport, report: &mut Report) {
        struct First<'a> {
            record: &'a Record<'a>,
            at: Moment,
            settled: Moment,
        }
        let mut subjects: HashMap<(&str, &str), Vec<First<'_>>> = HashMap::new();
        for (index, taken) in taken {
            let record = &self.records.all[*index];
            let first = taken.deliveries[0];
            if record.subject.is_empty() || self.is_replayed(record, first) {
                continue;
            }
            let subject = (record.organisation, record.subject);
            subjects.entry(subject).or_default().push(First {
                record,
                at: first.at,
                settled: first.answered_at.unwrap_or(first.at),
            });
        }
        let mut names: Vec<_> = subjects.keys().copied().collect();
        names.sort_unstable();
        for subject in names {
            let firsts = &subjects[&subject];
            let mut by_start: Vec<&First<'_>> = firsts.iter().collect();
            by_start.sort_by_key(|first| (first.record.first_started, first.at));
            let mut by_answer: Vec<&First<'_>> = firsts.iter().filter(|first| first.record.is_accepted()).collect();
            by_answer.sort_by_key(|first| first.record.accepted_at);
            let mut before = by_answer.into_iter().peekable();
            let mut latest: Option<&First<'_>> = None;
            for later in by_start {
                let started = Some(later.record.first_started);
                while let Some(earlier) = before.next_if(|earlier| earlier.record.accepted_at < started) {
                    if latest.is_none_or(|latest| earlier.settled > latest.settled) {
                        latest = Some(earlier);
                    }
                }
                if let Some(earlier) = latest.filter(|earlier| earlier.settled > later.at) {
                    sink.out_of_order += 1;
                    report.violate(Invariant::Order, || {
                        format!(
                            "{} of subject {} reached the {} before {}, which was accepted first",
                            later.record.name(),
                            subject.1,
                            self.name,
                            earlier.record.name()
                        )
                    });
                }
            }
        }
    }
}
