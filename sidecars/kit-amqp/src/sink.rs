//! The sink: events to an exchange, each judged by what the broker said of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit::lifecycle::StopToken;
use kit_delivery::{Batching, Failure, Outcome, Preview, Sink, Verdict};
use kit_journal::StoredEvent;
use lapin::types::ShortString;

use crate::config::{AmqpSection, AmqpSetupError};
use crate::connection::{Connector, FRAME_MAX, Sizes};
use crate::error::AmqpError;
use crate::message::{Outgoing, Shape};
use crate::metrics::AmqpMetrics;
use crate::publisher::{Publisher, Queue, Topology};
use crate::window::{Fate, Limits};

/// Bytes of the bodies of a window, but always one.
const WINDOW_BYTES: usize = 8 << 20;

/// So many connections in a row that end at once are not the doing of what was published on them before.
const ENDED_IN_VAIN: u32 = 4;

/// So many windows in a row of which the broker did not say everything are enough for now.
const TRIES_IN_VAIN: u32 = 2;

/// Delivers events to one exchange.
pub struct AmqpSink {
    name: String,
    shape: Shape,
    publisher: Publisher,
    window: usize,
    /// Messages that are published at a time: the window, fewer after one of which the broker has not said everything in
    /// time, and twice as many where it has.
    width: AtomicUsize,
    /// As long as a window may be tried in parts, because one of it closes the channel.
    patience: Duration,
}

