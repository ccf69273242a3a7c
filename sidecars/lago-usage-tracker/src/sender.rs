//! Batches to Lago's events API, and what its answers mean for each event.
//!
//! Lago stores all of a batch or nothing, and calls an event that it has already an error. A request that got no
//! answer may have been stored all the same. So the same bytes are sent again until Lago has said of each event that it
//! has taken it, that it has it already, or what is wrong with it.
//!
//! Source: getlago/lago-api `app/services/events/create_batch_service.rb` at v1.16.0 and at the head of 2026-08-21.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit::client::{ReadError, read_whole};
use kit::clock::{SharedClock, Timestamp};
use kit::retry::parse_retry_after;
use kit::secret::Secret;
use kit_delivery::{Batching, Failure, Outcome, Sink, Verdict};
use kit_journal::{EventHead, JournalError, Seq, StoredEvent};
use kit_lago::api::{SetupError, api_root, authorization};
use kit_lago::usage::answer::{batch_errors, holds_events, in_words, is_known, is_refusal};
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use url::Url;

use crate::admit::{READY, Stored, transaction_id};
use crate::catalogue::{Known, Seen};
use crate::check::{Finding, Kind, Policy, check};
use crate::complained::sentence;
use crate::config::{ChecksSection, LagoSection};
use crate::metrics::{Billed, UsageMetrics};
use crate::periods::Periods;
use crate::reconcile::{Books, Entry, entry};
use crate::withheld::{TOO_MANY, Withheld};

/// Name of the sink in the journal, metrics and the API.
pub(crate) const SINK: &str = "lago";
/// Lago answers with every event it took, and some fields more.
const ANSWER_BYTES: usize = 16 << 20;
/// What of an unexpected answer is kept for the delivery log.
const SHOWN_BYTES: usize = 500;
/// Bytes of a batch: nginx in front of Lago takes one mebibyte by default.
const BATCH_BYTES: usize = 768 << 10;
/// Requests made for one batch, each with fewer events than the one before.
const ROUNDS: usize = 8;
/// Longest wait that Lago may ask for in a request, and how often for one batch; Lago's own client waits as long.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
const PAUSES: usize = 3;
/// Longest that Lago is left alone on its own word after that: as long as between two probes.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// Sends usage events to Lago.
pub(crate) struct LagoSink {
    client: reqwest::Client,
    url: Url,
    authorization: HeaderValue,
    batching: Batching,
    metrics: UsageMetrics,
    checks: ChecksSection,
    known: Known,
    clock: SharedClock,
    /// At least so long between two requests, and when the next one may be made: a batch may be several.
    spacing: Option<Duration>,
    next_request: Mutex<Option<Instant>>,
    /// Lago has asked to be left alone until then, whichever request it said so to.
    paused_until: Mutex<Option<Instant>>,
    books: Arc<Books>,
    periods: Periods,
    /// What Lago has confirmed and is not recorded yet.
    confirmed: Mutex<HashMap<Seq, Entry>>,
    withheld: Mutex<Withheld>,
}

/// What a request said about the events in it.
enum Said {
    /// Of all of them the same.
    All(Outcome),
    /// Of each, by its place; `None` is nothing, because others were wrong.
    Each(Vec<Option<Outcome>>),
}

impl LagoSink {
    /// Sends with `client` to the API of `section`.
    ///
    /// # Errors
    /// The address or the key cannot be right.
    pub(crate) fn new(
        (section, checks): (&LagoSection, &ChecksSection),
        client: reqwest::Client,
        key: &Secret,
        known: Known,
        clock: SharedClock,
        metrics: UsageMetrics,
        books: Arc<Books>,
    ) -> Result<Self, SetupError> {
        let linger = Duration::try_from_secs_f64(section.linger_seconds).unwrap_or_default();
        let root = api_root(section.api_url.as_deref().unwrap_or_default())?;
        let url = root.join("events/batch").map_err(|_| SetupError::BadUrl("not a URL"))?;
        Ok(Self {
            client,
            url,
            authorization: authorization(key)?,
            batching: Batching { most: section.batch_size, bytes: BATCH_BYTES, linger },
            metrics,
            checks: checks.clone(),
            known,
            clock,
            spacing: Duration::from_secs(1).checked_div(section.rate_per_second),
            next_request: Mutex::default(),
            paused_until: Mutex::default(),
            periods: Periods::new(Arc::clone(&books)),
            books,
            confirmed: Mutex::default(),
            withheld: Mutex::default(),
        })
    }

