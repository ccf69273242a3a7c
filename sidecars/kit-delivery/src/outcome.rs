//! What a sink is to the engine, and what it may answer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kit_journal::engine::ExceptionState;
use kit_journal::{EventHead, JournalError, Seq, StoredEvent};

/// How many events go in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// At most so many.
    pub most: usize,
    /// At most about so many bytes of bodies, but always one.
    pub bytes: usize,
    /// How long the first of a batch waits for others.
    pub linger: Duration,
}

impl Batching {
    /// Every event on its own, at once.
    pub const NONE: Self = Self { most: 1, bytes: usize::MAX, linger: Duration::ZERO };

    /// How many go together of those that have failed so often: one that fails them all is to be alone soon.
    pub(crate) fn most_after(&self, attempts: u32) -> usize {
        match attempts {
            0 => self.most,
            1 => self.most.div_ceil(10),
            _ => 1,
        }
    }
}

/// What a sink makes of an event before it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// It is to be delivered, or the sink says only then whether it is.
    Wanted,
    /// Passed by, and only counted as filtered.
    Unwanted,
    /// Passed by, and listed with the reason.
    PassedBy(PassedBy, String),
    /// A dead letter before anybody was asked, with the reason: a person is to look at it. Replayed, it is delivered as it
    /// is.
    Parked(String),
}

/// How a delivery ends that nobody was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassedBy {
    /// It is not for this sink.
    Filtered,
    /// It is for nobody: a rule gives it up.
    Dropped,
}

impl PassedBy {
    pub(crate) fn state(self) -> ExceptionState {
        match self {
            Self::Filtered => ExceptionState::Filtered,
            Self::Dropped => ExceptionState::Dropped,
        }
    }
}

/// A place that events are delivered to.
pub trait Sink: Send + Sync + 'static {
    /// The sink's name in the journal, metrics and the API.
    fn name(&self) -> &str;

    /// Whether an event is for this sink; what is not is passed by and counted as filtered. The same answer for the
    /// same event, always.
    fn wants(&self, _head: &EventHead) -> bool {
        true
    }

    /// The same question with the whole event at hand, asked when it is loaded: [`Self::wants`], unless the sink has
    /// more to say. What is passed by is settled by that; the answer may be another one for events that come later.
    fn interest(&self, event: &StoredEvent) -> Interest {
        if self.wants(&event.head) { Interest::Wanted } else { Interest::Unwanted }
    }

    /// How many events go in one request.
    fn batching(&self) -> Batching {
        Batching::NONE
    }

    /// Whether an operator may have events delivered again that were delivered.
    fn repeats(&self) -> bool {
        true
    }

    /// Delivers several events and judges each; as many outcomes as events, in their order. Never hangs.
    fn deliver_all<'a>(&'a self, events: &'a [Arc<StoredEvent>]) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(events.len());
            for event in events {
                outcomes.push(self.deliver(event).await);
            }
            outcomes
        })
    }

    /// This replica delivers to the sink from now on: at the start, and whenever it has the lease again. What the sink
    /// keeps of the journal in memory is to be read anew, because others may have recorded deliveries meanwhile, and what
    /// was not recorded comes again: whatever lies up to `accepted` may have been brought here by whoever delivered
    /// before, and nothing behind it was. Nothing is delivered before this has returned.
    ///
    /// # Errors
    /// The journal cannot be read; asked again where the store is elsewhere.
    fn lead(&self, _accepted: Seq) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// This replica delivers no longer, for now or for good.
    fn stand_by(&self) {}

    /// Small values to remember in the same commit that records these as delivered, by name. Called once for every
    /// delivery that is recorded; what was delivered and not recorded comes again.
    fn recording(&self, _delivered: &[Seq]) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }

    /// Delivers one event and judges the answer. Never hangs: every wait inside has a limit. May be
    /// called again for the same event, with the same event id.
    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome>;
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What follows from it.
    pub verdict: Verdict,
    /// HTTP status where there was an answer.
    pub status: Option<u16>,
    /// The failure in a sentence, without secrets or bodies.
    pub error: Option<String>,
    /// First bytes of the response as text.
    pub response: Option<String>,
    /// The sink asked to be left alone this long.
    pub retry_after: Option<Duration>,
}

