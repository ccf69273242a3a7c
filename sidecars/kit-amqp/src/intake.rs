//! The consumer of a queue, that is ended and begun again on one channel: what was taken stays taken meanwhile.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::{StreamExt as _, future};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::connection::within;
use crate::error::AmqpError;

/// How long the broker may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How a message has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is done, one way or the other.
    Done,
    /// The broker has it back.
    GivenBack,
}

/// A consumer that comes and goes.
pub(crate) struct Intake {
    pub(crate) channel: Channel,
    queue: ShortString,
    prefetch: u16,
    state: State,
    /// Whether messages that wait are to be given back.
    back: watch::Sender<bool>,
    /// Messages were given back, and none was done since: one at a time is taken, so that only that one is counted as sent
    /// again should it come to nothing.
    is_probing: bool,
    /// First, next and longest wait after messages were given back.
    waits: (Duration, Duration, Duration),
    not_before: Instant,
}

enum State {
    Off,
    On { consumer: Consumer, prefetch: u16 },
    Ending { consumer: Consumer, ended: BoxFuture<'static, Result<(), AmqpError>> },
}

impl Intake {
    pub(crate) fn new(channel: Channel, queue: &ShortString, prefetch: u16, waits: (Duration, Duration)) -> Self {
        Self {
            channel,
            queue: queue.clone(),
            prefetch,
            state: State::Off,
            back: watch::Sender::new(false),
            is_probing: false,
            waits: (waits.0, waits.0, waits.1),
            not_before: Instant::now(),
        }
    }

    /// Whether messages that wait are to be given back, from now on.
    pub(crate) fn back(&self) -> watch::Receiver<bool> {
        self.back.subscribe()
    }

    /// Takes messages, unless that is so already or it is too soon; `under_way` are here.
    ///
    /// # Errors
    /// The broker does not let us.
    pub(crate) async fn begin(&mut self, under_way: usize) -> Result<(), AmqpError> {
        let wanted = if self.is_probing { 1 } else { self.prefetch };
        match &self.state {
            State::On { prefetch, .. } if *prefetch == wanted => return Ok(()),
            State::On { .. } => {
                self.end();
                return Ok(());
            }
            State::Ending { .. } => return Ok(()),
            State::Off => {}
        }
        // The broker counts what a consumer has not acknowledged, and not what is left of the one before it.
        if under_way > usize::from(wanted / 2) {
            return Ok(());
        }
        if *self.back.borrow() {
            if under_way > 0 {
                return Ok(());
            }
            self.back.send_replace(false);
            let (_, next, most) = self.waits;
            self.not_before = Instant::now() + next;
            self.waits.1 = (next * 2).min(most);
        }
        if Instant::now() < self.not_before {
            return Ok(());
        }
        let options = BasicQosOptions { global: false };
        within(ANSWER, "set the prefetch", self.channel.basic_qos(wanted, options)).await?;
        let (queue, options) = (self.queue.clone(), BasicConsumeOptions::default());
        let consuming = self.channel.basic_consume(queue, ShortString::default(), options, FieldTable::default());
        let consumer = within(ANSWER, "let us consume", consuming).await?;
        self.state = State::On { consumer, prefetch: wanted };
        tracing::info!(queue = %self.queue, "messages are taken from queue {}", self.queue);
        Ok(())
    }

    /// Whether messages are taken; what was on its way still comes.
    pub(crate) fn is_on(&self) -> bool {
        matches!(self.state, State::On { .. })
    }

    /// Takes no more messages. What is here stays here.
    pub(crate) fn end(&mut self) {
        match std::mem::replace(&mut self.state, State::Off) {
            State::On { consumer, .. } => {
                let (channel, tag) = (self.channel.clone(), consumer.tag());
                let ending = async move {
                    within(ANSWER, "end the consumer", channel.basic_cancel(tag, BasicCancelOptions::default())).await
                };
                let mut ended = ending.boxed();
                // Asked for now, so that it comes to the broker before what is given back.
                if let Some(result) = (&mut ended).now_or_never() {
                    ended = future::ready(result).boxed();
                }
                self.state = State::Ending { consumer, ended };
            }
            state => self.state = state,
        }
    }

    /// Takes no more messages, and has those that wait given back.
    pub(crate) fn give_back(&mut self, why: &str) {
        self.end();
        if !self.back.send_replace(true) {
            self.is_probing = true;
            let queue = &self.queue;
            tracing::warn!(queue = %queue, reason = %why, "messages that cannot be taken go back to queue {queue}: {why}");
        }
    }

    /// A message has left.
    pub(crate) fn left(&mut self, left: Left) {
        if left == Left::Done && !*self.back.borrow() {
            self.is_probing = false;
            self.waits.1 = self.waits.0;
        }
    }

    /// The next message; `None` once no more will come of a consumer that was ended. May be dropped and called again.
    ///
    /// # Errors
    /// The channel is of no use any more.
    pub(crate) async fn next(&mut self) -> Result<Option<Delivery>, AmqpError> {
        match &mut self.state {
            State::Off => future::pending().await,
            State::On { consumer, .. } => match consumer.next().await {
                Some(delivery) => Ok(Some(delivery?)),
                None => Err(AmqpError::Missing("the broker ended the consumer: was the queue deleted?".to_owned())),
            },
            State::Ending { consumer, ended } => {
                // Polled together: nothing comes to an end while what came before it is not taken.
                let last = tokio::select! {
                    biased;
                    delivery = consumer.next() => match delivery {
                        Some(delivery) => return Ok(Some(delivery?)),
                        None => ended.await,
                    },
                    result = &mut *ended => match result {
                        Ok(()) => {
                            *ended = future::ready(Ok(())).boxed();
                            match consumer.next().await {
                                Some(delivery) => return Ok(Some(delivery?)),
                                None => Ok(()),
                            }
                        }
                        Err(error) => Err(error),
                    },
                };
                self.state = State::Off;
                last.map(|()| None)
            }
        }
    }
}