    /// The billing periods that it goes by; whoever runs them asks Lago.
    pub(crate) fn periods(&self) -> Periods {
        self.periods.clone()
    }

    /// Notes what Lago has confirmed, for when it is recorded.
    fn confirm(&self, event: &StoredEvent) {
        if let Some(entry) = entry(event, self.known.current().catalogue.as_deref()) {
            self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).insert(event.seq, entry);
        }
    }

    /// Outcomes of events that are not to be sent; of those that are, what they are sent in spite of. Nothing is waited
    /// for: what does not fit, and may fit what Lago knows by now, comes again after the next look at Lago.
    fn look_at(&self, events: &[&StoredEvent]) -> Vec<Result<Option<Kind>, Outcome>> {
        let seen = self.known.current();
        if seen.is_first_look() {
            let first = |event: &&StoredEvent| {
                Err(Outcome::withheld("Lago has not been asked yet what it knows", self.known.doubt(event.at)))
            };
            return events.iter().map(first).collect();
        }
        if seen.catalogue.is_none() && seen.may_tell() {
            // Lago is away as long as it cannot be asked: it might take what it never bills.
            let text = "Lago has never told yet what it knows, and cannot be asked now";
            return vec![Err(Outcome::failed(Failure::Unreachable, text)); events.len()];
        }
        let told_at = seen.catalogue.as_ref().map(|catalogue| catalogue.asked_at());
        let judge = |(event, finding): (&&StoredEvent, Option<Finding>)| {
            let stops = |finding: &Finding| finding.kind.policy(&self.checks) != Policy::Pass;
            let is_looked_at = self.checks.late != Policy::Pass && !finding.as_ref().is_some_and(stops);
            let late = || self.periods.late(event, seen.catalogue.as_deref()?, self.clock.now());
            let late = is_looked_at.then(late).flatten().transpose()?;
            let Some(finding) = late.or(finding) else { return Ok(None) };
            let policy = finding.kind.policy(&self.checks);
            let mut too_many = false;
            if policy != Policy::Pass && finding.kind.may_change() && seen.is_older_than(event.at) {
                let wait = self.known.doubt(event.at);
                let mut withheld = self.withheld.lock().unwrap_or_else(PoisonError::into_inner);
                if withheld.has_room(event.seq, told_at) {
                    return Err(Outcome::withheld(seen.why_wait(), wait));
                }
                too_many = true;
            }
            if policy == Policy::Pass {
                return Ok(Some(finding.kind));
            }
            self.metrics.found(finding.kind, policy);
            let note = match (too_many, finding.kind.may_change() && seen.is_behind(event.at)) {
                (true, _) => TOO_MANY,
                (false, true) => " (Lago does not tell what is new)",
                (false, false) => "",
            };
            Err(Outcome::failed(Failure::Unsendable, format!("{finding}{note}")))
        };
        events.iter().zip(self.findings(events, &seen)).map(judge).collect()
    }

    /// Nothing can be said as long as Lago has never told anything.
    fn findings(&self, events: &[&StoredEvent], seen: &Seen) -> Vec<Option<Finding>> {
        let Some(catalogue) = &seen.catalogue else { return vec![None; events.len()] };
        let now = self.clock.now();
        let find = |event: &&StoredEvent| check(&Stored::read(&event.body)?, catalogue, &self.checks, now);
        events.iter().map(find).collect()
    }

    /// Sends events whose transaction ids differ, and goes on with those that Lago has said nothing about.
    async fn send(&self, events: &[&StoredEvent]) -> Vec<Outcome> {
        let looked = self.look_at(events);
        let passed: Vec<Option<Kind>> = looked.iter().map(|looked| *looked.as_ref().unwrap_or(&None)).collect();
        let mut outcomes: Vec<Option<Outcome>> = looked.into_iter().map(Result::err).collect();
        for _ in 0..ROUNDS {
            let open: Vec<usize> = (0..events.len()).filter(|place| outcomes[*place].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let batch: Vec<&StoredEvent> = open.iter().map(|place| events[*place]).collect();
            match self.ask(&batch).await {
                Said::All(outcome) => {
                    open.iter().for_each(|place| outcomes[*place] = Some(outcome.clone()));
                }
                Said::Each(each) => {
                    for (place, outcome) in open.iter().zip(each) {
                        outcomes[*place] = outcome;
                    }
                }
            }
        }
        let left = || Outcome::failed(Failure::Busy, "Lago refuses other events of its batches again and again");
        let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(left));
        let outcomes: Vec<Outcome> =
            events.iter().zip(outcomes).map(|(event, outcome)| self.heed_complaint(event, outcome)).collect();
        for ((event, outcome), passed) in events.iter().zip(&outcomes).zip(passed) {
            if outcome.verdict == Verdict::Delivered {
                self.confirm(event);
            }
            let billed = match outcome.verdict {
                Verdict::Delivered if outcome.status == Some(422) => Billed::Known,
                Verdict::Delivered => Billed::Taken,
                Verdict::Failed(Failure::Refused) => Billed::Refused,
                Verdict::PassedBy(_) | Verdict::Failed(_) => continue,
            };
            self.metrics.billed(billed, 1);
            // Once, however often it was tried.
            if let Some(kind) = passed {
                self.metrics.found(kind, Policy::Pass);
            }
        }
        outcomes
    }

    /// An event that Lago has complained about is not one that it bills: it has that already, also where it answers 200,
    /// as it does with ClickHouse.
    fn heed_complaint(&self, event: &StoredEvent, outcome: Outcome) -> Outcome {
        if outcome.verdict != Verdict::Delivered {
            return outcome;
        }
        let complaints = self.books.complaints();
        match complaints.of(event.seq) {
            Some(reason) => Outcome { status: outcome.status, ..Outcome::failed(Failure::Refused, sentence(reason)) },
            None => outcome,
        }
    }

    /// One request, and again after a while where Lago asks for a pause.
    async fn ask(&self, batch: &[&StoredEvent]) -> Said {
        let mut body = Vec::with_capacity(16 + batch.iter().map(|event| event.body.len() + 1).sum::<usize>());
        body.extend_from_slice(b"{\"events\":[");
        for (nth, event) in batch.iter().enumerate() {
            if nth > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&event.body);
        }
        body.extend_from_slice(b"]}");
        let body = bytes::Bytes::from(body);
        let mut pauses = 0;
        loop {
            self.pause().await;
            self.keep_the_rate().await;
            self.metrics.asked_lago();
            let request = self
                .client
                .post(self.url.clone())
                .header(AUTHORIZATION, &self.authorization)
                .header(CONTENT_TYPE, "application/json")
                .header(ACCEPT, "application/json")
                .body(body.clone());
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) => return Said::All(Outcome::failed(Failure::Unreachable, describe(error))),
            };
            let status = response.status();
            let asked = asked_pause(status, response.headers(), self.clock.now());
            if let Some(asked) = asked.filter(|_| status == StatusCode::TOO_MANY_REQUESTS) {
                let until = Instant::now() + asked.min(LONGEST_PAUSE);
                let mut paused = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
                *paused = Some(paused.map_or(until, |paused| paused.max(until)));
                drop(paused);
                if pauses < PAUSES && asked <= LONGEST_PAUSE {
                    pauses += 1;
                    continue;
                }
            }
            return match read_whole(response, ANSWER_BYTES).await {
                Ok(answer) => match judge(status, &answer, batch.len()) {
                    Said::All(outcome) => Said::All(Outcome { retry_after: asked, ..outcome }),
                    each @ Said::Each(_) => each,
                },
                // It says of each event what became of it, and the half of that says of some nothing.
                Err(ReadError::TooLarge(most)) => {
                    let error =
                        format!("the answer has more than {most} bytes: what became of each event is not known");
                    Said::All(with_status(Outcome::failed(Failure::Unreachable, error), status))
                }
                // Whether the events were stored is not known.
                Err(ReadError::Broken(error)) => {
                    let error = format!("answer broke off: {}", describe(error));
                    Said::All(with_status(Outcome::failed(Failure::Unreachable, error), status))
                }
            };
        }
    }

    async fn keep_the_rate(&self) {
        let Some(spacing) = self.spacing else { return };
        let at = {
            let mut next = self.next_request.lock().unwrap_or_else(PoisonError::into_inner);
            let at = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(at + spacing);
            at
        };
        tokio::time::sleep_until(at.into()).await;
    }

    async fn pause(&self) {
        let until = *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = until {
            tokio::time::sleep_until(until.into()).await;
        }
    }
}