impl std::fmt::Debug for AmqpSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpSink").field("name", &self.name).field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl AmqpSink {
    /// Builds the sink from its section; reads every file that the section names. `app_id` is the daemon's name.
    ///
    /// # Errors
    /// All settings that cannot be used.
    pub fn new(
        name: &str,
        app_id: &str,
        section: &AmqpSection,
        metrics: &AmqpMetrics,
    ) -> Result<Self, Vec<AmqpSetupError>> {
        let endpoint = section.endpoint()?;
        let label = format!("{app_id} {name}");
        // What comes in is what was returned, and what a broker may say by itself.
        let sizes = Sizes { frame: FRAME_MAX, body: section.message_limit_bytes, held: usize::MAX };
        let connector = Connector::new(endpoint, label, sizes, metrics.of(name)).map_err(|error| vec![error])?;
        let short = |text: &str| ShortString::try_new(text).unwrap_or_default();
        let topology = Topology {
            declare: section.declare,
            exchange: short(&section.exchange),
            queues: section
                .queues
                .iter()
                .map(|(queue, patterns)| Queue {
                    name: short(queue),
                    patterns: patterns.iter().map(|pattern| short(pattern)).collect(),
                    dead: None,
                })
                .collect(),
            kind: section.queue_kind,
        };
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(10));
        let limits = Limits {
            publish: seconds(section.publish_timeout_seconds),
            confirm: seconds(section.confirm_timeout_seconds),
        };
        Ok(Self {
            name: name.to_owned(),
            shape: Shape {
                format: section.format,
                routing_key: section.routing_key.clone(),
                app_id: app_id.to_owned(),
                message_limit: section.message_limit_bytes,
            },
            publisher: Publisher::new(connector, topology, limits),
            window: section.window,
            width: AtomicUsize::new(section.window),
            patience: limits.publish + limits.confirm,
        })
    }

    /// What would be published, without publishing it.
    pub fn preview(&self, event: &StoredEvent) -> Preview {
        let exchange = &self.publisher.topology().exchange;
        match self.shape.message(event, FRAME_MAX as usize) {
            Ok(message) => Preview {
                target: format!("PUBLISH to exchange {exchange}, routing key {}", message.routing_key),
                headers: message.listed(),
                body: message.body,
            },
            Err(why) => Preview { target: format!("nothing: {why}"), headers: Vec::new(), body: bytes::Bytes::new() },
        }
    }

    /// Keeps a connection to the broker, so that its state shows while nothing is published; until `stop`.
    pub async fn keep_connected(&self, stop: StopToken) {
        self.publisher.keep(&stop).await;
    }

    async fn deliver_window(&self, events: &[&StoredEvent]) -> Vec<Outcome> {
        // Of this broker, which may take less than is usual.
        let frame_max = match self.publisher.frame_max().await {
            Ok(frame_max) => frame_max,
            Err(error) => return vec![self.unpublished(&error); events.len()],
        };
        let mut window = Window { outcomes: vec![None; events.len()], ..Window::default() };
        // What is published under one id goes in different groups: a return names nothing but the id.
        let (mut groups, mut times): (Vec<Vec<_>>, HashMap<String, usize>) = (Vec::new(), HashMap::new());
        for (place, event) in events.iter().enumerate() {
            match self.shape.message(event, frame_max) {
                Ok(message) => {
                    let time = times.entry(message.id.clone()).or_default();
                    if groups.len() == *time {
                        groups.push(Vec::with_capacity(events.len() - place));
                    }
                    groups[*time].push((place, message));
                    *time += 1;
                }
                Err(why) => {
                    let text = format!("cannot be published: {why}");
                    window.outcomes[place] = Some(Outcome::failed(Failure::Unsendable, text));
                }
            }
        }
        let until = Instant::now() + self.patience;
        let mut left: Vec<_> = groups.into_iter().rev().collect();
        while let Some(mut group) = left.pop() {
            group.retain(|(place, message)| window.is_open(*place, message));
            if group.is_empty() {
                continue;
            }
            let open = self.publish(&group, &mut window).await;
            let outcomes = &mut window.outcomes;
            // One of them closes the channel for all: it is found by halves.
            let open: Vec<_> = group.into_iter().filter(|(place, _)| open.contains(place)).collect();
            if Instant::now() > until {
                for (place, _) in &open {
                    outcomes[*place] = Some(Outcome::failed(Failure::Unreachable, "other messages close the channel"));
                }
                continue;
            }
            let mut first = open;
            let second = first.split_off(first.len() / 2);
            left.extend([second, first]);
        }
        let left_out = || Outcome::failed(Failure::Unreachable, "the broker said nothing of it");
        window.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(left_out)).collect()
    }

    /// Publishes these; returns the places of those that are to be tried in smaller groups.
    async fn publish(&self, group: &[(usize, Outgoing)], window: &mut Window) -> Vec<usize> {
        let messages: Vec<&Outgoing> = group.iter().map(|(_, message)| message).collect();
        let published = match self.publisher.publish(&messages).await {
            Ok(published) => published,
            Err(error) if error.is_of_a_closed_channel() && window.may_try_on() => {
                return group.iter().map(|(place, _)| *place).collect();
            }
            Err(error) => {
                let outcome = self.unpublished(&error);
                group.iter().for_each(|(place, _)| window.outcomes[*place] = Some(outcome.clone()));
                return Vec::new();
            }
        };
        match &published.broken {
            Some(error @ AmqpError::Lost(_)) if !error.is_of_a_closed_channel() => {
                self.width.store((group.len() / 2).max(1), Ordering::Relaxed);
            }
            Some(_) => {}
            None => {
                let width = self.width.load(Ordering::Relaxed);
                if group.len() >= width {
                    self.width.store((width * 2).min(self.window), Ordering::Relaxed);
                }
            }
        }
        let metrics = &self.publisher.connector.metrics;
        // One alone may have been hit by what a window before has left behind on the same connection.
        let is_ended = published.broken.as_ref().is_some_and(AmqpError::is_of_a_closed_channel);
        let is_of_another = is_ended && (group.len() > 1 || window.may_try_on());
        if !is_ended {
            window.ended = 0;
        }
        let mut open = Vec::new();
        for ((place, message), fate) in group.iter().zip(published.fates) {
            window.may_write |= matches!(fate, Fate::Kept | Fate::Returned(_) | Fate::Nacked);
            window.outcomes[*place] = Some(match fate {
                Fate::Kept => Outcome::taken(),
                Fate::Returned(reason) => {
                    metrics.returned.inc();
                    Outcome::failed(Failure::Unroutable, self.unroutable(message, &reason))
                }
                Fate::Nacked => {
                    metrics.nacked.inc();
                    let text = "the broker would not keep it (nack): is a queue full that rejects what is published?";
                    Outcome::failed(Failure::Busy, text)
                }
                Fate::Unknown => match &published.broken {
                    Some(AmqpError::Precondition(_) | AmqpError::Refused(_)) if group.len() > 1 => {
                        open.push(*place);
                        continue;
                    }
                    Some(_) if is_of_another => {
                        open.push(*place);
                        continue;
                    }
                    Some(AmqpError::Refused(text)) if window.may_write || is_about_a_topic(text) => {
                        let outcome = Outcome::failed(Failure::Unroutable, forbidden(text));
                        window.forbidden.insert(message.routing_key.clone(), outcome.clone());
                        outcome
                    }
                    Some(error @ AmqpError::Refused(_)) => {
                        let outcome = self.broken(error);
                        window.denied = Some(outcome.clone());
                        outcome
                    }
                    Some(AmqpError::Precondition(text)) => {
                        Outcome::failed(Failure::Refused, format!("the broker refuses the message: {text}"))
                    }
                    Some(error) => self.broken(error),
                    None => Outcome::failed(Failure::Unreachable, "the broker said nothing of it"),
                },
            });
        }
        open
    }

    fn unroutable(&self, message: &Outgoing, reason: &str) -> String {
        format!(
            "no queue is bound to exchange {} for routing key {} ({reason}): bind one, or name it in amqp.queues",
            self.publisher.topology().exchange,
            message.routing_key
        )
    }

    /// Nothing was published at all.
    fn unpublished(&self, error: &AmqpError) -> Outcome {
        match error {
            AmqpError::Lost(_) | AmqpError::Crowded(_) => Outcome::failed(Failure::Unreachable, error.to_string()),
            AmqpError::Precondition(text) => Outcome::failed(
                Failure::Denied,
                format!("what is at the broker is not what amqp.declare would make: {text}"),
            ),
            AmqpError::Refused(_) | AmqpError::Missing(_) => self.broken(error),
        }
    }

    /// What was published has no outcome.
    fn broken(&self, error: &AmqpError) -> Outcome {
        let topology = self.publisher.topology();
        match error {
            // What we declare is made again before the next attempt.
            AmqpError::Missing(text) if topology.declare => Outcome::failed(Failure::Unavailable, text.clone()),
            AmqpError::Missing(text) => Outcome::failed(
                Failure::Denied,
                format!(
                    "something is missing in virtual host {}: {text}; create it, or set amqp.declare=true",
                    self.publisher.connector.vhost()
                ),
            ),
            AmqpError::Refused(_) => Outcome::failed(Failure::Denied, error.to_string()),
            AmqpError::Lost(_) | AmqpError::Crowded(_) | AmqpError::Precondition(_) => {
                Outcome::failed(Failure::Unreachable, error.to_string())
            }
        }
    }
}

