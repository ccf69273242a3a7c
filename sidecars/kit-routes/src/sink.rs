//! What stands between a dispatcher and its sink: it asks the routes whether an event is for this sink, and in which
//! shape.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use kit_delivery::api::Wants;
use kit_delivery::format::{Format, render};
use kit_delivery::{Batching, Failure, Interest, Outcome, PassedBy, Sink};
use kit_journal::{EventHead, JournalError, Seq, StoredEvent};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::condition::Looked;
use crate::jq::{JqError, Question};
use crate::metrics::RouteMetrics;
use crate::reload::{Current, Loaded};
use crate::table::{Decision, Walk};

/// How long an event waits when no process for jq can be started.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Bytes of what programs have made that lie here for a sink at a time. A window is measured by the bodies as they came.
const CHANGED_BYTES: usize = 8 << 20;
/// What such bytes are counted in.
const UNIT: usize = 1 << 10;

/// Why an event is a dead letter at these sinks from the beginning, where it is.
pub type Parks = fn(&StoredEvent) -> Option<String>;

/// What sinks make of a journal's events, whatever the routes say.
#[derive(Clone, Copy, Debug)]
pub struct Intended {
    /// Which events are for any of them at all; the others are passed by and only counted.
    pub wants: Wants,
    /// Which events a person is to look at. Asked of what the routes lead to a sink; replayed, they are delivered.
    pub parks: Parks,
}

impl Intended {
    /// All events, as the routes say.
    pub const ALL: Self = Self { wants: |_| true, parks: |_| None };
}

/// A sink behind the routes.
#[derive(Debug)]
pub struct RoutedSink<S> {
    inner: S,
    number: usize,
    current: Current,
    metrics: RouteMetrics,
    /// Questions of this sink that are asked at a time: one process less than there are, so that another sink waits for
    /// none of its programs.
    questions: Semaphore,
    at_once: usize,
    /// Room for what programs make, in [`UNIT`]s.
    room: Arc<Semaphore>,
    intended: Intended,
}

/// What is to be done with an event.
enum Turn {
    /// Delivered as it is.
    AsItIs,
    /// Delivered with other data, which takes so much room.
    Changed(Box<StoredEvent>, Option<OwnedSemaphorePermit>),
    /// Over.
    Over(Outcome),
}

impl<S: Sink> RoutedSink<S> {
    /// `number` is the sink's in the table.
    pub(crate) fn new(inner: S, number: usize, current: Current, metrics: RouteMetrics) -> Self {
        let loaded = current.get();
        let limits = loaded.jq.limits();
        let spared = usize::from(loaded.table.sinks().len() > 1);
        let at_once = limits.workers.saturating_sub(spared).max(1);
        let room = (CHANGED_BYTES / UNIT).max(at_once * units(limits.answer_bytes));
        Self {
            inner,
            number,
            current,
            metrics,
            questions: Semaphore::new(at_once),
            at_once,
            room: Arc::new(Semaphore::new(room)),
            intended: Intended::ALL,
        }
    }

    /// With what is made of events before the routes are asked.
    pub(crate) fn intended(self, intended: Intended) -> Self {
        Self { intended, ..self }
    }

    fn passed_by(&self, loaded: &Loaded, decision: &Decision) -> Option<(PassedBy, String)> {
        match decision {
            Decision::Deliver { .. } => None,
            Decision::Filtered => Some((PassedBy::Filtered, "the routes lead it to other sinks".to_owned())),
            Decision::Unrouted => Some((PassedBy::Filtered, "no route leads it here".to_owned())),
            Decision::Dropped(route) => {
                Some((PassedBy::Dropped, format!("dropped by route {}", loaded.table.name(Some(*route)))))
            }
        }
    }

    fn count(&self, loaded: &Loaded, decision: &Decision) {
        let sink = self.inner.name();
        match decision {
            Decision::Deliver { route, .. } => self.metrics.matched(loaded.table.name(*route), sink),
            Decision::Dropped(route) => self.metrics.dropped(loaded.table.name(Some(*route)), sink),
            Decision::Filtered | Decision::Unrouted => {}
        }
    }

