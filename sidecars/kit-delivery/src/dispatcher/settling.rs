//! Bringing results to the journal: one settlement at a time and in order, because each says how far the
//! cursor is and leaves out what the one before has said.

use std::time::{Duration, Instant};

use kit_journal::engine::Settlement;
use kit_journal::{JournalError, Seq};
use tokio::task::JoinHandle;

use super::work::Work;
use crate::metrics::{OwnGauges, SinkGauges};
use crate::window::Settled;

/// After a settlement the next one waits this long: under load hundreds of results share the pages that a
/// settlement writes, and a single one is recorded at once.
const SETTLE_EVERY: Duration = Duration::from_millis(10);
/// Between two attempts to settle when the journal refuses.
pub(super) const SETTLE_AGAIN: Duration = Duration::from_millis(500);
/// How long deliveries in flight may take to finish when the daemon stops …
const FINISH_WITHIN: Duration = Duration::from_secs(4);
/// … and how long the journal is asked again to take their results.
pub(super) const RECORD_WITHIN: Duration = Duration::from_secs(2);
const RECORD_AGAIN: Duration = Duration::from_millis(100);
/// A journal that goes on refusing is told of so often: a full disk has no room for a line at every attempt.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// A settlement on its way.
pub(super) struct Settling {
    /// Kept until the journal has it.
    settlement: Settlement,
    task: JoinHandle<Result<(), JournalError>>,
}

/// The settlements that the journal refused since it last took one.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Refusals {
    /// One more; true where it is to be told.
    fn add(&mut self, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let tells = self.told.is_none_or(|told| now.duration_since(told) >= TOLD_EVERY);
        if tells {
            self.told = Some(now);
        }
        tells
    }

    /// The journal has taken one: for how long it refused, where it did.
    fn end(&mut self, now: Instant) -> Option<Duration> {
        std::mem::take(self).since.map(|since| now.duration_since(since))
    }
}

impl Work {
    /// Deliveries whose results are not on the disk: not offered yet, on their way, or refused. Up to a bound
    /// of them deliveries go on whatever the journal can write: what it holds already can be read.
    pub(super) fn unsettled(&self) -> usize {
        let offered = self.settling.as_ref().map(|settling| &settling.settlement);
        let refused = self.settle_again.as_ref().map(|(_, settlement)| settlement);
        self.window.unsettled() + offered.or(refused).map_or(0, |settlement| settlement.attempts.len())
    }

    /// What can be recorded now, with what the sink wants to remember of it.
    pub(super) fn settlement(&mut self) -> Option<Settlement> {
        let Settled { mut settlement, delivered } = self.window.settlement(&self.name)?;
        settlement.lease = self.lease.epoch();
        if !delivered.is_empty() {
            settlement.values = self.shell.sink.recording(&delivered);
        }
        if !self.shell.sink.repeats() {
            settlement.once = delivered;
        }
        Some(settlement)
    }

    /// Whether this one is delivered or put off, and the journal has not said that it knows.
    pub(super) fn is_settling(&self, seq: Seq) -> bool {
        let offered = self.settling.as_ref().map(|settling| &settling.settlement);
        let refused = self.settle_again.as_ref().map(|(_, settlement)| settlement);
        let holds = |settlement: &Settlement| {
            settlement.once.contains(&seq)
                || settlement.delivered.contains(&seq)
                || settlement.set.iter().any(|row| row.seq == seq)
        };
        self.window.is_to_be_settled(seq)
            || self.window.has_row_to_settle(seq)
            || offered.or(refused).is_some_and(holds)
    }

    pub(super) fn settle(&mut self) {
        if self.settling.is_some() {
            return;
        }
        let settlement = match self.settle_again.take() {
            Some((due, settlement)) if due > Instant::now() => {
                self.settle_again = Some((due, settlement));
                return;
            }
            Some((_, settlement)) => settlement,
            None => match self.settlement() {
                Some(settlement) => settlement,
                None => return,
            },
        };
        let journal = self.shell.journal.clone();
        let sent = settlement.clone();
        let task = tokio::spawn(async move {
            journal.settle(vec![sent]).await?;
            tokio::time::sleep(SETTLE_EVERY).await;
            Ok(())
        });
        self.settling = Some(Settling { settlement, task });
    }

    pub(super) fn settled(&mut self, result: Result<(), JournalError>) {
        match (result, self.settling.take()) {
            (Err(error), Some(settling)) => self.refused(settling.settlement, &error),
            (Ok(()), _) => self.taken(),
            (Err(_), None) => {}
        }
    }

