//! Whether the store can be read, as far as those who read have found. A database that commits and does not answer who
//! delivers would be seen by nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::error::JournalError;
use crate::journal::Journal;

/// How often it is tried again whether it can be read.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// What is known of it.
pub(crate) struct Reads {
    /// Why it cannot be read; `None` where it can.
    unreadable: watch::Sender<Option<String>>,
    is_tried: Arc<AtomicBool>,
}

impl Default for Reads {
    fn default() -> Self {
        Self { unreadable: watch::Sender::new(None), is_tried: Arc::default() }
    }
}

impl Reads {
    pub(crate) fn seen(&self) -> watch::Receiver<Option<String>> {
        self.unreadable.subscribe()
    }

    /// A read has failed like this. From now on it is tried, whoever else asks, until one succeeds. Within a runtime.
    pub(crate) fn failed(&self, error: &JournalError, journal: &Journal) {
        let reason = kit::error::chain(error);
        if self.unreadable.send_replace(Some(reason.clone())).is_none() {
            tracing::warn!(reason = %reason, "the journal cannot be read: {reason}");
        }
        if !self.is_tried.swap(true, Ordering::AcqRel) {
            let (journal, unreadable, is_tried) =
                (journal.clone(), self.unreadable.clone(), Arc::clone(&self.is_tried));
            tokio::spawn(async move {
                // Not beyond the journal's end.
                while !journal.is_over() {
                    tokio::time::sleep(TRY_EVERY).await;
                    let last = *journal.tail().borrow();
                    // What those who deliver read, and no copy of it.
                    match journal.ask(move |reader| reader.event(last).map(drop)).await {
                        Err(error) if error.is_of_the_database() => {
                            unreadable.send_replace(Some(kit::error::chain(&error)));
                        }
                        _ => break,
                    }
                }
                is_tried.store(false, Ordering::Release);
                unreadable.send_replace(None);
                tracing::info!("the journal can be read again");
            });
        }
    }
}