    /// Room for what the programs for so many events may make; `None` where it is taken.
    fn room_now(&self, events: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_many_owned(self.wanted(events)).ok()
    }

    /// The same, once it is there. Whoever waits must hold none.
    async fn room(&self, events: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).acquire_many_owned(self.wanted(events)).await.ok()
    }

    fn wanted(&self, events: usize) -> u32 {
        let wanted = events * units(self.current.get().jq.limits().answer_bytes);
        u32::try_from(wanted).unwrap_or(u32::MAX)
    }

    async fn turn(&self, event: &StoredEvent) -> Turn {
        match self.decide(event).await {
            Ok(turn) => turn,
            Err(JqError::Failed(why)) => {
                self.metrics.failed(self.inner.name());
                Turn::Over(Outcome::failed(Failure::Unsendable, format!("jq: {why}")))
            }
            Err(JqError::Away(why)) => Turn::Over(Outcome::withheld(format!("jq cannot be run: {why}"), ASK_AGAIN)),
        }
    }

    async fn decide(&self, event: &StoredEvent) -> Result<Turn, JqError> {
        let loaded = self.current.get();
        let mut answers: HashMap<usize, bool> = HashMap::new();
        let (mut input, looked) = (None, Looked::new(event));
        let mut waited = None;
        let decision = loop {
            match loaded.table.walk_on(self.number, &looked, |route| answers.get(&route).copied()) {
                Walk::Done(decision) => break decision,
                Walk::Asks(route) => {
                    if waited.is_none() {
                        waited = self.questions.acquire().await.ok();
                    }
                    let input = input.get_or_insert_with(|| as_input(event));
                    let program = loaded.table.filter(route).unwrap_or_default();
                    let told = |why| format!("filter of route {}: {why}", loaded.table.name(Some(route)));
                    let answer = loaded.jq.ask(Question::Holds, &program, input).await;
                    answers.insert(route, answer.map_err(|error| error.with(told))? == b"true");
                }
            }
        };
        if !answers.is_empty() {
            // What needs no program was counted when it was loaded.
            self.count(&loaded, &decision);
        }
        if let Some((how, reason)) = self.passed_by(&loaded, &decision) {
            return Ok(Turn::Over(Outcome::passed_by(how, reason)));
        }
        let Decision::Deliver { route, transform: Some(program) } = decision else { return Ok(Turn::AsItIs) };
        let _waited = match waited {
            Some(waited) => Some(waited),
            None => self.questions.acquire().await.ok(),
        };
        let input = input.unwrap_or_else(|| as_input(event));
        let told = |why| format!("transform of route {} for {}: {why}", loaded.table.name(route), self.inner.name());
        let data = loaded.jq.ask(Question::Value, &program, &input).await.map_err(|error| error.with(told))?;
        changed(event, data).map(|event| Turn::Changed(Box::new(event), None)).map_err(|why| JqError::Failed(told(why)))
    }
}

impl<S: Sink> RoutedSink<S> {
    /// Delivers what is to be delivered; the outcome of each.
    async fn deliver_turned(&self, turned: Vec<(&Arc<StoredEvent>, Turn)>) -> Vec<Outcome> {
        let (mut outcomes, mut wanted) = (Vec::with_capacity(turned.len()), Vec::new());
        let mut rooms = Vec::new();
        for (event, turn) in turned {
            match turn {
                Turn::AsItIs => wanted.push(Arc::clone(event)),
                Turn::Changed(event, room) => {
                    wanted.push(Arc::new(*event));
                    rooms.extend(room);
                }
                Turn::Over(outcome) => {
                    outcomes.push(Some(outcome));
                    continue;
                }
            }
            outcomes.push(None);
        }
        let delivered = match wanted.as_slice() {
            [] => Vec::new(),
            [event] => vec![self.inner.deliver(event).await],
            events => self.inner.deliver_all(events).await,
        };
        drop(rooms);
        let mut delivered = delivered.into_iter();
        let silent = || Outcome::failed(Failure::Unreachable, "the sink said nothing of it");
        outcomes.into_iter().map(|known| known.or_else(|| delivered.next()).unwrap_or_else(silent)).collect()
    }
}

