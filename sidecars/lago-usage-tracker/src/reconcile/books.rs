//! The ledger as the sink, the comparison and the API share it.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kit::clock::Timestamp;
use kit_journal::engine::{Action, Reader};
use kit_journal::{Journal, JournalError, Seq, StoredEvent};
use kit_lago::usage::Quantity;
use tokio::sync::Notify;

use super::Results;
use crate::admit::Stored;
use crate::catalogue::Catalogue;
use crate::complained::Complaints;
use crate::ledger::{Ledger, Name, PREFIX, TAKEN_PREFIX, Taken};

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
    /// Those that are to be parked when Lago says that it has them.
    complaints: Mutex<Complaints>,
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
            Ok((reader.values(PREFIX)?, reader.values(TAKEN_PREFIX)?, Complaints::load(reader)?))
        };
        let (pairs, taken, (complaints, settled)) = self.journal.read(read).await?;
        let (ledger, unreadable) = Ledger::load(pairs, taken);
        if unreadable > 0 {
            tracing::error!(count = unreadable, "{unreadable} pages of the ledger cannot be read and begin anew");
        }
        *self.ledger() = ledger;
        *self.complaints() = complaints;
        for name in settled {
            if let Err(error) = self.journal.put_value(&name, Vec::new()).await {
                tracing::debug!(error = %error, "a settled complaint stays until the next start: {error}");
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
