//! Holding the right to deliver to a sink: asked for again every second, and lost in time.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::engine::{Kept, Lease, LeaseKeeper};
use crate::error::JournalError;
use crate::journal::Journal;
use crate::request::Reply;

/// How often a lease is asked for again.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// This part of a lease's time is not used, so that nobody else has it yet when it counts as lost here.
const MARGIN: u32 = 10;
/// Renewals that wait for each other, and go together, at most: more than there are sinks.
const KEPT_AT_ONCE: usize = 64;

/// One renewal: the sink, the epoch, and where the answer goes.
pub(crate) type Keep = (String, u64, Reply<Option<Lease>>);

/// Starts the thread that renews leases, where the engine has something that does. It ends when nobody can ask it any more.
///
/// # Errors
/// There is no room for it.
pub(crate) fn start_keeping(keeper: Box<dyn LeaseKeeper>) -> std::io::Result<mpsc::Sender<Keep>> {
    let (asking, mut asked) = mpsc::channel::<Keep>(KEPT_AT_ONCE);
    let mut keeper = keeper;
    let keep = move || {
        while let Some(first) = asked.blocking_recv() {
            // Those that came meanwhile go with it: where an answer takes long, the last of many would come too late.
            let mut asking = vec![first];
            while asking.len() < KEPT_AT_ONCE
                && let Ok(next) = asked.try_recv()
            {
                asking.push(next);
            }
            // Nobody waits for these any more.
            asking.retain(|(.., answer)| !answer.is_closed());
            if asking.is_empty() {
                continue;
            }
            let leases: Vec<(&str, u64)> = asking.iter().map(|(sink, epoch, _)| (sink.as_str(), *epoch)).collect();
            let kept = keeper.keep(&leases);
            for (place, (.., answer)) in asking.into_iter().enumerate() {
                let said = match &kept {
                    Ok(kept) => match kept.get(place) {
                        Some(Kept::For(lease)) => Ok(Some(*lease)),
                        Some(Kept::Over) => Ok(None),
                        Some(Kept::NotNow) => Err(unavailable("somebody else's transaction holds the lease's row")),
                        None => Err(JournalError::NoAnswer),
                    },
                    Err(error) => Err(unavailable(kit::error::chain(error))),
                };
                let _ = answer.send(said);
            }
        }
    };
    std::thread::Builder::new().name("journal-leases".to_owned()).spawn(keep)?;
    Ok(asking)
}

fn unavailable(why: impl Into<String>) -> JournalError {
    JournalError::Unavailable(why.into())
}

/// Until when a lease is held, for whoever works under it.
#[derive(Clone, Debug)]
pub struct LeaseEnd {
    /// `None` where it does not end.
    until: Option<watch::Receiver<Instant>>,
}

impl LeaseEnd {
    /// Whether nobody else may have it now.
    pub fn is_held(&self) -> bool {
        self.until.as_ref().is_none_or(|until| Instant::now() < *until.borrow())
    }

    /// Waits until it is lost.
    pub async fn lost(&mut self) {
        let Some(until) = &mut self.until else { return std::future::pending().await };
        loop {
            let end = *until.borrow_and_update();
            if Instant::now() >= end {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(end.into()) => {}
                // Nobody keeps it any more: it lasts until its end.
                changed = until.changed() => if changed.is_err() {
                    tokio::time::sleep_until(end.into()).await;
                },
            }
        }
    }
}

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
            let (until, seen) = watch::channel(end_of(asked, lasts));
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

    /// Tells whoever works under it when it is lost.
    pub fn end(&self) -> LeaseEnd {
        LeaseEnd { until: self.keeping.as_ref().map(|keeping| keeping.until.clone()) }
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
fn end_of(asked: Instant, lasts: Duration) -> Instant {
    asked + (lasts - lasts / MARGIN)
}

/// Asks again and again, until the store says that it is another one's.
async fn keep(journal: Journal, sink: String, epoch: u64, until: watch::Sender<Instant>) {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        let asked = Instant::now();
        match journal.keep_lease(&sink, epoch).await {
            Ok(Some(lease)) if lease.epoch == epoch => {
                if let Some(lasts) = lease.lasts {
                    until.send_replace(end_of(asked, lasts));
                }
            }
            // Somebody else's, or of a journal that has lost what this process did.
            Ok(_) | Err(JournalError::Forgotten(_)) => {
                until.send_replace(asked);
                return;
            }
            // The store may be back before the end.
            Err(error) => tracing::debug!(sink = %sink, error = %error, "the lease of {sink} cannot be kept now"),
        }
    }
}
