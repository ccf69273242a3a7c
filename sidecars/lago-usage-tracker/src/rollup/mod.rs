//! Roll-up: many small events of a metric that adds up become few, before they are sent.
//!
//! What is to be rolled up is stored as it came, under a type of its own, and read here when its window is over. The
//! sums and how far has been read are one commit, so that a crash leaves both or neither, and each sum has its bytes and
//! its transaction id before it is sent for the first time.

mod group;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_journal::engine::{Action, ExceptionRow, Reader, Settlement};
use kit_journal::{AppendError, EventFilter, EventHead, Held, Journal, JournalError, NewEvent, Seq, StoredEvent};

use crate::admit::{READY, ROLLUP, Stored};
use crate::catalogue::{Catalogue, Failed, Known};
use crate::check::{Kind, Policy, check};
use crate::config::{ChecksSection, RollupSection};
use crate::metrics::UsageMetrics;
use group::Groups;
pub(crate) use group::SOURCE;

/// Name of the row in the journal that says how far has been read.
pub(crate) const SINK: &str = "rollup";
/// Events of one commit at most, and about so many bytes of them.
const MOST: usize = 10_000;
const MOST_BYTES: u64 = 8 << 20;
/// Events of other kinds that are passed by in one step at most.
const PASSED_BY: u64 = 100_000;
/// Events read at a time.
const PAGE: u32 = 1_000;
/// Lago's ends are whole seconds.
const NEAR_AN_END_MILLIS: i64 = 1_000;
/// How often it is looked whether a window is over.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Records that are looked at to find the sum that holds an event.
const LOOKED_AT: u64 = 20_000;

/// An event on the way that its metric goes to Lago: to be rolled up, where that is configured, or as it is.
pub(crate) fn route(codes: &BTreeSet<String>, mut event: NewEvent) -> NewEvent {
    let is_summed = !codes.is_empty()
        && event.head.event_type == READY
        && Stored::read(&event.body).is_some_and(|stored| codes.contains(&*stored.code));
    if is_summed {
        ROLLUP.clone_into(&mut event.head.event_type);
    }
    event
}

/// Reads what is to be rolled up, and stores what comes out.
pub(crate) struct Rollup {
    pub(crate) journal: Journal,
    pub(crate) known: Known,
    pub(crate) clock: SharedClock,
    pub(crate) checks: ChecksSection,
    pub(crate) section: RollupSection,
    pub(crate) metrics: UsageMetrics,
}

/// Whether an event is to be added up with others.
pub(crate) fn wants(head: &EventHead) -> bool {
    head.event_type == ROLLUP
}

/// What one commit is to hold.
struct Step {
    rolled: group::Rolled,
    cursor: Seq,
    passed_by: u64,
    /// A record that cannot be read: parked, so that what is behind it goes on.
    damaged: Option<ExceptionRow>,
    /// There may be more that can be read now.
    more: bool,
}

impl Rollup {
    /// Whether there is anything to do: metrics are configured, or were, and events of that time may be left.
    ///
    /// # Errors
    /// The journal cannot be read or written.
    pub(crate) async fn prepare(journal: &Journal, section: &RollupSection) -> Result<bool, JournalError> {
        if !section.codes.is_empty() {
            journal.act(vec![Action::Register { sink: SINK.to_owned() }]).await?;
            return Ok(true);
        }
        let known = journal.read(|reader| match reader.sink(SINK) {
            Ok(_) => Ok(true),
            Err(JournalError::UnknownSink(_)) => Ok(false),
            Err(error) => Err(error),
        });
        known.await
    }

