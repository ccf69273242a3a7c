//! The outcome of a check, for eyes and for machines.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What must hold after every experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[non_exhaustive]
pub enum Invariant {
    /// A request whose 2xx was read is on disk, whatever happens afterwards.
    I1,
    /// Everything accepted is delivered in the end, or listed with the reason why not.
    I2,
    /// Nothing is delivered that was not accepted, and every byte of it is the sender's.
    I3,
    /// One record per event: a duplicate gets the same 2xx and the same event id.
    I4,
    /// Deliveries are repeated only where a crash left them unsettled, and not more than were in
    /// flight.
    I5,
    /// Usage: each transaction once, with the same time and properties in every attempt.
    I6,
    /// Accepted = delivered + pending + retrying + parked + dropped + filtered, from metrics and
    /// from the file.
    I7,
    /// Disk, memory and descriptors return to where they were.
    I8,
    /// No secret in any output.
    I9,
    /// No panic, no abort, exit codes as documented.
    I10,
    /// First deliveries of a subject are in the order in which its events were accepted.
    Order,
    /// Every delivery is signed such that the receiver can prove it.
    Signature,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order => f.write_str("order"),
            Self::Signature => f.write_str("signature"),
            numbered => write!(f, "{numbered:?}"),
        }
    }
}

/// One breach of an invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// What was seen, with the ids to look at.
    pub text: String,
}

/// Texts kept per invariant: enough to see a pattern. The counts are always complete.
const TEXTS_PER_INVARIANT: u64 = 20;

/// What one sink did with the accepted events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SinkReport {
    /// Requests that reached the receiver, taken over or not.
    pub attempts: u64,
    /// Different events taken over.
    pub delivered_unique: u64,
    /// Further deliveries of events it had already taken over, replays on purpose not counted.
    pub redelivered: u64,
    /// Accepted events that were not taken over, with no listed reason.
    pub undelivered: u64,
    /// Accepted events that are parked, dropped or filtered.
    pub set_aside: u64,
    /// Deliveries of what nobody sent, or what was refused.
    pub invented: u64,
    /// Deliveries whose bytes differ from what was sent.
    pub corrupted: u64,
    /// First deliveries that came before one they had to follow.
    pub out_of_order: u64,
    /// Deliveries under another event id than the sender was told.
    pub id_mismatches: u64,
}

/// The closing ledger of a run. With several sinks the totals are sums over them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Requests sent, repeats included.
    pub sent: u64,
    /// Requests that no answer was read for.
    pub unanswered: u64,
    /// Requests answered 4xx or 5xx.
    pub refused: u64,
    /// Different events accepted: those of which the sender read at least one 2xx.
    pub accepted: u64,
    /// 2xx answers that called the request a duplicate.
    pub duplicates_answered: u64,
    /// Accepted events whose key had been used with another body before.
    pub conflicts: u64,
    /// Different events delivered.
    pub delivered_unique: u64,
    /// Repeated deliveries.
    pub redelivered: u64,
    /// Accepted events that are parked, dropped or filtered.
    pub set_aside: u64,
    /// Accepted events that are not delivered and have no reason for it. Only final when the run
    /// was drained.
    pub lost: u64,
    /// Deliveries of what was never accepted.
    pub invented: u64,
    /// Deliveries with other bytes.
    pub corrupted: u64,
    /// First deliveries out of order within their subject.
    pub out_of_order: u64,
    /// Event ids that differ between answers, or between answer and delivery.
    pub id_mismatches: u64,
    /// Kills, cuts and outages in the history.
    pub crashes: u64,
    /// The same by sink.
    pub sinks: BTreeMap<String, SinkReport>,
    /// How often each invariant was broken.
    pub broken: BTreeMap<Invariant, u64>,
    /// The breaches in words; at most twenty and one line about the rest per invariant.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Whether every invariant held.
    pub fn is_clean(&self) -> bool {
        self.broken.is_empty()
    }

    /// How often this invariant was broken.
    pub fn count(&self, invariant: Invariant) -> u64 {
        self.broken.get(&invariant).copied().unwrap_or_default()
    }

    pub(super) fn violate(&mut self, invariant: Invariant, text: impl FnOnce() -> String) {
        let count = self.broken.entry(invariant).or_default();
        *count += 1;
        if *count <= TEXTS_PER_INVARIANT {
            let text = text();
            self.violations.push(Violation { invariant, text });
        }
    }

    /// Sums up the sinks and closes the list of violations.
    pub(super) fn finish(&mut self) {
        for sink in self.sinks.values() {
            self.delivered_unique += sink.delivered_unique;
            self.redelivered += sink.redelivered;
            self.set_aside += sink.set_aside;
            self.lost += sink.undelivered;
            self.invented += sink.invented;
            self.corrupted += sink.corrupted;
            self.out_of_order += sink.out_of_order;
            self.id_mismatches += sink.id_mismatches;
        }
        for (invariant, count) in &self.broken {
            if let Some(more @ 1..) = count.checked_sub(TEXTS_PER_INVARIANT) {
                self.violations.push(Violation { invariant: *invariant, text: format!("and {more} more") });
            }
        }
        self.violations.sort_by_key(|violation| violation.invariant);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("requests sent", self.sent),
            ("  without an answer", self.unanswered),
            ("  refused (4xx, 5xx)", self.refused),
            ("  answered as duplicates", self.duplicates_answered),
            ("events accepted", self.accepted),
            ("  key reused with another body", self.conflicts),
            ("events delivered", self.delivered_unique),
            ("  delivered again", self.redelivered),
            ("parked, dropped or filtered", self.set_aside),
            ("kills and outages", self.crashes),
            ("lost", self.lost),
            ("invented", self.invented),
            ("corrupted", self.corrupted),
            ("out of order per subject", self.out_of_order),
            ("event id mismatches", self.id_mismatches),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<32} {value:>10}")?;
        }
        if self.is_clean() {
            return writeln!(f, "{:<32} {:>10}", "the ledger", "balances");
        }
        writeln!(f, "{:<32} {:>10}", "the ledger", "IS BROKEN")?;
        for violation in &self.violations {
            writeln!(f, "  {}: {}", violation.invariant, violation.text)?;
        }
        Ok(())
    }
}