/// Whether an event is what Lago gets.
pub(crate) fn wants(head: &EventHead) -> bool {
    head.event_type == READY
}

impl Sink for LagoSink {
    fn name(&self) -> &str {
        SINK
    }

    fn wants(&self, head: &EventHead) -> bool {
        wants(head)
    }

    fn batching(&self) -> Batching {
        self.batching
    }

    /// Lago has it, and the ledger counts it once.
    fn repeats(&self) -> bool {
        false
    }

    fn lead(&self, _accepted: Seq) -> BoxFuture<'_, Result<(), JournalError>> {
        // It is not recorded, and comes again.
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.books.lead().boxed()
    }

    fn stand_by(&self) {
        self.books.stand_by();
    }

    fn recording(&self, delivered: &[Seq]) -> Vec<(String, Vec<u8>)> {
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = delivered.iter().filter_map(|seq| Some((*seq, confirmed.remove(seq)?))).collect();
        self.books.record(entries, self.clock.now())
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        async move {
            let mut outcomes = self.send(&[event]).await;
            outcomes.pop().unwrap_or_else(|| Outcome::failed(Failure::Unreachable, "no outcome"))
        }
        .boxed()
    }

    fn deliver_all<'a>(&'a self, events: &'a [Arc<StoredEvent>]) -> BoxFuture<'a, Vec<Outcome>> {
        async move {
            let mut outcomes: Vec<Option<Outcome>> = vec![None; events.len()];
            while outcomes.contains(&None) {
                let places = with_different_ids(events, &outcomes);
                let batch: Vec<&StoredEvent> = places.iter().map(|place| &*events[*place]).collect();
                for (place, outcome) in places.into_iter().zip(self.send(&batch).await) {
                    outcomes[place] = Some(outcome);
                }
                // Whoever gives no answer is not asked a hundred times in a row.
                let silent = outcomes.iter().flatten().find(|outcome| says_nothing_of_events(outcome)).cloned();
                if let Some(silent) = silent {
                    for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
                        *outcome = Some(silent.clone());
                    }
                }
            }
            outcomes.into_iter().flatten().collect()
        }
        .boxed()
    }
}

