//! The one checker: what was sent, what was received, what happened in between, and whether the
//! invariants held. Pure data in, a [`Report`] out; it talks to nobody, so a history from a file
//! is judged exactly like a fresh one.
//!
//! The invariants I1–I10 are described at [`Invariant`]. Tests of the checker itself feed it a
//! history that breaks each of them.

mod balance;
mod check;
mod records;
mod report;
mod usage;

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::balance::{Counters, EndRecord, ExpectedEnd, Resources, ResourcesRecord, SecretFinding};
pub use self::report::{Invariant, Report, SinkReport, Violation};
pub use self::usage::{UsageAttempt, UsageEvent, UsageStored};

use crate::gateway::{JournalLine, Received};
use crate::{Digest, Moment};

/// The name of the sink whose deliveries a [`Gateway`](crate::gateway::Gateway) receives.
pub const GATEWAY: &str = "gateway";

/// One request as the sender saw it. Repeats of the same event are entries of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentRequest {
    /// The deduplication key, for Lago the value of `X-Lago-Unique-Key`.
    pub key: String,
    /// Whose event it is.
    pub organisation: Arc<str>,
    /// What order is promised within; empty where none is.
    pub subject: Arc<str>,
    /// SHA-256 of the body as sent.
    pub body_sha256: Digest,
    /// Taken before the first byte was written.
    pub started: Moment,
    /// Taken after the last byte of the answer was read; `None` when none was.
    pub answered: Option<Moment>,
    /// The status read.
    pub status: Option<u16>,
    /// The event id in the answer.
    pub event_id: Option<String>,
    /// Whether the answer called it a duplicate.
    pub duplicate: Option<bool>,
}

/// What a daemon says about a webhook it has accepted; unknown fields are its own business.
#[derive(Default, Deserialize)]
struct Accepted {
    id: Option<String>,
    duplicate: Option<bool>,
}

impl SentRequest {
    /// A request that is about to be sent: the time is taken now.
    pub fn begin(
        organisation: impl Into<Arc<str>>,
        key: impl Into<String>,
        subject: impl Into<Arc<str>>,
        body_sha256: Digest,
    ) -> Self {
        Self {
            key: key.into(),
            organisation: organisation.into(),
            subject: subject.into(),
            body_sha256,
            started: Moment::now(),
            answered: None,
            status: None,
            event_id: None,
            duplicate: None,
        }
    }

    /// Notes the answer, read completely just now: its status and, for a 2xx, `id` and `duplicate`
    /// from its JSON body. Not called when no answer came.
    pub fn finish(&mut self, status: u16, body: &[u8]) {
        self.answered = Some(Moment::now());
        self.status = Some(status);
        if self.is_accepted() {
            let accepted: Accepted = serde_json::from_slice(body).unwrap_or_default();
            self.event_id = accepted.id;
            self.duplicate = accepted.duplicate;
        }
    }

    /// Whether a 2xx was read: from then on the event must never be lost.
    pub fn is_accepted(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }

    /// Whether it may have been stored although the sender was not told: no answer, or a 5xx.
    pub fn is_unknown(&self) -> bool {
        self.status.is_none_or(|status| status >= 500)
    }
}

/// One delivery as the receiver saw it, taken over or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Which sink delivered it.
    pub sink: Arc<str>,
    /// When it had been received completely.
    pub at: Moment,
    /// When it was answered.
    pub answered_at: Option<Moment>,
    /// The event's id, where the format carries one.
    pub event_id: Option<String>,
    /// The sender's key, where the format carries it.
    pub unique_key: Option<String>,
    /// SHA-256 of the sender's bytes.
    pub data_sha256: Digest,
    /// Whether its signature held; `None` where none was checked.
    pub signature_ok: Option<bool>,
    /// Whether the receiver took it over (usually: answered 2xx). Only these are deliveries in the
    /// sense of the invariants; the rest were attempts.
    pub taken: bool,
}

impl Delivery {
    /// A delivery from what a gateway received, as sink `sink`.
    pub fn from_received(sink: &Arc<str>, received: &Received) -> Self {
        Self {
            sink: Arc::clone(sink),
            at: received.at,
            answered_at: received.answered_at,
            event_id: received.event_id.clone(),
            unique_key: received.unique_key.clone(),
            data_sha256: received.data_sha256,
            signature_ok: received.signature_ok,
            taken: received.taken,
        }
    }
}

/// A time in which deliveries may have been repeated: a kill, a power cut, a gateway that went
/// down between taking an event and saying so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// What happened.
    pub what: String,
    /// Taken before it was done.
    pub from: Moment,
    /// Taken after things were in order again.
    pub until: Moment,
    /// How many deliveries could be unsettled at once: the in-flight window of each sink.
    pub in_flight: u64,
}

