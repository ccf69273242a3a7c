//! Taking messages from a queue: each is acknowledged when its receiver says that it is durably done, goes to the queue of
//! dead letters where it can never be, and waits here where it cannot be yet.
//!
//! The broker sends again whatever was not acknowledged when a connection ends; receivers see some messages twice. A quorum
//! queue counts how often, and RabbitMQ 4.0 and later throw a message away that came back twenty times. So nothing goes
//! back without need: while the journal takes nothing no message is taken, and what is here waits here, unless there is too
//! much of it, or it waits for so long that the broker would end the channel.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use kit::clock::SharedClock;
use kit::lifecycle::StopToken;
use kit_journal::Health;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bury::Graveyard;
use crate::config::{AmqpSetupError, AmqpSourceSection};
use crate::connection::{Connector, FRAME_MAX_OF_OTHERS, Link, Sizes, within};
use crate::error::AmqpError;
use crate::intake::{Intake, Left, Width};
use crate::metrics::{AmqpMetrics, ConsumerMetrics};
use crate::publisher::{Publisher, Queue, Topology};
use crate::transport::Guard;
use crate::window::Limits;

/// Largest message that is read at all.
const READ_BYTES: usize = 16 << 20;
/// Bytes of messages that lie here at a time, and one message more.
const HELD_BYTES: usize = 16 << 20;
/// How long the broker may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// First wait before a message is looked at again, and before a connection is made again.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait before a connection is made again.
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// How long messages under way get when the daemon stops.
const FINISH_WITHIN: Duration = Duration::from_secs(3);
/// How long nothing may be read of a connection at most because too much of it lies here: the broker's answers are not
/// heard meanwhile.
const FULL_AT_MOST: Duration = Duration::from_secs(2);
/// How often it is looked whether that is over.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long one message waits here while it is tried whether any can be taken, and so much longer as there are more.
const PROBE_HOLD: Duration = Duration::from_secs(5);

/// A message from a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The body.
    pub body: Vec<u8>,
    /// Its media type.
    pub content_type: Option<String>,
    /// The name its publisher gave it.
    pub message_id: Option<String>,
    /// Headers whose values are texts, numbers or truth values, as texts.
    pub headers: Vec<(String, String)>,
    /// Exchange that it was published to.
    pub exchange: String,
    /// Routing key that it was published with.
    pub routing_key: String,
    /// The broker has sent it before.
    pub redelivered: bool,
}

impl Message {
    /// The content type and the CloudEvents attributes as they would be headers of HTTP in binary mode.
    ///
    /// Source: cloudevents/spec `cloudevents/bindings/amqp-protocol-binding.md` at v1.0.2.
    pub fn request_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut add = |name: &str, value: &str| {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        };
        add("content-type", self.content_type.as_deref().unwrap_or_default());
        for (name, value) in &self.headers {
            // Both separators are used: the binding's own, and the one for what takes no colon in names.
            let attribute = name.strip_prefix("cloudEvents:").or_else(|| name.strip_prefix("cloudEvents_"));
            if let Some(attribute) = attribute {
                // Headers of HTTP are ASCII, and are decoded where they are read.
                add(&format!("ce-{attribute}"), &utf8_percent_encode(value, NON_ALPHANUMERIC).to_string());
            }
        }
        headers
    }
}

/// What its receiver says of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is durably done.
    Accepted,
    /// It can never be taken like this; why.
    Rejected(String),
    /// It cannot be taken now; why.
    TryLater(String),
}

/// Takes the messages of one queue.
pub struct AmqpSource {
    connector: Connector,
    topology: Topology,
    queue: ShortString,
    prefetch: u16,
    hold_max: Duration,
    /// How many are taken at a time; what a connection has found out counts for the next one.
    width: Width,
    work: Arc<Work>,
}

impl std::fmt::Debug for AmqpSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpSource").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// What every message is handled with.
struct Work {
    graveyard: Graveyard,
    message_limit: usize,
    longest_wait: Duration,
    metrics: ConsumerMetrics,
}

