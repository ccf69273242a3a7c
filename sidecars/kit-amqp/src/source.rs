//! Taking messages from a queue: each is acknowledged when its receiver says that it is durably done, goes to the queue of
//! dead letters where it can never be, and waits here where it cannot be yet.
//!
//! The broker sends again whatever was not acknowledged when a connection ends; receivers see some messages twice.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use kit::clock::SharedClock;
use kit::lifecycle::StopToken;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::task::JoinSet;

use crate::config::{AmqpSetupError, AmqpSourceSection};
use crate::connection::{Connector, Link, within};
use crate::error::AmqpError;
use crate::message::Outgoing;
use crate::metrics::{AmqpMetrics, ConsumerMetrics};
use crate::publisher::{Publisher, Topology};
use crate::transport::Guard;
use crate::window::{Fate, Limits};

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
/// Bytes of a reason that are written to a dead letter.
const REASON_BYTES: usize = 1024;

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
    work: Arc<Work>,
}

impl std::fmt::Debug for AmqpSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmqpSource").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// What every message is handled with.
struct Work {
    queue: ShortString,
    dead: ShortString,
    dead_letters: Publisher,
    message_limit: usize,
    longest_wait: Duration,
    metrics: ConsumerMetrics,
    clock: SharedClock,
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
        let connector = |suffix: &str| {
            let (label, part) = (format!("{app_id} {name}{suffix}"), metrics.of(&format!("{name}{suffix}")));
            Connector::new(endpoint.clone(), label, (READ_BYTES, HELD_BYTES), part).map_err(|error| vec![error])
        };
        let queue = short(&section.queue);
        let dead = short(&format!("{}.dead", section.queue));
        let patterns = section.bindings.iter().map(|pattern| short(pattern)).collect();
        let limits = Limits { publish: ANSWER, confirm: Duration::from_secs(10) };
        let work = Work {
            queue: queue.clone(),
            dead: dead.clone(),
            dead_letters: Publisher::new(connector("-dead")?, Topology::default(), limits),
            message_limit: section.message_limit_bytes,
            longest_wait: Duration::try_from_secs_f64(section.retry_max_seconds).unwrap_or(RECONNECT_MAX),
            metrics: metrics.consumer(name),
            clock,
        };
        Ok(Self {
            connector: connector("")?,
            topology: Topology {
                declare: section.declare,
                exchange: short(&section.exchange),
                queues: vec![(queue.clone(), patterns), (dead, Vec::new())],
                kind: section.queue_kind,
            },
            queue,
            prefetch: section.prefetch,
            work: Arc::new(work),
        })
    }

    /// Hands every message to `receive` until `stop`, several at a time, in whatever order they are done.
    ///
    /// # Errors
    /// None: whatever happens is tried again.
    pub async fn run<R>(self, stop: StopToken, receive: R) -> Result<(), Infallible>
    where
        R: Fn(Arc<Message>) -> BoxFuture<'static, Taken> + Send + Sync + 'static,
    {
        let receive = Arc::new(receive);
        let mut wait = FIRST_WAIT;
        let mut said = None;
        while !stop.is_stopped() {
            let began = tokio::time::Instant::now();
            let Err(error) = self.consume(&stop, &receive).await else { break };
            if began.elapsed() > RECONNECT_MAX {
                wait = FIRST_WAIT;
                said = None;
            }
            let text = self.describe(&error);
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

    fn describe(&self, error: &AmqpError) -> String {
        let vhost = self.connector.vhost();
        match error {
            AmqpError::Missing(text) if !self.topology.declare => {
                format!("something is missing in virtual host {vhost}: {text}; create it, or set declare=true")
            }
            AmqpError::Precondition(text) => format!("what is at the broker is not what declare would make: {text}"),
            error => error.to_string(),
        }
    }

    /// Takes messages over one connection; `Ok` when the daemon stops.
    async fn consume<R>(&self, stop: &StopToken, receive: &Arc<R>) -> Result<(), AmqpError>
    where
        R: Fn(Arc<Message>) -> BoxFuture<'static, Taken> + Send + Sync + 'static,
    {
        let link = self.connector.connect().await?;
        self.topology.prepare_queues(&link).await?;
        let channel = link.channel(ANSWER).await?;
        let options = BasicQosOptions { global: false };
        within(ANSWER, "set the prefetch", channel.basic_qos(self.prefetch, options)).await?;
        let (queue, options) = (self.queue.clone(), BasicConsumeOptions::default());
        let consuming = channel.basic_consume(queue, ShortString::default(), options, FieldTable::default());
        let mut deliveries = within(ANSWER, "let us consume", consuming).await?;
        tracing::info!(queue = %self.queue, "messages are taken from queue {}", self.queue);
        let mut under_way = JoinSet::new();
        let ended = loop {
            tokio::select! {
                () = stop.stopped() => break Ok(()),
                () = link.lost() => break Err(AmqpError::Lost("the connection to the broker is lost".to_owned())),
                Some(done) = under_way.join_next() => match done {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break Err(error),
                    Err(_) => break Err(AmqpError::Lost("a message was not handled to its end".to_owned())),
                },
                next = deliveries.next(), if under_way.len() < usize::from(self.prefetch) => match next {
                    Some(Ok(delivery)) => {
                        let (work, receive) = (Arc::clone(&self.work), Arc::clone(receive));
                        let guard = Arc::clone(link.guard());
                        under_way.spawn(async move { work.handle(delivery, &*receive, &guard).await });
                    }
                    Some(Err(error)) => break Err(AmqpError::from_lapin(&error)),
                    None => break Err(AmqpError::Missing("the broker ended the consumer: was the queue deleted?".to_owned())),
                },
            }
        };
        if ended.is_ok() {
            self.finish(under_way, &channel, &link).await;
        }
        ended
    }

    /// Lets what is under way come to its end, as far as it does soon. The broker keeps the rest.
    async fn finish(&self, mut under_way: JoinSet<Result<(), AmqpError>>, channel: &Channel, link: &Link) {
        let until = tokio::time::Instant::now() + FINISH_WITHIN;
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
            return Self { exchange: ShortString::default(), ..self.clone() }.prepare(link).await;
        }
        Self { declare: false, queues: Vec::new(), ..self.clone() }.prepare(link).await?;
        self.prepare_bound(link).await
    }
}