/// One entry of a history; a history file has one per line, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Entry {
    /// A request was sent.
    Sent(SentRequest),
    /// A delivery was received.
    Delivery(Delivery),
    /// Deliveries may have been repeated.
    Crash(Crash),
    /// What the daemon counted, at a quiescent point.
    Counters(Counters),
    /// All event ids the journal knows, read after the faults.
    Stored {
        /// The ids.
        event_ids: BTreeSet<String>,
    },
    /// An event that a sink does not deliver for a listed reason: parked, dropped or filtered.
    SetAside {
        /// The sink.
        sink: String,
        /// The event.
        event_id: String,
    },
    /// An event that an operator had delivered once more.
    Replayed {
        /// The event.
        event_id: String,
    },
    /// A secret was seen in an output.
    Secret(SecretFinding),
    /// A panic was seen in an output.
    Panic {
        /// Where.
        output: String,
        /// The line.
        line: String,
    },
    /// A process ended.
    End(EndRecord),
    /// Resources before and after.
    Resources(ResourcesRecord),
    /// A producer handed over a usage event.
    UsageSent(UsageEvent),
    /// A usage event reached the stand-in for Lago, whatever it answered.
    UsageAttempt(UsageAttempt),
    /// A usage event the stand-in for Lago has on its books.
    UsageStored(UsageStored),
}

/// What a run promised.
#[derive(Clone, Debug)]
pub struct Expectations {
    /// The sinks that must have every event. Default: the gateway.
    pub sinks: Vec<String>,
    /// Whether everything had time to be delivered. Without it an undelivered event is counted but
    /// not yet a loss. Default true.
    pub drained: bool,
    /// Whether first deliveries are in order of acceptance per subject. Default true.
    pub ordered: bool,
    /// Whether every delivery must carry a valid signature. Default false: then only a signature
    /// that was checked and found wrong is a violation.
    pub signed: bool,
    /// Whether the ledger saw everything since the journal was empty, so that the daemon's counters
    /// can be compared with it. Default true.
    pub whole_history: bool,
    /// What makes two requests one event. Default key and body.
    pub identity: Identity,
}

impl Default for Expectations {
    fn default() -> Self {
        Self {
            sinks: vec![GATEWAY.to_owned()],
            drained: true,
            ordered: true,
            signed: false,
            whole_history: true,
            identity: Identity::KeyAndBody,
        }
    }
}

/// What makes two requests of one organisation the same event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Key and body; the same key with another body is a conflict and a new event.
    #[default]
    KeyAndBody,
    /// The key alone; the first body wins.
    Key,
}

/// The history of a run.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    sent: Vec<SentRequest>,
    deliveries: Vec<Delivery>,
    crashes: Vec<Crash>,
    counters: Vec<Counters>,
    stored: Option<BTreeSet<String>>,
    set_aside: BTreeSet<(String, String)>,
    replayed: BTreeSet<String>,
    secrets: Vec<SecretFinding>,
    panics: Vec<(String, String)>,
    ends: Vec<EndRecord>,
    resources: Vec<ResourcesRecord>,
    usage: usage::UsageHistory,
}

impl Ledger {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds any entry.
    pub fn record(&mut self, entry: Entry) {
        match entry {
            Entry::Sent(request) => self.sent.push(request),
            Entry::Delivery(delivery) => self.deliveries.push(delivery),
            Entry::Crash(crash) => self.crashes.push(crash),
            Entry::Counters(counters) => self.counters.push(counters),
            Entry::Stored { event_ids } => self.stored = Some(event_ids),
            Entry::SetAside { sink, event_id } => {
                self.set_aside.insert((sink, event_id));
            }
            Entry::Replayed { event_id } => {
                self.replayed.insert(event_id);
            }
            Entry::Secret(finding) => self.secrets.push(finding),
            Entry::Panic { output, line } => self.panics.push((output, line)),
            Entry::End(end) => self.ends.push(end),
            Entry::Resources(resources) => self.resources.push(resources),
            Entry::UsageSent(event) => self.usage.sent.push(event),
            Entry::UsageAttempt(attempt) => self.usage.attempts.push(attempt),
            Entry::UsageStored(stored) => self.usage.stored.push(stored),
        }
    }

    /// Adds one request.
    pub fn sent(&mut self, request: SentRequest) {
        self.sent.push(request);
    }

    /// Adds requests, as a load run returns them.
    pub fn extend_sent(&mut self, requests: impl IntoIterator<Item = SentRequest>) {
        self.sent.extend(requests);
    }

    /// Adds one delivery.
    pub fn delivered(&mut self, delivery: Delivery) {
        self.deliveries.push(delivery);
    }

    /// Adds everything a gateway received as deliveries of the sink [`GATEWAY`].
    pub fn extend_received(&mut self, received: &[Received]) {
        let sink: Arc<str> = Arc::from(GATEWAY);
        let deliveries = received.iter().map(|r| Delivery::from_received(&sink, r));
        self.deliveries.extend(deliveries);
    }

    /// Adds a crash.
    pub fn crash(&mut self, crash: Crash) {
        self.crashes.push(crash);
    }

    /// Adds counters read at a quiescent point.
    pub fn counters(&mut self, counters: Counters) {
        self.counters.push(counters);
    }