fn says_nothing_of_events(outcome: &Outcome) -> bool {
    let Verdict::Failed(failure) = outcome.verdict else { return false };
    matches!(failure, Failure::Unreachable | Failure::Unavailable | Failure::Denied | Failure::Throttled)
}

/// Places of events without an outcome, of which no two have the same transaction id.
///
/// From v1.39 on Lago finds out by the transaction id alone which events of a batch it has stored: of two
/// subscriptions' events with the same id it may call the wrong one known. Two of one subscription are never here.
fn with_different_ids(events: &[Arc<StoredEvent>], outcomes: &[Option<Outcome>]) -> Vec<usize> {
    let mut ids = HashSet::new();
    let open = (0..events.len()).filter(|place| outcomes[*place].is_none());
    open.filter(|place| ids.insert(transaction_id(&events[*place]))).collect()
}

/// What an answer says about a batch of so many events.
fn judge(status: StatusCode, answer: &[u8], events: usize) -> Said {
    let all = |failure: Failure, error: String| {
        let mut outcome = with_status(Outcome::failed(failure, error), status);
        outcome.response = Some(shown(answer));
        Said::All(outcome)
    };
    let about_one = |failure: Failure| if events == 1 { failure } else { Failure::Busy };
    match status.as_u16() {
        200..=299 if holds_events(answer, events) => Said::All(Outcome::delivered(status.as_u16())),
        200..=299 => all(
            Failure::Condition,
            format!("answered {status} without the events: is LAGO_API_URL the address of Lago's API?"),
        ),
        422 => match batch_errors(answer, events) {
            Some(errors) => {
                Said::Each((0..events).map(|place| errors.get(&place).map(|fields| refused(fields, status))).collect())
            }
            // Locks and third parties: nothing was stored, and nothing is known about any event.
            None => all(Failure::Busy, "answered 422 and did not say which event is wrong".to_owned()),
        },
        401 | 403 => all(Failure::Denied, format!("Lago refuses LAGO_API_KEY ({status})")),
        // A redirect would hand the API key to whoever it names.
        300..=399 | 404 | 405 => {
            all(Failure::Denied, format!("there is no Lago events API at LAGO_API_URL ({status})"))
        }
        502..=504 => all(Failure::Unavailable, format!("answered {status}")),
        // It takes no more at the moment, of anybody.
        429 => all(Failure::Throttled, format!("answered {status}")),
        408 | 425 | 500..=599 => all(Failure::Busy, format!("answered {status}")),
        // One event may be what is wrong with a batch: then it is soon alone. Too long a request is refused before Lago.
        413 => all(about_one(Failure::Refused), format!("answered {status}")),
        _ if is_refusal(answer, status.as_u16()) => all(about_one(Failure::Refused), format!("answered {status}")),
        _ => all(
            Failure::Unavailable,
            format!("answered {status}, and not in Lago's words: is LAGO_API_URL the address of Lago's API?"),
        ),
    }
}

