//! What stands between a dispatcher and its sink: it asks the routes whether an event is for this sink, and in which
//! shape.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit_delivery::format::{Format, render};
use kit_delivery::{Batching, Failure, Interest, Outcome, PassedBy, Sink};
use kit_journal::{Seq, StoredEvent};
use serde_json::value::RawValue;

use crate::jq::{JqError, Question};
use crate::metrics::RouteMetrics;
use crate::reload::{Current, Loaded};
use crate::table::{Decision, Walk};

/// How long an event waits when no process for jq can be started.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A sink behind the routes.
#[derive(Debug)]
pub struct RoutedSink<S> {
    inner: S,
    number: usize,
    current: Current,
    metrics: RouteMetrics,
}

/// What is to be done with an event.
enum Turn {
    /// Delivered as it is.
    AsItIs,
    /// Delivered with other data.
    Changed(Box<StoredEvent>),
    /// Over.
    Over(Outcome),
}

impl<S: Sink> RoutedSink<S> {
    /// `number` is the sink's in the table.
    pub(crate) fn new(inner: S, number: usize, current: Current, metrics: RouteMetrics) -> Self {
        Self { inner, number, current, metrics }
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
        let mut input = None;
        let decision = loop {
            match loaded.table.walk(self.number, event, |route| answers.get(&route).copied()) {
                Walk::Done(decision) => break decision,
                Walk::Asks(route) => {
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
        let input = input.unwrap_or_else(|| as_input(event));
        let told = |why| format!("transform of route {} for {}: {why}", loaded.table.name(route), self.inner.name());
        let data = loaded.jq.ask(Question::Value, &program, &input).await.map_err(|error| error.with(told))?;
        changed(event, data).map(|event| Turn::Changed(Box::new(event))).map_err(|why| JqError::Failed(told(why)))
    }
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

    fn interest(&self, event: &StoredEvent) -> Interest {
        let loaded = self.current.get();
        let Walk::Done(decision) = loaded.table.walk(self.number, event, |_| None) else { return Interest::Wanted };
        self.count(&loaded, &decision);
        match self.passed_by(&loaded, &decision) {
            None => Interest::Wanted,
            Some((how, reason)) => Interest::PassedBy(how, reason),
        }
    }

    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    fn repeats(&self) -> bool {
        self.inner.repeats()
    }

    fn recording(&self, delivered: &[Seq]) -> Vec<(String, Vec<u8>)> {
        self.inner.recording(delivered)
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        async move {
            match self.turn(event).await {
                Turn::AsItIs => self.inner.deliver(event).await,
                Turn::Changed(event) => self.inner.deliver(&event).await,
                Turn::Over(outcome) => outcome,
            }
        }
        .boxed()
    }

    fn deliver_all<'a>(&'a self, events: &'a [Arc<StoredEvent>]) -> BoxFuture<'a, Vec<Outcome>> {
        async move {
            let (mut outcomes, mut wanted) = (Vec::with_capacity(events.len()), Vec::new());
            // Programs take turns at the workers anyway.
            let turns = futures_util::future::join_all(events.iter().map(|event| self.turn(event))).await;
            for (event, turn) in events.iter().zip(turns) {
                match turn {
                    Turn::AsItIs => wanted.push(Arc::clone(event)),
                    Turn::Changed(event) => wanted.push(Arc::new(*event)),
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
            let mut delivered = delivered.into_iter();
            let silent = || Outcome::failed(Failure::Unreachable, "the sink said nothing of it");
            outcomes.into_iter().map(|known| known.or_else(|| delivered.next()).unwrap_or_else(silent)).collect()
        }
        .boxed()
    }
}
