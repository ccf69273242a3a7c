//! Publishing over a connection that comes and goes: a session at a time, made anew when it is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kit::lifecycle::StopToken;
use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use crate::config::QueueKind;
use crate::connection::{Connector, Link, within};
use crate::error::AmqpError;
use crate::message::Outgoing;
use crate::window::{self, Fate, Limits, Published};

/// How long the broker may take to open a channel or to declare something.
const ANSWER: Duration = Duration::from_secs(5);
/// First and longest distance of attempts to connect while nothing is to be published.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// A connection that ends sooner, and on which nothing was confirmed, is not made again at once.
const PROVEN_AFTER: Duration = Duration::from_secs(10);
/// How long nobody looks whether the topology is still what it was. A queue that is gone shows in nothing else while another
/// one takes the same messages: they are confirmed, and not returned.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How often the topology is made again because of messages that had no route, at most.
const REMADE_EVERY: Duration = Duration::from_secs(2);

/// A queue that must be there.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) name: ShortString,
    /// What it is bound to the exchange with.
    pub(crate) patterns: Vec<ShortString>,
    /// The queue that gets what the broker would throw away.
    pub(crate) dead: Option<ShortString>,
}

impl Queue {
    fn arguments(&self, kind: QueueKind) -> FieldTable {
        let mut arguments = FieldTable::default();
        let mut add = |name: &str, value: &str| {
            arguments.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        add("x-queue-type", kind.word());
        if let Some(dead) = &self.dead {
            add("x-dead-letter-exchange", "");
            add("x-dead-letter-routing-key", dead.as_str());
            if kind == QueueKind::Quorum {
                // Otherwise a dead letter is lost where its queue is away at that moment. It asks for this overflow
                // (rabbitmq.com/docs/quorum-queues, since 3.10).
                add("x-dead-letter-strategy", "at-least-once");
                add("x-overflow", "reject-publish");
            }
        }
        arguments
    }
}

/// What must be at the broker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    /// Whether it is made, or only looked for.
    pub(crate) declare: bool,
    /// A topic exchange; the default one where it is empty.
    pub(crate) exchange: ShortString,
    pub(crate) queues: Vec<Queue>,
    pub(crate) kind: QueueKind,
}