    pub(crate) async fn run(self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        let mut in_doubt = false;
        let mut held: Option<Held> = None;
        loop {
            let step = tokio::select! {
                () = stop.stopped() => break,
                step = self.step_alone(&mut held, &mut in_doubt) => step,
            };
            match step {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    let error = kit::error::chain(&error);
                    tracing::warn!(error = %error, "usage cannot be rolled up now, trying again: {error}");
                }
            }
            tokio::select! {
                () = stop.stopped() => break,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        if let Some(held) = held {
            // Where it fails it runs out.
            let _ = held.give_back().await;
        }
        Ok(())
    }

    /// As [`Self::step`], where no other replica does it.
    async fn step_alone(&self, held: &mut Option<Held>, in_doubt: &mut bool) -> Result<bool, JournalError> {
        if !held.as_ref().is_some_and(Held::is_held) {
            *held = self.journal.lease(SINK).await?;
        }
        match held {
            Some(held) => self.step(held.epoch(), in_doubt).await,
            None => Ok(false),
        }
    }

    /// One commit; true when there may be another one to make at once.
    async fn step(&self, lease: u64, in_doubt: &mut bool) -> Result<bool, JournalError> {
        if *in_doubt {
            // What is asked later is done later: when this is answered, it is known how far the journal is.
            self.journal.settle(vec![Settlement { sink: SINK.to_owned(), lease, ..Settlement::default() }]).await?;
            *in_doubt = false;
        }
        let seen = self.known.current();
        // Which property is added up only Lago says. Where it never will, everything goes on as it is.
        if seen.catalogue.is_none() && seen.failed != Some(Failed::Refused) {
            return Ok(false);
        }
        #[expect(clippy::cast_possible_truncation, reason = "validated to at most an hour")]
        let window = ((self.section.window_seconds * 1000.0) as i64).max(1);
        let now = self.clock.now();
        let begin_of = |at: Timestamp| Timestamp::from_millis(at.as_millis().div_euclid(window).saturating_mul(window));
        // A sum is lost whole where it reaches over the end of its subscription. So what is added up is what came before
        // Lago has told of every end until then, unless it does not tell now.
        let asked_at = seen.catalogue.as_ref().filter(|_| seen.failed.is_none()).map(|known| known.asked_at());
        let over = begin_of(asked_at.map_or(now, |asked_at| asked_at.min(now)));
        let not_yet = over..begin_of(now).plus_millis(window);
        let is_behind = over < begin_of(now);
        let tail = *self.journal.tail().borrow();
        let (checks, catalogue) = (self.checks.clone(), seen.catalogue);
        let read = self.journal.browse(move |reader| {
            let field = |event: &StoredEvent| {
                let stored = Stored::read(&event.body)?;
                let catalogue = catalogue.as_deref()?;
                if asked_at.is_some_and(|asked_at| !is_settled(&stored, catalogue, asked_at)) {
                    return None;
                }
                // What does not fit is looked at on its own, by whoever sends.
                let finding = check(&stored, catalogue, &checks, now);
                let is_only_late = |kind: Kind| kind == Kind::Late && kind.policy(&checks) == Policy::Pass;
                finding.is_none_or(|finding| is_only_late(finding.kind)).then_some(())?;
                summed_field(catalogue, &stored.code)
            };
            let step = read_step(reader, &not_yet, field)?;
            let cursor =
                step.as_ref().map_or_else(|| reader.sink(SINK).map(|row| row.cursor), |step| Ok(step.cursor))?;
            Ok((step, cursor))
        });
        let (step, cursor) = read.await?;
        if is_behind && cursor < tail {
            self.known.confirm(begin_of(now));
        }
        let Some(step) = step else { return Ok(false) };
        let settlement = Settlement {
            sink: SINK.to_owned(),
            lease,
            cursor: step.cursor,
            filtered: step.passed_by,
            set: step.damaged.into_iter().collect(),
            ..Settlement::default()
        };
        let (summed, sums, alone) = (step.rolled.summed, step.rolled.sums, step.rolled.alone);
        match self.journal.append_instead(step.rolled.events, settlement).await {
            Ok(_) => {
                self.metrics.rolled_up(summed, sums, alone);
                Ok(step.more)
            }
            Err(AppendError::Busy) => Ok(false),
            Err(error) => {
                // It may be stored yet, and what is read now would be stored beside it.
                tracing::debug!(error = %error, "a roll-up is in doubt: {error}");
                *in_doubt = true;
                Ok(true)
            }
        }
    }
}

/// Whether it is known what was active when an event happened: before Lago was asked, and not just when its subscription
/// ended, where the end of one second is that of another.
fn is_settled(event: &Stored<'_>, catalogue: &Catalogue, asked_at: Timestamp) -> bool {
    let Some(at) = event.time() else { return false };
    let subscription = event.external_subscription_id.as_deref().unwrap_or_default();
    let mut ends = catalogue.subscriptions(subscription).iter().filter_map(|own| own.terminated_at);
    at < asked_at && !ends.any(|end| (at.as_millis() - end.as_millis()).abs() <= NEAR_AN_END_MILLIS)
}

/// The property that a metric adds up, if that is what it does.
fn summed_field(catalogue: &Catalogue, code: &str) -> Option<String> {
    let metric = catalogue.metric(code)?;
    let is_sum = metric.aggregation_type == kit_lago::api::Aggregation::SumAgg;
    metric.counted_field().filter(|_| is_sum).map(str::to_owned)
}

/// Reads on from the cursor to the first event whose window is not over; `None` where there is nothing.
fn read_step(
    reader: &mut dyn Reader,
    not_yet: &Range<Timestamp>,
    field: impl Fn(&StoredEvent) -> Option<String>,
) -> Result<Option<Step>, JournalError> {
    let begin = reader.sink(SINK)?.cursor;
    let (mut cursor, mut passed_by, mut taken, mut bytes) = (begin, 0, 0, 0);
    let mut groups = Groups::default();
    let more = 'read: loop {
        let (events, with_rows) = match reader.events_after(SINK, cursor, PAGE, MOST_BYTES) {
            Ok(read) => read,
            Err(JournalError::Damaged { seq, what }) if cursor == begin => {
                tracing::error!(seq, "event {seq} is parked and not rolled up: its record is damaged ({what})");
                let reason = format!("its record in the journal is damaged: {what}");
                let damaged = Some(ExceptionRow::parked_untried(seq, reason));
                return Ok(Some(Step {
                    rolled: group::Rolled::default(),
                    cursor: seq,
                    passed_by: 0,
                    damaged,
                    more: true,
                }));
            }
            // First what has been read.
            Err(JournalError::Damaged { .. }) => break true,
            Err(error) => return Err(error),
        };
        let Some(last) = events.iter().map(|event| event.seq).chain(with_rows.iter().copied()).max() else {
            break false;
        };
        for event in events {
            if wants(&event.head) {
                // What is further ahead was received before a clock was set back, and nothing is to wait for that.
                if not_yet.contains(&event.at) {
                    break 'read false;
                }
                groups.take(&event, field(&event).as_deref());
                taken += 1;
                bytes += event.body.len() as u64;
            } else {
                passed_by += 1;
            }
            cursor = event.seq;
            if taken >= MOST || bytes >= MOST_BYTES || passed_by >= PASSED_BY {
                break 'read true;
            }
        }
        // What an operator has dropped is not read again.
        cursor = cursor.max(last);
    };
    Ok((cursor > begin).then(|| Step { rolled: groups.finish(), cursor, passed_by, damaged: None, more }))
}

