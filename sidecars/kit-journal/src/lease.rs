//! Holding the right to deliver to a sink: asked for again every second, and lost in time.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::JournalError;
use crate::journal::Journal;

/// How often a lease is asked for again.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// This part of a lease's time is not used, so that nobody else has it yet when it counts as lost here.
const MARGIN: u32 = 10;

/// The right to deliver to a sink. Dropping it lets it run out; [`Held::give_back`] ends it at once.
#[derive(Debug)]
pub struct Held {
    journal: Journal,
    sink: String,
    epoch: u64,
    /// `None` where it does not end.
    keeping: Option<Keeping>,
}

#[derive(Debug)]
struct Keeping {
    until: watch::Receiver<Instant>,
    task: JoinHandle<()>,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Held {
    pub(crate) async fn ask(journal: Journal, sink: &str) -> Result<Option<Self>, JournalError> {
        let asked = Instant::now();
        let Some(lease) = journal.ask_lease(sink).await? else { return Ok(None) };
        let keeping = lease.lasts.map(|lasts| {
            let (until, seen) = watch::channel(end(asked, lasts));
            let task = tokio::spawn(keep(journal.clone(), sink.to_owned(), lease.epoch, until));
            Keeping { until: seen, task }
        });
        Ok(Some(Self { journal, sink: sink.to_owned(), epoch: lease.epoch, keeping }))
    }

    /// What settlements are stamped with.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it never ends: nobody else can open the journal.
    pub fn is_for_good(&self) -> bool {
        self.keeping.is_none()
    }

    /// Whether nobody else may have it now.
    pub fn is_held(&self) -> bool {
        self.keeping.as_ref().is_none_or(|keeping| Instant::now() < *keeping.until.borrow())
    }

    /// Waits until it is lost.
    pub async fn lost(&mut self) {
        let Some(keeping) = &mut self.keeping else { return std::future::pending().await };
        loop {
            let until = *keeping.until.borrow_and_update();
            if Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                // Nobody keeps it any more: it lasts until its end.
                changed = keeping.until.changed() => if changed.is_err() {
                    tokio::time::sleep_until(until.into()).await;
                },
            }
        }
    }

    /// Lets another replica have it at once.
    ///
    /// # Errors
    /// The store cannot be told; the lease ends by itself.
    pub async fn give_back(mut self) -> Result<(), JournalError> {
        if self.keeping.take().is_none() {
            return Ok(());
        }
        self.journal.give_lease_back(&self.sink, self.epoch).await
    }
}

/// From when it was asked for, and not from when the answer came.
fn end(asked: Instant, lasts: Duration) -> Instant {
    asked + (lasts - lasts / MARGIN)
}

/// Asks again and again, until the store says that it is another one's.
async fn keep(journal: Journal, sink: String, epoch: u64, until: watch::Sender<Instant>) {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        let asked = Instant::now();
        match journal.ask_lease(&sink).await {
            Ok(Some(lease)) if lease.epoch == epoch => {
                if let Some(lasts) = lease.lasts {
                    until.send_replace(end(asked, lasts));
                }
            }
            Ok(_) => {
                until.send_replace(asked);
                return;
            }
            // The store may be back before the end.
            Err(error) => tracing::debug!(sink = %sink, error = %error, "the lease of {sink} cannot be kept now"),
        }
    }
}