impl Work {
    /// Brings one message to its end. A message that cannot be taken now stays here, unacknowledged.
    async fn handle<R>(&self, delivery: Delivery, receive: &R, guard: &Guard) -> Result<(), AmqpError>
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
        let mut wait = FIRST_WAIT;
        loop {
            let taken = if bytes > self.message_limit {
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
                Taken::Rejected(reason) => match self.bury(&message, &properties, &reason).await {
                    Ok(()) => {
                        self.metrics.rejected();
                        let queue = &self.dead;
                        tracing::error!(queue = %queue, reason = %reason, "a message cannot be taken and lies in {queue} now: {reason}");
                        break;
                    }
                    Err(why) => why,
                },
                Taken::TryLater(why) => why,
            };
            self.metrics.later();
            tracing::debug!(queue = %self.queue, reason = %why, "a message waits: {why}");
            tokio::time::sleep(wait.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
            wait = (wait * 2).min(self.longest_wait);
        }
        let acknowledged = within(ANSWER, "take an acknowledgement", acker.ack(BasicAckOptions::default())).await;
        guard.let_go(bytes);
        acknowledged.map(drop)
    }

    /// Publishes a message to the queue of dead letters, with where it came from and why.
    async fn bury(&self, message: &Message, properties: &BasicProperties, reason: &str) -> Result<(), String> {
        let mut headers = FieldTable::default();
        for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
            // The broker would publish by these once more, to this very queue among others.
            if !matches!(name.as_str(), "CC" | "BCC") {
                headers.insert(name.clone(), value.clone());
            }
        }
        let mut cut = reason.to_owned();
        cut.truncate(reason.floor_char_boundary(REASON_BYTES));
        let now = self.clock.now().to_string();
        for (name, value) in [
            ("x-rejected-reason", cut.as_str()),
            ("x-rejected-at", now.as_str()),
            ("x-original-queue", self.queue.as_str()),
            ("x-original-exchange", message.exchange.as_str()),
            ("x-original-routing-key", message.routing_key.as_str()),
        ] {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        // Not its expiration, and not the user, whom the broker compares with us.
        let mut kept = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        if let Some(value) = properties.content_type() {
            kept = kept.with_content_type(value.clone());
        }
        if let Some(value) = properties.content_encoding() {
            kept = kept.with_content_encoding(value.clone());
        }
        if let Some(value) = properties.message_id() {
            kept = kept.with_message_id(value.clone());
        }
        if let Some(value) = properties.timestamp() {
            kept = kept.with_timestamp(*value);
        }
        if let Some(value) = properties.kind() {
            kept = kept.with_type(value.clone());
        }
        if let Some(value) = properties.app_id() {
            kept = kept.with_app_id(value.clone());
        }
        let outgoing = Outgoing {
            id: message.message_id.clone().unwrap_or_default(),
            routing_key: self.dead.clone(),
            properties: kept,
            body: message.body.clone().into(),
        };
        let published = self.dead_letters.publish(&[&outgoing]).await.map_err(|error| error.to_string())?;
        match published.fates.first() {
            Some(Fate::Kept) => Ok(()),
            Some(Fate::Returned(reason)) => Err(format!("queue {} is not there: {reason}", self.dead)),
            Some(Fate::Nacked) => Err(format!("queue {} would not keep a dead letter", self.dead)),
            _ => Err(published.broken.map_or_else(|| "nothing was said of it".to_owned(), |error| error.to_string())),
        }
    }
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