/// Gives each what it takes of the room for all, and the rest of it back.
fn share(turns: Vec<Turn>, room: Option<OwnedSemaphorePermit>) -> Vec<Turn> {
    let Some(mut room) = room else { return turns };
    let kept = |turn| match turn {
        Turn::Changed(event, _) => {
            let kept = room.split(units(event.body.len()).min(room.num_permits()));
            Turn::Changed(event, kept)
        }
        turn => turn,
    };
    turns.into_iter().map(kept).collect()
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

/// The event as a program sees it: a CloudEvent, the body under `data`.
pub(crate) fn as_input(event: &StoredEvent) -> bytes::Bytes {
    render(event, Format::CloudeventsStructured).body
}

/// The event with other data. jaq writes more than JSON knows: bytes, infinity, keys that are no texts.
pub(crate) fn changed(event: &StoredEvent, data: Vec<u8>) -> Result<StoredEvent, String> {
    if serde_json::from_slice::<&RawValue>(&data).is_err() {
        return Err("gives something that is not JSON".to_owned());
    }
    let mut head = event.head.clone();
    head.json = true;
    // The sender's own say what its bytes were, and sign them.
    head.headers = vec![("content-type".into(), "application/json".to_owned())];
    Ok(StoredEvent { seq: event.seq, at: event.at, head, body: data.into() })
}

impl<S: Sink> Sink for RoutedSink<S> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn wants(&self, head: &EventHead) -> bool {
        (self.intended.wants)(head) && self.inner.wants(head)
    }

    fn interest(&self, event: &StoredEvent) -> Interest {
        if !self.wants(&event.head) {
            return Interest::Unwanted;
        }
        let loaded = self.current.get();
        let parked = || (self.intended.parks)(event).map_or(Interest::Wanted, Interest::Parked);
        let Walk::Done(decision) = loaded.table.walk(self.number, event, |_| None) else { return parked() };
        self.count(&loaded, &decision);
        match self.passed_by(&loaded, &decision) {
            None => parked(),
            Some((how, reason)) => Interest::PassedBy(how, reason),
        }
    }

    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    fn repeats(&self) -> bool {
        self.inner.repeats()
    }

    fn lead(&self, accepted: Seq) -> BoxFuture<'_, Result<(), JournalError>> {
        self.inner.lead(accepted)
    }

    fn stand_by(&self) {
        self.inner.stand_by();
    }

    fn recording(&self, delivered: &[Seq]) -> Vec<(String, Vec<u8>)> {
        self.inner.recording(delivered)
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        async move {
            let room = if self.current.get().table.has_programs() { self.room(1).await } else { None };
            let turn = share(vec![self.turn(event).await], room).pop();
            match turn.unwrap_or(Turn::AsItIs) {
                Turn::AsItIs => self.inner.deliver(event).await,
                Turn::Changed(event, _room) => self.inner.deliver(&event).await,
                Turn::Over(outcome) => outcome,
            }
        }
        .boxed()
    }

    fn deliver_all<'a>(&'a self, events: &'a [Arc<StoredEvent>]) -> BoxFuture<'a, Vec<Outcome>> {
        async move {
            let loaded = self.current.get();
            if !loaded.table.has_programs() {
                // Asked again all the same: what is replayed, or was loaded before the table changed, was asked another one.
                let turns = join_all(events.iter().map(|event| self.turn(event))).await;
                return self.deliver_turned(events.iter().zip(turns).collect()).await;
            }
            let (mut outcomes, mut turned) = (Vec::with_capacity(events.len()), Vec::new());
            for events in events.chunks(self.at_once) {
                let room = match self.room_now(events.len()) {
                    Some(room) => Some(room),
                    // What is here goes out first: it may be what takes the room.
                    None => {
                        outcomes.extend(self.deliver_turned(std::mem::take(&mut turned)).await);
                        self.room(events.len()).await
                    }
                };
                let turns = join_all(events.iter().map(|event| self.turn(event))).await;
                turned.extend(events.iter().zip(share(turns, room)));
            }
            outcomes.extend(self.deliver_turned(turned).await);
            outcomes
        }
        .boxed()
    }
}