impl AmqpSource {
    /// Builds the source from its section; reads every file that the section names. Its connections are `name` and
    /// `<name>-dead` in metrics: what is published may be blocked, what is consumed must not be.
    ///
    /// # Errors
    /// All settings that cannot be used.
    pub fn new(
        name: &str,
        app_id: &str,
        section: &AmqpSourceSection,
        metrics: &AmqpMetrics,
        clock: SharedClock,
    ) -> Result<Self, Vec<AmqpSetupError>> {
        let endpoint = section.endpoint()?;
        let short = |text: &str| ShortString::try_new(text).unwrap_or_default();
        let sizes = Sizes { frame: FRAME_MAX_OF_OTHERS, body: READ_BYTES, held: HELD_BYTES };
        // What comes in there is what was returned, and nobody lets go of it.
        let of_returned = Sizes { held: usize::MAX, ..sizes };
        let connector = |suffix: &str, sizes: Sizes| {
            let (label, part) = (format!("{app_id} {name}{suffix}"), metrics.of(&format!("{name}{suffix}")));
            Connector::new(endpoint.clone(), label, sizes, part).map_err(|error| vec![error])
        };
        let queue = short(&section.queue);
        let dead = short(&format!("{}.dead", section.queue));
        let patterns = section.bindings.iter().map(|pattern| short(pattern)).collect();
        let own = Queue { name: queue.clone(), patterns, dead: Some(dead.clone()) };
        let of_dead = Queue { name: dead.clone(), patterns: Vec::new(), dead: None };
        let limits = Limits { publish: ANSWER, confirm: Duration::from_secs(10) };
        // Made again where somebody deletes it while letters go there.
        let buried = match section.declare {
            true => Topology {
                declare: true,
                queues: vec![of_dead.clone()],
                kind: section.queue_kind,
                ..Topology::default()
            },
            false => Topology::default(),
        };
        let publisher = Publisher::new(connector("-dead", of_returned)?, buried, limits);
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(RECONNECT_MAX);
        let work = Work {
            graveyard: Graveyard::new(publisher, queue.clone(), dead, clock),
            message_limit: section.message_limit_bytes,
            longest_wait: seconds(section.retry_max_seconds),
            metrics: metrics.consumer(name),
        };
        Ok(Self {
            connector: connector("", sizes)?,
            topology: Topology {
                declare: section.declare,
                exchange: short(&section.exchange),
                queues: vec![of_dead, own],
                kind: section.queue_kind,
            },
            queue,
            prefetch: section.prefetch,
            hold_max: seconds(section.hold_max_seconds),
            width: Width::new(section.prefetch),
            work: Arc::new(work),
        })
    }

    /// Hands every message to `receive` until `stop`, several at a time, in whatever order they are done. While `health`
    /// says that the journal takes nothing, no message is taken from the queue.
    ///
    /// # Errors
    /// None: whatever happens is tried again.
    pub async fn run<R>(self, stop: StopToken, health: watch::Receiver<Health>, receive: R) -> Result<(), Infallible>
    where
        R: Fn(Arc<Message>) -> BoxFuture<'static, Taken> + Send + Sync + 'static,
    {
        let receive = Arc::new(receive);
        let mut wait = FIRST_WAIT;
        let mut said = None;
        while !stop.is_stopped() {
            let began = Instant::now();
            let Err(error) = self.consume(&stop, health.clone(), &receive).await else { break };
            if began.elapsed() > RECONNECT_MAX {
                wait = FIRST_WAIT;
                said = None;
            }
            let text = error.to_string();
            if said.as_ref() != Some(&text) {
                tracing::warn!(queue = %self.queue, error = %text, "nothing is taken from queue {}, trying on: {text}", self.queue);
            }
            said = Some(text);
            tokio::select! {
                () = stop.stopped() => break,
                () = tokio::time::sleep(wait.mul_f64(0.8 + 0.4 * fastrand::f64())) => {}
            }
            wait = (wait * 2).min(RECONNECT_MAX);
        }
        Ok(())
    }

    /// What is wrong with the topology, with what would mend it.
    fn describe(&self, error: AmqpError) -> AmqpError {
        let vhost = self.connector.vhost();
        match error {
            AmqpError::Missing(text) if !self.topology.declare => AmqpError::Missing(format!(
                "something is missing in virtual host {vhost}: {text}; create it, or set declare=true"
            )),
            // The queue itself is taken as it is.
            AmqpError::Precondition(text) => AmqpError::Precondition(format!(
                "queue {dead} is not what declare would make: {text}; move away what lies in {dead} and delete it, or set \
                 declare=false",
                dead = self.work.graveyard.dead
            )),
            error => error,
        }
    }