impl Outcome {
    /// The sink took the event.
    pub fn delivered(status: u16) -> Self {
        Self { verdict: Verdict::Delivered, status: Some(status), error: None, response: None, retry_after: None }
    }

    /// The sink took the event, and has no status to say so with.
    pub fn taken() -> Self {
        Self { verdict: Verdict::Delivered, status: None, error: None, response: None, retry_after: None }
    }

    /// The attempt failed.
    pub fn failed(failure: Failure, error: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Failed(failure),
            status: None,
            error: Some(error.into()),
            response: None,
            retry_after: None,
        }
    }

    /// Nobody is asked: the sink has found that the event is not for it, and why.
    pub fn passed_by(how: PassedBy, reason: impl Into<String>) -> Self {
        Self { verdict: Verdict::PassedBy(how), ..Self::failed(Failure::Unsendable, reason) }
    }

    /// Nobody was asked yet, and in about so long there may be reason to.
    pub fn withheld(error: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::failed(Failure::Withheld, error) }
    }

    /// The word for this outcome in metrics and the delivery log; a bounded set.
    pub fn word(&self) -> &'static str {
        match self.verdict {
            Verdict::Delivered => "delivered",
            Verdict::PassedBy(PassedBy::Filtered) => "filtered",
            Verdict::PassedBy(PassedBy::Dropped) => "dropped",
            Verdict::Failed(failure) => failure.word(),
        }
    }
}

/// What follows from an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The event is delivered.
    Delivered,
    /// It is not to be delivered here, which is listed with the outcome's error as the reason.
    PassedBy(PassedBy),
    /// It is not, and why decides what comes next.
    Failed(Failure),
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing answered: connection refused, reset, name not found, time-out.
    Unreachable,
    /// Something answered in place of the sink: 502, 503, 504.
    Unavailable,
    /// The sink refuses us, whatever we bring: 401 and 403 where they are no answer about an event. Nothing else is
    /// tried before a person has mended it.
    Denied,
    /// The sink answered about this event and may take it later: 408, 425, 429, 500 and other 5xx.
    Busy,
    /// The sink takes no more at the moment, of anybody: nothing was done, and nothing is wrong with the event. Costs it
    /// nothing however often.
    Throttled,
    /// Status fine, but the body does not say what success says; to be tried again.
    Condition,
    /// Status fine, but the body does not say what success says; to be parked by configuration.
    ConditionRefused,
    /// The sink will never take it like this: other 4xx.
    Refused,
    /// A redirect; following it would hand the event to whoever the answer names.
    Redirected,
    /// The event cannot be turned into a request at all.
    Unsendable,
    /// The sink is there, and has nowhere to put this event now; it may have later.
    Unroutable,
    /// Nobody was asked yet: the sink waits for something that it has to know about the event first. Costs the event
    /// nothing and says nothing about the sink; [`Outcome::retry_after`] is when it may know.
    Withheld,
}

impl Failure {
    /// The word in metrics and the delivery log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Unavailable => "unavailable",
            Self::Denied => "denied",
            Self::Busy => "busy",
            Self::Throttled => "throttled",
            Self::Condition => "condition",
            Self::ConditionRefused => "condition_refused",
            Self::Refused => "refused",
            Self::Redirected => "redirected",
            Self::Unsendable => "unsendable",
            Self::Unroutable => "unroutable",
            Self::Withheld => "withheld",
        }
    }

    /// Every word there is, for metrics that exist from the start.
    pub const ALL: [Self; 12] = [
        Self::Unreachable,
        Self::Unavailable,
        Self::Denied,
        Self::Busy,
        Self::Throttled,
        Self::Condition,
        Self::ConditionRefused,
        Self::Refused,
        Self::Redirected,
        Self::Unsendable,
        Self::Unroutable,
        Self::Withheld,
    ];

    /// Trying again may help.
    pub fn may_retry(self) -> bool {
        matches!(
            self,
            Self::Unreachable
                | Self::Unavailable
                | Self::Denied
                | Self::Busy
                | Self::Throttled
                | Self::Condition
                | Self::Unroutable
                | Self::Withheld
        )
    }

    /// The sink itself spoke about this event.
    pub fn is_answer_about_event(self) -> bool {
        !matches!(self, Self::Unreachable | Self::Unavailable | Self::Denied | Self::Throttled | Self::Withheld)
    }
}