    /// The journal has taken a settlement.
    pub(super) fn taken(&mut self) {
        if let Some(refused) = self.refusals.end(Instant::now()) {
            let seconds = refused.as_secs();
            tracing::info!(sink = %self.name, seconds, "results are recorded again, after {seconds} s");
        }
    }

    /// Keeps what the journal refused; offering the same again is safe.
    pub(super) fn refused(&mut self, settlement: Settlement, error: &JournalError) {
        if self.refusals.add(Instant::now()) {
            let error = kit::error::chain(error);
            tracing::warn!(sink = %self.name, error = %error, "results cannot be recorded yet: {error}");
        }
        self.settle_again = Some((Instant::now() + SETTLE_AGAIN, settlement));
    }

    /// The right to deliver is lost: cuts off what is under way, and records nothing. Whoever has it now begins with what
    /// is recorded.
    pub(super) async fn leave(&mut self) {
        tracing::warn!(
            sink = %self.name,
            in_flight = self.in_flight.len(),
            "this replica delivers to {} no longer: its lease was not renewed in time",
            self.name
        );
        self.in_flight.shutdown().await;
        if let Some(settling) = self.settling.take() {
            settling.task.abort();
            // Offered already or never: nothing of it comes after what is asked for next.
            let _ = settling.task.await;
        }
        self.say_how_many_parked(true);
        self.stand_down();
    }

    /// Another replica delivers from here on.
    pub(super) fn stand_down(&self) {
        {
            // How the sink is doing is for whoever delivers to say.
            let mut status = self.shell.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            (status.in_flight, status.circuit, status.stalled) = (0, "closed", false);
        }
        // So are the numbers: added up over replicas they are the journal's.
        self.shell.metrics.set(&self.name, &SinkGauges::default());
        self.shell.metrics.set_own(&self.name, OwnGauges::default());
    }

    /// Lets deliveries in flight finish and settles what has been done.
    pub(super) async fn drain(&mut self) {
        let deadline = tokio::time::Instant::now() + FINISH_WITHIN;
        while let Ok(Some(finished)) = tokio::time::timeout_at(deadline, self.in_flight.join_next()).await {
            self.finished(finished);
        }
        self.in_flight.abort_all();
        self.say_how_many_parked(true);
        self.window.let_go(self.shell.clock.now());
        let mut left = Vec::new();
        let until = tokio::time::Instant::now() + RECORD_WITHIN;
        if let Some(settling) = self.settling.take()
            && !matches!(tokio::time::timeout_at(until, settling.task).await, Ok(Ok(Ok(()))))
        {
            left.push(settling.settlement);
        }
        left.extend(self.settle_again.take().map(|(_, settlement)| settlement));
        left.extend(self.settlement());
        for settlement in left {
            // A later one without an earlier one would count what that left open as delivered.
            if let Err(error) = self.record(settlement, until).await {
                let error = kit::error::chain(&error);
                tracing::warn!(error = %error, "last results cannot be recorded, the sink will see these events again: {error}");
                break;
            }
        }
    }

    /// Offers a settlement until it is taken or the time is over. The same one twice changes nothing.
    async fn record(&self, settlement: Settlement, until: tokio::time::Instant) -> Result<(), JournalError> {
        loop {
            let settled = tokio::time::timeout_at(until, self.shell.journal.settle(vec![settlement.clone()])).await;
            let late = |_| Err(JournalError::Unavailable("it takes too long".to_owned()));
            let result = settled.unwrap_or_else(late);
            if result.is_ok() || tokio::time::Instant::now() + RECORD_AGAIN > until {
                return result;
            }
            tokio::time::sleep(RECORD_AGAIN).await;
        }
    }
}

/// The end of the settlement on its way; never, where there is none.
pub(super) async fn settled(settling: &mut Option<Settling>) -> Result<(), JournalError> {
    match settling {
        Some(settling) => match (&mut settling.task).await {
            Ok(result) => result,
            Err(_) => Err(JournalError::Unavailable("settling was cut off".to_owned())),
        },
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_goes_on_refusing_is_told_of_once_a_minute() {
        let (mut refusals, began) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.end(began), None);

        let told = (0..=240).filter(|n| refusals.add(began + *n * SETTLE_AGAIN)).count();
        assert_eq!(told, 3, "at once, after a minute, and after two");
        assert_eq!(refusals.end(began + Duration::from_secs(121)), Some(Duration::from_secs(121)));

        assert!(refusals.add(began + Duration::from_secs(122)), "another one is told at once");
    }
}