    /// Takes messages over one connection; `Ok` when the daemon stops.
    async fn consume<R>(
        &self,
        stop: &StopToken,
        mut health: watch::Receiver<Health>,
        receive: &Arc<R>,
    ) -> Result<(), AmqpError>
    where
        R: Fn(Arc<Message>) -> BoxFuture<'static, Taken> + Send + Sync + 'static,
    {
        let link = self.connector.connect().await?;
        self.topology.prepare_queues(&link).await.map_err(|error| self.describe(error))?;
        let waits = (FIRST_WAIT, self.work.longest_wait);
        let mut intake = Intake::new(link.channel(ANSWER).await?, &self.queue, (self.prefetch, &self.width), waits);
        let mut under_way = JoinSet::new();
        let full_at_most = full_at_most(link.heartbeat());
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ended = loop {
            let is_healthy = *health.borrow_and_update() == Health::Writable;
            let is_full = link.guard().full_for();
            if is_healthy && is_full.is_none() {
                if let Err(error) = intake.begin(under_way.len()).await {
                    break Err(error);
                }
            } else if !is_healthy && intake.is_on() {
                tracing::warn!(queue = %self.queue, "the journal takes nothing: no messages are taken from queue {}", self.queue);
                intake.end();
            }
            tokio::select! {
                () = stop.stopped() => break Ok(()),
                () = link.lost() => break Err(AmqpError::Lost("the connection to the broker is lost".to_owned())),
                Some(done) = under_way.join_next() => match done {
                    Ok(Ok(left)) => {
                        intake.left(left);
                        if matches!(left, Left::Expired(_)) && !is_healthy {
                            intake.give_back("they have waited for too long");
                        }
                    }
                    Ok(Err(error)) => break Err(error),
                    Err(_) => break Err(AmqpError::Lost("a message was not handled to its end".to_owned())),
                },
                next = intake.next() => {
                    let delivery = match next {
                        Ok(Some(delivery)) => delivery,
                        Ok(None) => continue,
                        Err(error) => break Err(error),
                    };
                    let (work, receive) = (Arc::clone(&self.work), Arc::clone(receive));
                    let (guard, back) = (Arc::clone(link.guard()), intake.back());
                    let probe = intake.probe().map(|width| (PROBE_HOLD * u32::from(width)).min(self.hold_max));
                    let hold = (Instant::now() + probe.unwrap_or(self.hold_max), intake.width());
                    under_way.spawn(async move { work.handle(delivery, &*receive, &guard, back, hold).await });
                }
                Ok(()) = health.changed() => {}
                // Not while there is nothing to look at.
                _ = looks.tick(), if !under_way.is_empty() || is_healthy && !intake.is_on() => {
                    if is_full.is_some_and(|full| full >= full_at_most) {
                        intake.give_back("too much of them lies here");
                    }
                }
            }
        };
        if ended.is_err() {
            intake.suspect(under_way.len());
        }
        if ended.is_ok() {
            self.finish(under_way, &intake.channel, &link).await;
        }
        ended
    }

    /// Lets what is under way come to its end, as far as it does soon. The broker keeps the rest.
    async fn finish(&self, mut under_way: JoinSet<Result<Left, AmqpError>>, channel: &Channel, link: &Link) {
        let until = Instant::now() + FINISH_WITHIN;
        while let Ok(Some(_)) = tokio::time::timeout_at(until, under_way.join_next()).await {}
        under_way.shutdown().await;
        let _ = within(Duration::from_millis(500), "close the channel", channel.close(200, "bye".into())).await;
        link.close().await;
    }
}

impl Topology {
    /// As [`Topology::prepare`], for an exchange that is somebody else's.
    async fn prepare_queues(&self, link: &Link) -> Result<(), AmqpError> {
        if self.exchange.as_str().is_empty() || !self.declare {
            return Self { exchange: ShortString::default(), ..self.clone() }
                .prepare(link, false, true)
                .await
                .map(drop);
        }
        Self { declare: false, queues: Vec::new(), ..self.clone() }.prepare(link, false, true).await?;
        self.prepare_bound(link).await
    }
}

