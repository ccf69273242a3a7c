//! Publishing over a connection that comes and goes: a session at a time, made anew when it is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

/// What must be at the broker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    /// Whether it is made, or only looked for.
    pub(crate) declare: bool,
    /// A topic exchange; the default one where it is empty.
    pub(crate) exchange: ShortString,
    /// Queues with the patterns they are bound to the exchange with.
    pub(crate) queues: Vec<(ShortString, Vec<ShortString>)>,
    pub(crate) kind: QueueKind,
}

impl Topology {
    /// Makes or looks for it, on a channel of its own: what is refused closes the channel.
    ///
    /// # Errors
    /// [`AmqpError`], whose text says what the broker said of it.
    pub(crate) async fn prepare(&self, link: &Link) -> Result<(), AmqpError> {
        let channel = link.channel(ANSWER).await?;
        if !self.exchange.as_str().is_empty() {
            let options =
                ExchangeDeclareOptions { passive: !self.declare, durable: true, ..ExchangeDeclareOptions::default() };
            let (name, kind) = (self.exchange.clone(), ExchangeKind::Topic);
            let declared = channel.exchange_declare(name, kind, options, FieldTable::default());
            within(ANSWER, "declare the exchange", declared).await?;
        }
        self.make_queues(&channel).await?;
        let _ = within(ANSWER, "close a channel", channel.close(200, "done".into())).await;
        Ok(())
    }

    /// As [`Self::prepare`], for an exchange that is there already.
    pub(crate) async fn prepare_bound(&self, link: &Link) -> Result<(), AmqpError> {
        let channel = link.channel(ANSWER).await?;
        self.make_queues(&channel).await?;
        let _ = within(ANSWER, "close a channel", channel.close(200, "done".into())).await;
        Ok(())
    }

    async fn make_queues(&self, channel: &Channel) -> Result<(), AmqpError> {
        for (queue, patterns) in &self.queues {
            let options =
                QueueDeclareOptions { passive: !self.declare, durable: true, ..QueueDeclareOptions::default() };
            let mut arguments = FieldTable::default();
            if self.declare {
                arguments.insert("x-queue-type".into(), AMQPValue::LongString(self.kind.word().into()));
            }
            within(ANSWER, "declare a queue", channel.queue_declare(queue.clone(), options, arguments)).await?;
            for pattern in patterns.iter().filter(|_| self.declare) {
                let (queue, exchange) = (queue.clone(), self.exchange.clone());
                let options = QueueBindOptions::default();
                let bound = channel.queue_bind(queue, exchange, pattern.clone(), options, FieldTable::default());
                within(ANSWER, "bind a queue", bound).await?;
            }
        }
        Ok(())
    }
}

/// A connection with what was made sure of on it.
struct Session {
    link: Link,
    /// Channels with confirms on, on which nothing is under way.
    idle: Mutex<Vec<Channel>>,
    /// A window of it has no outcome: it is of no more use.
    stale: AtomicBool,
    /// Something of the topology may be gone.
    doubtful: AtomicBool,
}

/// Publishes to one exchange.
pub(crate) struct Publisher {
    pub(crate) connector: Connector,
    topology: Topology,
    limits: Limits,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
}

impl Publisher {
    pub(crate) fn new(connector: Connector, topology: Topology, limits: Limits) -> Self {
        Self { connector, topology, limits, session: tokio::sync::Mutex::new(None) }
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
        let channel = session.channel().await.inspect_err(|_| session.stale.store(true, Ordering::Release))?;
        let published = window::publish(&channel, &self.topology.exchange, messages, self.limits).await;
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
            Some(AmqpError::Missing(_)) => session.doubtful.store(true, Ordering::Release),
            Some(AmqpError::Refused(_) | AmqpError::Precondition(_)) => {}
        }
        Ok(published)
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
                    (delay, said) = (RECONNECT.0, false);
                    tokio::select! {
                        () = stop.stopped() => return,
                        () = session.link.lost() => {}
                    }
                    self.let_go(&session).await;
                }
                Err(error) => {
                    if !said {
                        tracing::warn!(error = %error, "no connection to the broker, trying on: {error}");
                    }
                    said = true;
                    tokio::select! {
                        () = stop.stopped() => return,
                        () = tokio::time::sleep(delay.mul_f64(0.8 + 0.4 * fastrand::f64())) => {}
                    }
                    delay = (delay * 2).min(RECONNECT.1);
                }
            }
        }
    }

    /// The connection as it is, or a new one. While the broker blocks publishers that is waited for, up to a limit.
    async fn session(&self) -> Result<Arc<Session>, AmqpError> {
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
            if session.doubtful.swap(false, Ordering::AcqRel)
                && let Err(error) = self.topology.prepare(&session.link).await
            {
                session.doubtful.store(true, Ordering::Release);
                return Err(error);
            }
            return Ok(Arc::clone(session));
        }
        // Before the new one, and whoever else holds it: its place at the broker is free, and its gauges are not set back
        // later.
        if let Some(old) = current.take() {
            old.link.cut();
        }
        let link = self.connector.connect().await?;
        self.topology.prepare(&link).await?;
        let session = Arc::new(Session {
            link,
            idle: Mutex::default(),
            stale: AtomicBool::new(false),
            doubtful: AtomicBool::new(false),
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