impl Topology {
    /// Makes or looks for it, on a channel of its own: what is refused closes the channel. `known`: it was there before.
    /// Returns whether we may make it, as far as that was tried.
    ///
    /// # Errors
    /// [`AmqpError`], whose text says what the broker said of it.
    pub(crate) async fn prepare(&self, link: &Link, known: bool, may_make: bool) -> Result<bool, AmqpError> {
        match self.make(link, known, self.declare && may_make).await {
            Ok(()) => Ok(may_make),
            // Whoever may only write publishes to what others have made (the usual set-up of a site with one administrator).
            // RabbitMQ asks for the right to configure before it looks whether there is something to make.
            Err(AmqpError::Refused(text)) if self.declare && may_make => {
                self.make(link, known, false).await.map_err(|error| match error {
                    AmqpError::Missing(missing) => AmqpError::Refused(format!("{text}; and without that: {missing}")),
                    other => other,
                })?;
                tracing::warn!(
                    error = %text,
                    "the user may not make exchanges and queues, and they are taken as they are: all are there, and whether \
                     they are bound as configured cannot be seen. Let the user configure them, or set declare=false: {text}"
                );
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn make(&self, link: &Link, known: bool, declare: bool) -> Result<(), AmqpError> {
        let channel = link.channel(ANSWER).await?;
        if !self.exchange.as_str().is_empty() {
            let options =
                ExchangeDeclareOptions { passive: !declare, durable: true, ..ExchangeDeclareOptions::default() };
            let (name, kind) = (self.exchange.clone(), ExchangeKind::Topic);
            let declared = channel.exchange_declare(name, kind, options, FieldTable::default());
            within(ANSWER, "declare the exchange", declared).await?;
        }
        let channel = self.make_queues(link, channel, known, declare).await?;
        let _ = within(ANSWER, "close a channel", channel.close(200, "done".into())).await;
        Ok(())
    }

    /// As [`Self::prepare`], for an exchange that is there already.
    pub(crate) async fn prepare_bound(&self, link: &Link) -> Result<(), AmqpError> {
        let channel = link.channel(ANSWER).await?;
        let channel = self.make_queues(link, channel, false, self.declare).await?;
        let _ = within(ANSWER, "close a channel", channel.close(200, "done".into())).await;
        Ok(())
    }

    /// Returns a channel that is open: the one it got may be closed by a refusal.
    async fn make_queues(
        &self,
        link: &Link,
        mut channel: Channel,
        known: bool,
        declare: bool,
    ) -> Result<Channel, AmqpError> {
        for queue in &self.queues {
            if known && declare {
                match self.make_queue(&channel, queue, true).await {
                    Err(AmqpError::Missing(_)) => {
                        channel = link.channel(ANSWER).await?;
                        let name = &queue.name;
                        tracing::error!(
                            queue = %name,
                            "queue {name} was gone and is made again: what was in it is lost, and what was published since then \
                             did not come to it; replay what its consumer needs"
                        );
                    }
                    looked => looked?,
                }
            }
            match (self.make_queue(&channel, queue, !declare).await, &queue.dead) {
                // It is another's, or from before: it cannot be changed, and can be consumed all the same.
                (Err(AmqpError::Precondition(text)), Some(dead)) if declare => {
                    channel = link.channel(ANSWER).await?;
                    self.make_queue(&channel, queue, true).await?;
                    let name = &queue.name;
                    tracing::warn!(
                        queue = %name, dead = %dead, error = %text,
                        "queue {name} was not made with a dead-letter exchange as declare would make it, and is taken as it \
                         is: what the broker gives up is lost unless a policy sends it to queue {dead} (dead-letter-exchange \
                         empty, dead-letter-routing-key {dead}); set one, or delete queue {name} once it is empty: {text}"
                    );
                }
                (made, _) => made?,
            }
            for pattern in queue.patterns.iter().filter(|_| declare) {
                let (queue, exchange) = (queue.name.clone(), self.exchange.clone());
                let options = QueueBindOptions::default();
                let bound = channel.queue_bind(queue, exchange, pattern.clone(), options, FieldTable::default());
                within(ANSWER, "bind a queue", bound).await?;
            }
        }
        Ok(channel)
    }

    async fn make_queue(&self, channel: &Channel, queue: &Queue, passive: bool) -> Result<(), AmqpError> {
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        let arguments = if passive { FieldTable::default() } else { queue.arguments(self.kind) };
        let declared = channel.queue_declare(queue.name.clone(), options, arguments);
        within(ANSWER, "declare a queue", declared).await.map(drop)
    }
}

/// A connection with what was made sure of on it.
struct Session {
    link: Link,
    /// Channels with confirms on, on which nothing is under way.
    idle: Mutex<Vec<Channel>>,
    /// A window of it has no outcome: it is of no more use.
    stale: AtomicBool,
    /// How often it seemed that something of the topology may be gone, and for how many of these it was made again.
    doubts: AtomicU64,
    settled: AtomicU64,
    /// When the topology was made or looked at last.
    prepared: Mutex<Instant>,
    /// Whether we may make it, as far as that was tried.
    may_make: bool,
    since: Instant,
    has_confirmed: AtomicBool,
}

/// Publishes to one exchange.
pub(crate) struct Publisher {
    pub(crate) connector: Connector,
    topology: Topology,
    limits: Limits,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    /// The topology was there once: what is missing of it from then on was taken away.
    was_prepared: AtomicBool,
}

impl Publisher {
    pub(crate) fn new(connector: Connector, topology: Topology, limits: Limits) -> Self {
        Self {
            connector,
            topology,
            limits,
            session: tokio::sync::Mutex::new(None),
            was_prepared: AtomicBool::new(false),
        }
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Publishes a window.
    ///
    /// # Errors
    /// Nothing of it was published.
    pub(crate) async fn publish(&self, messages: &[&Outgoing]) -> Result<Published, AmqpError> {
        let session = self.session().await?;
        let channel = session.channel().await.inspect_err(|error| {
            // Others are under way on it.
            if !matches!(error, AmqpError::Crowded(_)) {
                session.stale.store(true, Ordering::Release);
            }
        })?;
        let published = window::publish(&channel, &self.topology.exchange, messages, self.limits).await;
        if published.fates.contains(&Fate::Kept) {
            session.has_confirmed.store(true, Ordering::Release);
        }
        // What has no route may have had one in a queue that somebody has deleted.
        let is_returned = |fate: &Fate| matches!(fate, Fate::Returned(_));
        if self.topology.declare && published.fates.iter().any(is_returned) && session.is_prepared_for(REMADE_EVERY) {
            session.doubts.fetch_add(1, Ordering::AcqRel);
        }
        match &published.broken {
            // A quorum queue that was full goes on refusing on the channel it refused on, also when there is room again
            // (seen with RabbitMQ 3.10.8, `reject-publish` and a policy that was cleared).
            None if published.fates.contains(&Fate::Nacked) => {}
            None => session.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel),
            Some(AmqpError::Lost(_)) => {
                session.stale.store(true, Ordering::Release);
                // One that is blocked is kept: it is told when that is over.
                if session.link.blocked().is_none() {
                    self.let_go(&session).await;
                }
            }
            Some(AmqpError::Missing(_)) => drop(session.doubts.fetch_add(1, Ordering::AcqRel)),
            Some(AmqpError::Refused(_) | AmqpError::Precondition(_) | AmqpError::Crowded(_)) => {}
        }
        Ok(published)
    }

    /// Bytes of a frame that was agreed on.
    ///
    /// # Errors
    /// There is no connection.
    pub(crate) async fn frame_max(&self) -> Result<usize, AmqpError> {
        Ok(self.session().await?.link.frame_max())
    }

    /// Keeps a connection while nothing is to be published, until `stop`.
    pub(crate) async fn keep(&self, stop: &StopToken) {
        let mut delay = RECONNECT.0;
        let mut said = false;
        while !stop.is_stopped() {
            match self.session().await {
                Ok(session) => {
                    if said {
                        tracing::info!("connected to the broker at {}", self.connector.address());
                    }
                    said = false;
                    tokio::select! {
                        () = stop.stopped() => return,
                        () = session.link.lost() => {}
                    }
                    self.let_go(&session).await;
                    if session.is_proven() {
                        delay = RECONNECT.0;
                        continue;
                    }
                    // Whatever ends connections as soon as they are made would be kept busy with nothing else.
                    if delay == RECONNECT.0 * 2 {
                        tracing::warn!("a connection to the broker at {} was lost at once", self.connector.address());
                    }
                    if !pause(&mut delay, stop).await {
                        return;
                    }
                }
                Err(error) => {
                    if !said {
                        tracing::warn!(error = %error, "no connection to the broker, trying on: {error}");
                    }
                    said = true;
                    if !pause(&mut delay, stop).await {
                        return;
                    }
                }
            }
        }
    }

    /// The connection as it is, or a new one. While the broker blocks publishers that is waited for, up to a limit.
    async fn session(&self) -> Result<Arc<Session>, AmqpError> {
        match self.any_session().await {
            // The broker ends the old one just now, for what a window before has left behind on it.
            Err(error) if error.is_of_a_closed_channel() => self.any_session().await,
            found => found,
        }
    }

    async fn any_session(&self) -> Result<Arc<Session>, AmqpError> {
        let known = self.session.lock().await.clone();
        if let Some(known) = known
            && let Some(reason) = known.link.blocked().filter(|_| known.link.is_up())
        {
            known.link.unblocked(self.limits.publish).await;
            if known.link.blocked().is_some() && known.link.is_up() {
                return Err(AmqpError::Lost(format!("the broker blocks what is published: {reason}")));
            }
        }
        let mut current = self.session.lock().await;
        if let Some(session) = current.as_ref().filter(|session| session.is_good()) {
            let doubts = session.doubts.load(Ordering::Acquire);
            if doubts != session.settled.load(Ordering::Acquire) || session.is_prepared_for(LOOK_AGAIN) {
                self.topology.prepare(&session.link, true, session.may_make).await.inspect_err(|error| {
                    if matches!(error, AmqpError::Lost(_)) {
                        session.stale.store(true, Ordering::Release);
                    }
                })?;
                // Only now: whoever waits for it may go away meanwhile, and a doubt that came meanwhile stays.
                session.settled.store(doubts, Ordering::Release);
                *session.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
            return Ok(Arc::clone(session));
        }
        // Before the new one, and whoever else holds it: its place at the broker is free, and its gauges are not set back
        // later.
        if let Some(old) = current.take() {
            old.link.cut();
        }
        let link = self.connector.connect().await?;
        let known = self.was_prepared.load(Ordering::Acquire);
        let may_make = self.topology.prepare(&link, known, true).await?;
        self.was_prepared.store(true, Ordering::Release);
        let session = Arc::new(Session {
            link,
            idle: Mutex::default(),
            stale: AtomicBool::new(false),
            doubts: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            prepared: Mutex::new(Instant::now()),
            may_make,
            since: Instant::now(),
            has_confirmed: AtomicBool::new(false),
        });
        *current = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Ends this session, unless there is another one by now.
    async fn let_go(&self, session: &Arc<Session>) {
        session.link.cut();
        let mut current = self.session.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            *current = None;
        }
    }
}

impl Session {
    fn is_good(&self) -> bool {
        self.link.is_up() && !self.stale.load(Ordering::Acquire)
    }

    /// It has been of use, or there for a while.
    fn is_proven(&self) -> bool {
        self.has_confirmed.load(Ordering::Acquire) || self.since.elapsed() >= PROVEN_AFTER
    }

    /// Whether the topology was made or looked at so long ago.
    fn is_prepared_for(&self, at_least: Duration) -> bool {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= at_least
    }

    async fn channel(&self) -> Result<Channel, AmqpError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(channel) = idle.filter(|channel| channel.status().connected()) {
            return Ok(channel);
        }
        let channel = self.link.channel(ANSWER).await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        within(ANSWER, "turn confirms on", confirms).await?;
        Ok(channel)
    }
}

/// Waits before the next attempt to connect, and makes the wait after it longer; false when the daemon stops.
async fn pause(delay: &mut Duration, stop: &StopToken) -> bool {
    let wait = delay.mul_f64(0.8 + 0.4 * fastrand::f64());
    *delay = (*delay * 2).min(RECONNECT.1);
    tokio::select! {
        () = stop.stopped() => false,
        () = tokio::time::sleep(wait) => true,
    }
}