impl Work {
    /// Brings one message to its end. A message that cannot be taken now stays here, unacknowledged, until `back` says that
    /// it is to be given back, or its time in `hold` is over: then it alone goes back.
    async fn handle<R>(
        &self,
        delivery: Delivery,
        receive: &R,
        guard: &Guard,
        mut back: watch::Receiver<bool>,
        (until, width): (Instant, u16),
    ) -> Result<Left, AmqpError>
    where
        R: Fn(Arc<Message>) -> BoxFuture<'static, Taken>,
    {
        let Delivery { properties, data, exchange, routing_key, redelivered, acker, .. } = delivery;
        let bytes = data.len();
        let message = Arc::new(Message {
            body: data,
            content_type: properties.content_type().as_ref().map(ToString::to_string),
            message_id: properties.message_id().as_ref().map(ToString::to_string),
            headers: properties.headers().as_ref().map(texts).unwrap_or_default(),
            exchange: exchange.to_string(),
            routing_key: routing_key.to_string(),
            redelivered,
        });
        let queue = &self.graveyard.queue;
        let mut wait = FIRST_WAIT;
        loop {
            let taken = if *back.borrow() {
                // All are wanted back, and this one has not been looked at yet. A broker has sent as many as the prefetch says
                // before it hears that nothing is taken any more, and its answer to that comes behind them.
                Taken::TryLater("it came when all were given back".to_owned())
            } else if bytes > self.message_limit {
                let limit = self.message_limit;
                Taken::Rejected(format!("the message has {bytes} bytes, message_limit_bytes is {limit}"))
            } else {
                receive(Arc::clone(&message)).await
            };
            let why = match taken {
                Taken::Accepted => {
                    self.metrics.accepted();
                    break;
                }
                Taken::Rejected(reason) => match self.graveyard.bury(&message, &properties, &reason).await {
                    Ok(()) => {
                        self.metrics.rejected();
                        let queue = &self.graveyard.dead;
                        tracing::error!(queue = %queue, reason = %reason, "a message cannot be taken and lies in {queue} now: {reason}");
                        break;
                    }
                    Err(why) => why,
                },
                Taken::TryLater(why) => why,
            };
            self.metrics.later();
            tracing::debug!(queue = %queue, reason = %why, "a message waits: {why}");
            let jittered = wait.mul_f64(0.8 + 0.4 * fastrand::f64());
            let again = Instant::now() + jittered;
            let left = tokio::select! {
                Ok(_) = back.wait_for(|is_wanted| *is_wanted) => Some(Left::GivenBack),
                () = tokio::time::sleep_until(again.min(until)) => (until <= again).then_some(Left::Expired(width)),
            };
            if let Some(left) = left {
                if left != Left::GivenBack {
                    tracing::warn!(queue = %queue, reason = %why, "a message has waited for too long and goes back to queue {queue}: {why}");
                }
                let options = BasicNackOptions { requeue: true, multiple: false };
                let given = within(ANSWER, "take a message back", acker.nack(options)).await;
                guard.let_go(bytes);
                return given.map(|_| left);
            }
            wait = (wait * 2).min(self.longest_wait);
        }
        let acknowledged = within(ANSWER, "take an acknowledgement", acker.ack(BasicAckOptions::default())).await;
        guard.let_go(bytes);
        acknowledged.map(|_| Left::Done)
    }
}

/// How long nothing may be read of a connection: nobody hears heartbeats meanwhile, and after two the connection ends.
fn full_at_most(heartbeat: Duration) -> Duration {
    if heartbeat.is_zero() { FULL_AT_MOST } else { FULL_AT_MOST.min(heartbeat / 3) }
}

/// Headers as texts; tables and lists are left out.
fn texts(headers: &FieldTable) -> Vec<(String, String)> {
    let text = |value: &AMQPValue| {
        Some(match value {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?.to_owned(),
            AMQPValue::ShortString(text) => text.to_string(),
            AMQPValue::Boolean(value) => value.to_string(),
            AMQPValue::ShortShortInt(value) => value.to_string(),
            AMQPValue::ShortShortUInt(value) => value.to_string(),
            AMQPValue::ShortInt(value) => value.to_string(),
            AMQPValue::ShortUInt(value) => value.to_string(),
            AMQPValue::LongInt(value) => value.to_string(),
            AMQPValue::LongUInt(value) => value.to_string(),
            AMQPValue::LongLongInt(value) => value.to_string(),
            AMQPValue::Timestamp(value) => value.to_string(),
            _ => return None,
        })
    };
    headers.into_iter().filter_map(|(name, value)| Some((name.to_string(), text(value)?))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit::clock::SystemClock;
    use kit::secret::Secret;

    use super::*;

    #[tokio::test]
    async fn a_queue_of_dead_letters_of_another_kind_is_named() {
        let section = AmqpSourceSection {
            url: Some(Secret::from("amqp://mq".to_owned())),
            queue: "work".to_owned(),
            ..AmqpSourceSection::default()
        };
        let source = AmqpSource::new("s", "test", &section, &AmqpMetrics::default(), Arc::new(SystemClock)).unwrap();
        let text = source.describe(AmqpError::Precondition("inequivalent arg".to_owned())).to_string();
        assert!(text.starts_with("queue work.dead is not") && text.contains("inequivalent arg"), "{text}");
    }

    #[test]
    fn reading_goes_on_before_a_heartbeat_is_missed() {
        for heartbeat in [1, 3, 10, 60].map(Duration::from_secs) {
            assert!(full_at_most(heartbeat) + LOOK_EVERY < heartbeat);
        }
        assert_eq!(full_at_most(Duration::ZERO), FULL_AT_MOST);
        assert!(FULL_AT_MOST + LOOK_EVERY < ANSWER);
    }
}
