//! The ledger as the sink, the comparison and the API share it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kit::clock::Timestamp;
use kit_journal::engine::{Action, AuditRecord, Reader};
use kit_journal::{Journal, JournalError, Seq, StoredEvent};
use kit_lago::usage::Quantity;
use tokio::sync::Notify;

use super::{Results, State};
use crate::accepted::{self, Accepted};
use crate::admit::Stored;
use crate::catalogue::Catalogue;
use crate::complained::Complaints;
use crate::ledger::{Ledger, Name, PREFIX, TAKEN_PREFIX, Taken};

/// Rows that are accepted with one request at most.
const ACCEPTED_AT_ONCE: usize = 500;
/// Settled complaints that are forgotten in one commit.
const FORGOTTEN_AT_ONCE: usize = 500;

/// The ledger and what became of its last comparison, as the sink, the comparison and the API share it.
#[derive(Debug)]
pub(crate) struct Books {
    journal: Journal,
    /// This replica sends to Lago: only then the ledger is the whole of it.
    leads: AtomicBool,
    ledger: Mutex<Ledger>,
    results: Mutex<Results>,
    /// Positions that Lago has complained about before they were recorded: they are not booked.
    complained: Mutex<HashSet<Seq>>,
    /// Those that are to be parked, whatever Lago says when they are sent again.
    complaints: Mutex<Complaints>,
    /// What Lago never counts, and a person has accepted.
    accepted: Mutex<BTreeMap<Name, Accepted>>,
    /// Something was booked whose billing period is not known.
    pub(super) without_period: Notify,
    /// Held by whoever takes events out, from looking what they are to having said so.
    pub(crate) taking_back: tokio::sync::Mutex<()>,
}

impl Books {
    /// Empty until [`Books::lead`].
    pub(crate) fn new(journal: Journal) -> Self {
        Self {
            journal,
            leads: AtomicBool::new(false),
            ledger: Mutex::default(),
            results: Mutex::default(),
            complained: Mutex::default(),
            complaints: Mutex::default(),
            accepted: Mutex::default(),
            without_period: Notify::new(),
            taking_back: tokio::sync::Mutex::default(),
        }
    }