/// Where an event that was to be rolled up is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its window lasts, or it has not been read yet.
    Waiting,
    /// In the sum at this position, or on its own there.
    At(Seq),
    /// Rolled up, too long ago to be found.
    Somewhere,
}

/// Where an event that was to be rolled up has gone.
///
/// # Errors
/// The journal cannot be read.
pub(crate) fn find(
    reader: &mut dyn Reader,
    event: &StoredEvent,
    catalogue: Option<&Catalogue>,
) -> Result<Place, JournalError> {
    if reader.sink(SINK)?.cursor < event.seq {
        return Ok(Place::Waiting);
    }
    let field = Stored::read(&event.body).and_then(|stored| summed_field(catalogue?, &stored.code));
    let mut filter = EventFilter::default();
    (filter.subject, filter.since) = (Some(event.head.subject.clone()), Some(event.at));
    let (mut before, mut left) = (None, LOOKED_AT);
    while left > 0 {
        let page = reader.search(&filter, before, PAGE, left)?;
        for found in &page.found {
            let head = &found.event.head;
            let is_later = found.event.seq > event.seq;
            let is_ours = is_later && head.source == SOURCE && head.event_type == READY;
            let holds = || field.as_deref().is_some_and(|field| group::holds(&head.key, event, field));
            if is_ours && (head.key == event.head.key || holds()) {
                return Ok(Place::At(found.event.seq));
            }
        }
        left = left.saturating_sub(page.examined.max(1));
        before = page.next.filter(|next| *next > event.seq);
        if before.is_none() {
            break;
        }
    }
    Ok(Place::Somewhere)
}