/// What is known of a window while it is published in groups.
#[derive(Default)]
struct Window {
    outcomes: Vec<Option<Outcome>>,
    /// The broker has taken a message of it, so that we may publish to the exchange.
    may_write: bool,
    /// Connections in a row that were ended under something that is not to blame for it.
    ended: u32,
    /// Nothing of it may be published, and why.
    denied: Option<Outcome>,
    /// Routing keys that we may not publish with, and what that means: there may be many messages of one.
    forbidden: HashMap<ShortString, Outcome>,
}

impl Window {
    /// Whether the connection that was ended may have been ended for something else, as a few in a row may.
    fn may_try_on(&mut self) -> bool {
        self.ended += 1;
        self.ended <= ENDED_IN_VAIN
    }

    /// Whether there is a point in publishing this one; otherwise it has its outcome.
    fn is_open(&mut self, place: usize, message: &Outgoing) -> bool {
        let known = self.forbidden.get(&message.routing_key).or(self.denied.as_ref().filter(|_| !self.may_write));
        match known {
            Some(outcome) => self.outcomes[place] = Some(outcome.clone()),
            None => return true,
        }
        false
    }
}

/// Whether a refusal is about one routing key and not about all of the exchange (RabbitMQ 3.10.8,
/// `deps/rabbit/src/rabbit_access_control.erl`: "access to topic 'a.b' in exchange 'events' in vhost '/' refused").
fn is_about_a_topic(text: &str) -> bool {
    text.contains("access to topic '")
}

fn forbidden(text: &str) -> String {
    format!(
        "the broker refuses messages of this routing key: {text}; let the user write to it (rabbitmqctl \
         set_topic_permissions), or lead such events elsewhere"
    )
}

impl Sink for AmqpSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn batching(&self) -> Batching {
        Batching { most: self.window, bytes: WINDOW_BYTES, linger: Duration::ZERO }
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        async move {
            let mut outcomes = self.deliver_window(&[event]).await;
            outcomes.pop().unwrap_or_else(|| Outcome::failed(Failure::Unreachable, "no outcome"))
        }
        .boxed()
    }

    fn deliver_all<'a>(&'a self, events: &'a [Arc<StoredEvent>]) -> BoxFuture<'a, Vec<Outcome>> {
        async move {
            let events: Vec<&StoredEvent> = events.iter().map(|event| &**event).collect();
            let mut outcomes = Vec::with_capacity(events.len());
            let mut in_vain = 0;
            while outcomes.len() < events.len() && in_vain < TRIES_IN_VAIN {
                let width = self.width.load(Ordering::Relaxed).clamp(1, events.len() - outcomes.len());
                let window = self.deliver_window(&events[outcomes.len()..][..width]).await;
                let is_lost = |outcome: &Outcome| outcome.verdict == Verdict::Failed(Failure::Unreachable);
                in_vain = if window.iter().any(is_lost) { in_vain + 1 } else { 0 };
                outcomes.extend(window);
            }
            let left_out = || Outcome::failed(Failure::Unreachable, "the broker said nothing of those before it");
            outcomes.resize_with(events.len(), left_out);
            outcomes
        }
        .boxed()
    }
}