    /// Takes the ledger and the complaints as the journal has them: another replica may have recorded more, and what this
    /// one has booked and not recorded comes again.
    ///
    /// # Errors
    /// The journal cannot be read. Then nothing is changed.
    pub(crate) async fn lead(&self) -> Result<(), JournalError> {
        // Whoever takes an event out has told the journal of it before the ledger.
        let _taking_back = self.taking_back.lock().await;
        self.load().await?;
        self.leads.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes what the journal has where another replica books, so that it can be shown.
    ///
    /// # Errors
    /// The journal cannot be read. Then nothing is changed.
    pub(crate) async fn look(&self) -> Result<(), JournalError> {
        let _taking_back = self.taking_back.lock().await;
        if self.leads() { Ok(()) } else { self.load().await }
    }

    async fn load(&self) -> Result<(), JournalError> {
        let read = |reader: &mut dyn Reader| {
            let accepted = reader.values(accepted::PREFIX)?;
            Ok((reader.values(PREFIX)?, reader.values(TAKEN_PREFIX)?, Complaints::load(reader)?, accepted))
        };
        let (pairs, taken, (complaints, mut settled), accepted) = self.journal.read(read).await?;
        let (ledger, unreadable) = Ledger::load(pairs, taken);
        if unreadable > 0 {
            tracing::error!(count = unreadable, "{unreadable} pages of the ledger cannot be read and begin anew");
        }
        let (accepted, stale) = accepted::load(accepted, &ledger);
        settled.extend(stale);
        *self.ledger() = ledger;
        *self.complaints() = complaints;
        *self.accepted() = accepted;
        for names in settled.chunks(FORGOTTEN_AT_ONCE) {
            let forget = names.iter().map(|name| Action::Remember { name: name.clone(), value: Vec::new() });
            if let Err(error) = self.journal.act(forget.collect()).await {
                tracing::debug!(error = %error, "settled complaints stay until the next start: {error}");
            }
        }
        Ok(())
    }

    /// Another replica books from now on.
    pub(crate) fn stand_by(&self) {
        self.leads.store(false, Ordering::Release);
    }

    /// Whether what is booked here is all that is booked.
    pub(crate) fn leads(&self) -> bool {
        self.leads.load(Ordering::Acquire)
    }

    pub(crate) fn complaints(&self) -> MutexGuard<'_, Complaints> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn accepted(&self) -> MutexGuard<'_, BTreeMap<Name, Accepted>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts what is missing of periods of a subscription that have ended: Lago never counts it, and it is told no more.
    /// The names of what was missing, with how many events; none where nothing was.
    ///
    /// # Errors
    /// The journal takes nothing. Then nothing is changed.
    pub(crate) async fn accept(
        &self,
        (subscription, code): (&str, Option<&str>),
        (reason, actor): (&str, String),
        now: Timestamp,
    ) -> Result<Vec<(Name, u64)>, JournalError> {
        let missing: Vec<(Name, Accepted, u64)> = {
            let results = self.results();
            let meant = results.ended.iter().filter(|(name, ended)| {
                let is_meant = name.0 == subscription && code.is_none_or(|code| code == name.1);
                is_meant && ended.compared.state == State::Missing
            });
            let accept = |(name, ended): (&Name, &super::past::Ended)| {
                let accepted = Accepted::new(&ended.booked, &ended.compared, now, reason);
                (name.clone(), accepted, ended.compared.missing_events)
            };
            meant.take(ACCEPTED_AT_ONCE).map(accept).collect()
        };
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<_> = missing.iter().map(|(name, _, events)| (&name.1, events)).collect();
        let detail = serde_json::json!({ "subscription": subscription, "missing_events": rows, "reason": reason });
        let audit = AuditRecord { at: now, actor, action: "usage.accept".to_owned(), detail };
        let values = missing.iter().filter_map(|(name, accepted, _)| accepted.value(name));
        let values = values.map(|(name, value)| Action::Remember { name, value });
        self.journal.act(values.chain([Action::Audit(audit)]).collect()).await?;
        let mut results = self.results();
        let mut done = Vec::new();
        for (name, accepted, events) in missing {
            if let Some(ended) = results.ended.get_mut(&name).filter(|own| accepted.covers(&own.booked, &own.compared))
            {
                ended.compared.state = State::Accepted;
            }
            self.accepted().insert(name.clone(), accepted);
            done.push((name, events));
        }
        Ok(done)
    }

    /// Books what Lago has confirmed, as it is recorded; gives the values that the journal is to remember.
    pub(crate) fn record(&self, confirmed: Vec<(Seq, Entry)>, now: Timestamp) -> Vec<(String, Vec<u8>)> {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ledger = self.ledger();
        let mut changed = BTreeSet::new();
        for (seq, (name, at, units)) in confirmed {
            if !complained.remove(&seq) {
                ledger.book(&name, at, units, now);
                changed.insert(name);
            }
        }
        if changed.iter().any(|name| ledger.pair(name).is_some_and(|pair| pair.lacks_a_period(now))) {
            self.without_period.notify_one();
        }
        ledger.take_record(&changed)
    }

    /// Lago has complained about what is not recorded yet.
    pub(crate) fn leave_out(&self, seq: Seq) {
        self.complained.lock().unwrap_or_else(PoisonError::into_inner).insert(seq);
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the journal is told of events that were booked and are not counted, in the commit that parks them: Lago has
    /// confirmed them and said later that it does not count them. [`Books::take_back`] comes after it.
    pub(crate) fn taken(events: &[StoredEvent], catalogue: Option<&Catalogue>) -> (Vec<(Seq, Taken)>, Vec<Action>) {
        let taken = |event: &StoredEvent| Some((event.seq, Taken::new(entry(event, catalogue)?)));
        let taken: Vec<(Seq, Taken)> = events.iter().filter_map(taken).collect();
        let values = taken.iter().filter_map(|(seq, taken)| taken.value(*seq));
        let actions = values.map(|(name, value)| Action::Remember { name, value }).collect();
        (taken, actions)
    }

    /// Takes events out of the ledger.
    pub(crate) fn take_back(&self, taken: Vec<(Seq, Taken)>) {
        let mut ledger = self.ledger();
        taken.into_iter().for_each(|(seq, taken)| ledger.take_back(seq, taken));
    }

    pub(crate) fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an event is in the ledger: its pair, when it happened and how much it is.
pub(crate) type Entry = (Name, Timestamp, Option<Quantity>);

/// What a stored event is in the ledger.
pub(crate) fn entry(event: &StoredEvent, catalogue: Option<&Catalogue>) -> Option<Entry> {
    let stored = Stored::read(&event.body)?;
    let (subscription, at) = (stored.external_subscription_id.as_deref()?, stored.time()?);
    let units = catalogue.and_then(|catalogue| catalogue.units(&stored));
    Some(((subscription.to_owned(), stored.code.to_string()), at, units))
}