fn refused(fields: &std::collections::BTreeMap<String, Vec<String>>, status: StatusCode) -> Outcome {
    if is_known(fields) {
        return Outcome::delivered(status.as_u16());
    }
    with_status(Outcome::failed(Failure::Refused, format!("Lago refuses it: {}", in_words(fields))), status)
}

fn with_status(outcome: Outcome, status: StatusCode) -> Outcome {
    Outcome { status: Some(status.as_u16()), ..outcome }
}

/// How long Lago, or a proxy before it, asks to be left alone: `X-RateLimit-Reset` in seconds, or `Retry-After`.
fn asked_pause(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let retry_after = || parse_retry_after(headers.get(RETRY_AFTER)?.as_bytes(), now, LONGEST_ASKED);
    match status.as_u16() {
        429 => {
            let reset = || headers.get("x-ratelimit-reset")?.to_str().ok()?.trim().parse::<f64>().ok();
            let reset = reset().map(|reset| Duration::try_from_secs_f64(reset).unwrap_or(LONGEST_ASKED));
            let asked = reset.or_else(retry_after).unwrap_or(Duration::from_secs(1));
            Some(asked.clamp(Duration::from_millis(100), LONGEST_ASKED))
        }
        503 => retry_after(),
        _ => None,
    }
}

fn shown(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(&answer[..answer.len().min(SHOWN_BYTES)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The error and its causes without the address, which may be private.
fn describe(error: reqwest::Error) -> String {
    let kind = if error.is_timeout() { "timed out: " } else { "" };
    format!("{kind}{}", kit::error::chain(&error.without_url()))
}

#[cfg(test)]
mod tests;