    /// Tells which event ids the journal knows after the faults.
    pub fn stored(&mut self, event_ids: impl IntoIterator<Item = String>) {
        self.stored = Some(event_ids.into_iter().collect());
    }

    /// Tells that `sink` has this event parked, dropped or filtered, with a listed reason.
    pub fn set_aside(&mut self, sink: &str, event_id: &str) {
        self.set_aside.insert((sink.to_owned(), event_id.to_owned()));
    }

    /// Tells that this event was replayed on purpose.
    pub fn replayed(&mut self, event_id: &str) {
        self.replayed.insert(event_id.to_owned());
    }

    /// Adds the end of a process and what it should have been.
    pub fn end(&mut self, end: EndRecord) {
        self.ends.push(end);
    }

    /// Adds a comparison of resources.
    pub fn resources(&mut self, resources: ResourcesRecord) {
        self.resources.push(resources);
    }

    /// Searches an output for panics and for secrets, given with a label each. The ledger keeps
    /// labels and positions, never the secrets.
    pub fn scan_output(&mut self, output: &str, text: &[u8], secrets: &[(&str, &[u8])]) {
        let (found, panics) = balance::scan(output, text, secrets);
        self.secrets.extend(found);
        self.panics.extend(panics.into_iter().map(|line| (output.to_owned(), line)));
    }

    /// The requests recorded so far.
    pub fn sent_requests(&self) -> &[SentRequest] {
        &self.sent
    }

    /// The deliveries recorded so far.
    pub fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }

    /// Checks the history.
    pub fn check(&self, expectations: &Expectations) -> Report {
        let mut report = Report::default();
        let records = records::Records::of(self, expectations.identity, &mut report);
        check::sinks(self, &records, expectations, &mut report);
        balance::check(self, expectations, &mut report);
        self.usage.check(&mut report);
        report.finish();
        report
    }

    /// Writes the history as JSON lines, so that a failure can be kept and looked at again.
    ///
    /// # Errors
    /// Those of writing the file.
    pub fn write_jsonl(&self, path: &Path) -> io::Result<()> {
        let mut file = io::BufWriter::new(std::fs::File::create(path)?);
        for entry in self.entries() {
            serde_json::to_writer(&mut file, &entry)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }

    /// Reads a history written by [`Self::write_jsonl`].
    ///
    /// # Errors
    /// Those of reading the file; `InvalidData` naming the line that is not an entry.
    pub fn read_jsonl(path: &Path) -> io::Result<Self> {
        let mut ledger = Self::new();
        each_line(path, |entry| ledger.record(entry))?;
        Ok(ledger)
    }

    /// Adds the deliveries from the journal file of a gateway, as sink [`GATEWAY`].
    ///
    /// # Errors
    /// Those of reading the file; `InvalidData` naming the line that cannot be read.
    pub fn read_gateway_journal(&mut self, path: &Path) -> io::Result<()> {
        let sink: Arc<str> = Arc::from(GATEWAY);
        // Numbers begin anew with every gateway that appends to the file.
        let mut by_number = std::collections::HashMap::new();
        each_line(path, |line| match line {
            JournalLine::Received(received) => {
                by_number.insert(received.number, self.deliveries.len());
                self.deliveries.push(Delivery::from_received(&sink, &received));
            }
            JournalLine::Answered { number, at, taken, .. } => {
                if let Some(index) = by_number.get(&number) {
                    let delivery = &mut self.deliveries[*index];
                    delivery.answered_at = Some(at);
                    delivery.taken = taken;
                }
            }
        })
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let sent = self.sent.iter().cloned().map(Entry::Sent);
        let deliveries = self.deliveries.iter().cloned().map(Entry::Delivery);
        let crashes = self.crashes.iter().cloned().map(Entry::Crash);
        let counters = self.counters.iter().cloned().map(Entry::Counters);
        let stored = self.stored.iter().cloned();
        let set_aside = self.set_aside.iter().cloned();
        let replayed = self.replayed.iter().cloned();
        let panics = self.panics.iter().cloned();
        sent.chain(deliveries)
            .chain(crashes)
            .chain(counters)
            .chain(stored.map(|event_ids| Entry::Stored { event_ids }))
            .chain(set_aside.map(|(sink, event_id)| Entry::SetAside { sink, event_id }))
            .chain(replayed.map(|event_id| Entry::Replayed { event_id }))
            .chain(self.secrets.iter().cloned().map(Entry::Secret))
            .chain(panics.map(|(output, line)| Entry::Panic { output, line }))
            .chain(self.ends.iter().cloned().map(Entry::End))
            .chain(self.resources.iter().cloned().map(Entry::Resources))
            .chain(self.usage.entries())
    }
}

fn each_line<T: serde::de::DeserializeOwned>(path: &Path, mut take: impl FnMut(T)) -> io::Result<()> {
    for (index, line) in io::BufReader::new(std::fs::File::open(path)?).lines().enumerate() {
        let entry = serde_json::from_str(&line?).map_err(|error| {
            let text = format!("line {} of {}: {error}", index + 1, path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        take(entry);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
